from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from data_modules.scene_graph import RelationBatch
from lit_modules.functional.boxes import all_pairs
from lit_modules.layers.backbones import build_body, build_roi_head
from lit_modules.layers.vtranse import VTransENetwork
from tests.lit_modules.batches import make_batch, random_images, with_pixels

VISUAL: dict[str, Any] = {
    "body": "small",
    "body_settings": {"widths": (4, 4, 8, 8)},
    "head": "small",
    "head_settings": {"hidden_dim": 6},
}


def network(visual: dict[str, Any] | None = None) -> VTransENetwork:
    torch.manual_seed(0)
    made = VTransENetwork(num_objects=4, num_predicates=3, embedding_dim=5, visual=visual).eval()
    with torch.no_grad():
        made.scale.copy_(torch.rand(len(made.scale)) + 0.5)
    return made


def place(box: list[float], other: list[float]) -> list[float]:
    """Centre and sides of a box as the other one sees them."""
    (x, y, w, h), (x2, y2, w2, h2) = (
        (b[0] + b[2], b[1] + b[3], b[2] - b[0] + 1, b[3] - b[1] + 1) for b in (box, other)
    )
    return [(x - x2) / 2 / w2, (y - y2) / 2 / h2, math.log(w / w2), math.log(h / h2)]


def slow_logits(module: VTransENetwork, batch: RelationBatch, subject: int, obj: int, pooled: Tensor) -> list[float]:
    """t_p . (W_o x_o - W_s x_s), number by number."""
    embedded = []
    for weight, one, other in ((module.subject.weight, subject, obj), (module.object.weight, obj, subject)):
        label = int(batch.labels[one])
        x = [float(c == label) for c in range(4)]
        x += place(batch.boxes_xyxy[one].tolist(), batch.boxes_xyxy[other].tolist())
        x += pooled[one].tolist()
        x = [value * scale for value, scale in zip(x, module.scale.tolist(), strict=True)]
        embedded.append([sum(w * v for w, v in zip(row, x, strict=True)) for row in weight.tolist()])
    translation = [o - s for s, o in zip(*embedded, strict=True)]
    return [sum(t * d for t, d in zip(row, translation, strict=True)) for row in module.predicate.weight.tolist()]


def test_logits_are_the_formula() -> None:
    batch, module = make_batch(*random_images(0)), network()
    pairs = all_pairs(batch.image_index)
    logits = module(batch, pairs)
    assert logits.shape == (len(pairs), 3)
    nothing = torch.zeros(len(batch.labels), 0)
    for (subject, obj), found in zip(pairs.tolist(), logits.tolist(), strict=True):
        assert found == pytest.approx(slow_logits(module, batch, subject, obj, nothing), rel=1e-4, abs=1e-5)


def test_pixels_join_the_features() -> None:
    batch = with_pixels(make_batch(*random_images(0)))
    module = network(VISUAL)
    assert module.visual is not None
    pairs = all_pairs(batch.image_index)
    seen = module.see(batch)
    assert seen is not None
    logits = module(batch, pairs, seen)
    assert torch.equal(logits, module(batch, pairs))
    pooled = seen[0].pooled(module.visual.head, seen[1], batch.boxes_xyxy, batch.image_index)
    assert pooled.shape == (len(batch.labels), 6)
    for (subject, obj), found in zip(pairs.tolist(), logits.tolist(), strict=True):
        assert found == pytest.approx(slow_logits(module, batch, subject, obj, pooled), rel=1e-4, abs=1e-4)


def test_gradients_reach_all_but_the_frozen_body() -> None:
    batch = with_pixels(make_batch(*random_images(0)))
    module = network(VISUAL)
    module(batch, all_pairs(batch.image_index)).square().sum().backward()
    for name, parameter in module.named_parameters():
        frozen = name.startswith("visual.detector.")
        assert parameter.requires_grad != frozen
        assert frozen or (parameter.grad is not None and parameter.grad.abs().sum() > 0), name


def test_the_formula_s_gradient() -> None:
    batch, module = make_batch(*random_images(2, boxes=(3,))), network().double()
    pairs = all_pairs(batch.image_index)

    def logits(scale: Tensor, weight: Tensor) -> Tensor:
        given = {"scale": scale, "subject.weight": weight}
        found: Tensor = torch.func.functional_call(module, given, (batch, pairs))
        return found

    inputs = (module.scale.detach().requires_grad_(), module.subject.weight.detach().requires_grad_())
    assert torch.autograd.gradcheck(logits, inputs)


def test_it_starts_from_a_detector() -> None:
    module = network(VISUAL)
    assert module.visual is not None
    torch.manual_seed(1)
    body = build_body("small", widths=(4, 4, 8, 8))
    head = build_roi_head("small", body, hidden_dim=6)
    module.visual.start_from(body.state_dict(), head.state_dict())
    for copy, state in ((module.visual.detector.body, body), (module.visual.head, head)):
        assert all(torch.equal(a, b) for a, b in zip(copy.parameters(), state.parameters(), strict=True))


def test_a_batch_without_images_is_an_error() -> None:
    with pytest.raises(ValueError, match="the batch has no images"):
        network(VISUAL)(make_batch(*random_images(0)), torch.tensor([[0, 1]]))


def test_pairs_may_be_none() -> None:
    batch = make_batch(*random_images(0))
    assert network()(batch, torch.zeros(0, 2, dtype=torch.int64)).shape == (0, 3)
