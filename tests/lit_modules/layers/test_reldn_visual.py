from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from data_modules.scene_graph import ImageRelationBatch
from lit_modules.functional.boxes import all_pairs
from lit_modules.layers.backbones import build_body, build_roi_head
from lit_modules.layers.reldn import RelDNNetwork
from lit_modules.layers.reldn_visual import PREDICATE_BACKBONE, RelDNVisual
from tests.lit_modules.batches import Image, make_batch, random_images, with_pixels

SMALL: dict[str, Any] = {
    "body": "small",
    "body_settings": {"widths": (4, 4, 8, 8)},
    "head": "small",
    "head_settings": {"hidden_dim": 6},
}


def visual(**changes: Any) -> RelDNVisual:
    torch.manual_seed(0)
    module = RelDNVisual(4, **SMALL | changes)
    module.start_from(build_body("small", widths=(4, 4, 8, 8)).state_dict(), module.relation_head.state_dict())
    with torch.no_grad():  # copies that have gone their own ways, as after training
        for part in (module.relation_body, module.subject_head, module.object_head, module.relation_head):
            for parameter in part.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    return module.eval()


def example(seed: int = 0) -> tuple[ImageRelationBatch, Tensor]:
    batch = with_pixels(make_batch(*random_images(seed)))
    return batch, all_pairs(batch.image_index)


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return layer.weight @ x + layer.bias


def slow_logits(module: RelDNVisual, batch: ImageRelationBatch, subject: int, obj: int) -> Tensor:
    """One pair's logits, from its image alone, box by box."""
    number = int(batch.image_index[subject])
    image = batch.images[number]
    scale = torch.tensor([image.shape[2], image.shape[1]]) / batch.sizes_wh[number]
    # Cells at the border of a map see what lies beside the image: the padding must be that of the whole batch.
    height = max(i.shape[1] + -i.shape[1] % 32 for i in batch.images)
    width = max(i.shape[2] + -i.shape[2] % 32 for i in batch.images)
    padded = torch.zeros(1, 3, height, width)
    padded[0, :, : image.shape[1], : image.shape[2]] = image
    detected, related = module.detector.body(padded), module.relation_body(padded)

    def pooled(head: Any, maps: dict[str, Tensor], box: Tensor) -> Tensor:
        x1, y1, x2, y2 = (box * scale.repeat(2)).tolist()
        found: Tensor = head(maps, [torch.tensor([[x1, y1, x2 + 1, y2 + 1]])])
        return found[0]

    s, o = (batch.boxes_xyxy[i] for i in (subject, obj))
    union = torch.cat([torch.minimum(s[:2], o[:2]), torch.maximum(s[2:], o[2:])])
    features = [
        pooled(module.subject_head, detected, s),
        pooled(module.relation_head, related, union),
        pooled(module.object_head, detected, o),
    ]
    x = torch.cat(features)
    for layer in (module.fusion[0], module.fusion[2]):
        x = linear(layer, x)
        x = torch.where(x > 0, x, 0.1 * x)
    x = linear(module.fusion[4], x)
    if module.subject_skip is not None and module.object_skip is not None:
        x = x + linear(module.subject_skip, features[0]) + linear(module.object_skip, features[2])
    return x


@pytest.mark.parametrize("skips", [True, False])
@torch.no_grad()
def test_logits_equal_those_of_pairs_taken_one_by_one(skips: bool) -> None:
    module = visual(skips=skips)
    batch, pairs = example()
    logits = module(batch, pairs)
    assert logits.shape == (42, 4) and float(logits.std(dim=0).min()) > 1e-3
    for row, (subject, obj) in list(zip(logits, pairs.tolist(), strict=True))[::5]:
        assert torch.allclose(row, slow_logits(module, batch, subject, obj), atol=1e-5)


@torch.no_grad()
def test_the_order_of_pairs_and_looking_once_change_nothing() -> None:
    module = visual()
    batch, pairs = example(1)
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))
    logits = module(batch, pairs)
    assert torch.allclose(module(batch, pairs[order]), logits[order], atol=1e-6)
    assert torch.equal(module(batch, pairs, module.see(batch)), logits)
    assert module(batch, pairs[:0]).shape == (0, 4)


def test_starting_from_a_detector() -> None:
    torch.manual_seed(3)
    body = build_body("small", widths=(4, 4, 8, 8))
    head = build_roi_head("small", body, hidden_dim=6)
    module = RelDNVisual(4, **SMALL)
    module.start_from(body.state_dict(), head.state_dict())
    for copy in (module.detector.body, module.relation_body):
        assert all(torch.equal(copy.state_dict()[k], v) for k, v in body.state_dict().items())
    for copied in (module.subject_head, module.object_head, module.relation_head):
        assert all(torch.equal(copied.state_dict()[k], v) for k, v in head.state_dict().items())
        assert not copied.last_relu
    with torch.no_grad():
        module.relation_body.stages[0][0].weight.add_(1)
    assert torch.equal(module.detector.body.stages[0][0].weight, body.stages[0][0].weight)  # copies of their own


def test_what_is_trained() -> None:
    module = visual()
    module.train()
    assert not any(m.training for m in module.detector.modules() if m is not module.detector)
    batch, pairs = example(2)
    module(batch, pairs).logsumexp(dim=1).sum().backward()
    for name, parameter in module.named_parameters():
        if name.startswith("detector."):
            assert not parameter.requires_grad and parameter.grad is None
        else:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    assert all(hasattr(module, name) for name in PREDICATE_BACKBONE)


@torch.no_grad()
def test_it_is_a_term_of_the_network() -> None:
    bias = torch.randn(4, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    network = RelDNNetwork(bias, semantic=True, spatial=True, spatial_hidden_dim=8, visual=SMALL).eval()
    batch, pairs = example(3)
    assert network.visual is not None
    others = RelDNNetwork(bias, semantic=True, spatial=True, spatial_hidden_dim=8)
    others.load_state_dict({k: v for k, v in network.state_dict().items() if not k.startswith("visual.")})
    expected = others(batch, pairs) + network.visual(batch, pairs)
    assert torch.allclose(network(batch, pairs, network.see(batch)), expected, atol=1e-6)


def test_a_batch_without_images_is_refused() -> None:
    batch = make_batch(Image(boxes=[[1, 1, 9, 9], [3, 3, 20, 20]], labels=[0, 1]))
    with pytest.raises(ValueError, match="no images: give the DataModule a pixel scale"):
        visual()(batch, all_pairs(batch.image_index))


@torch.no_grad()
def test_the_predicate_sees_what_lies_between_both_boxes() -> None:
    module = visual()
    diagonal = Image(boxes=[[10, 10, 60, 60], [220, 220, 290, 290]], labels=[0, 1], size=(300, 300))
    batch = with_pixels(make_batch(diagonal), scale=1.0)
    pairs = torch.tensor([[0, 1]])
    before = module(batch, pairs)
    batch.images[0][:, 240:280, 10:50] += 50  # below the subject, left of the object
    assert not torch.allclose(module(batch, pairs), before, atol=1e-4)
