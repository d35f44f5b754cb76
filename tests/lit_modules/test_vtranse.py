from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from lit_modules.layers.backbones import build_body, build_roi_head
from lit_modules.layers.vtranse import VTransENetwork
from lit_modules.vtranse import VTransEScoring, VTransETraining
from tests.lit_modules.batches import Image, make_batch, random_images

pytestmark = pytest.mark.filterwarnings("ignore:You are trying to `self.log:UserWarning")

NETWORK: dict[str, Any] = {"num_objects": 4, "num_predicates": 3, "embedding_dim": 5}
EVALUATION: dict[str, Any] = {"pairs": "all", "ks": (1, 3), "tops": (5,), "matching": "multi", "free_k": 0}


def training() -> VTransETraining:
    torch.manual_seed(0)
    return VTransETraining(NETWORK, {})


def test_the_loss_is_the_mean_over_relations() -> None:
    batch, module = make_batch(*random_images(0)), training()
    loss = module.training_step(batch, 0)
    total = 0.0
    for subject, predicate, obj in batch.relations.tolist():
        (logits,) = module.network(batch, torch.tensor([[subject, obj]])).tolist()
        total += math.log(sum(map(math.exp, logits))) - logits[predicate]
    assert len(batch.relations) > 5
    assert float(loss.detach()) == pytest.approx(total / len(batch.relations), rel=1e-5)
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


def test_a_batch_without_relations_is_harmless() -> None:
    module = training()
    loss = module.training_step(make_batch(Image(), Image([[1, 1, 2, 2]], [0])), 0)
    loss.backward()
    assert float(loss.detach()) == 0
    assert all(torch.isfinite(p.grad).all() for p in module.parameters() if p.grad is not None)


def test_it_learns_which_predicate_a_place_means() -> None:
    """Above or below, whatever the categories."""
    module, draw = training(), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
    images = []
    for _ in range(20):
        y = float(torch.randint(60, (), generator=draw))
        boxes = [[10.0, y, 30, y + 20], [10, y + 40, 30, y + 60]]
        labels = torch.randint(4, (2,), generator=draw).tolist()
        images.append(Image(boxes, labels, [[0, 1, 1], [1, 2, 0]]))
    batch = make_batch(*images)
    for _ in range(60):
        optimizer.zero_grad()
        module.training_step(batch, 0).backward()
        optimizer.step()
    predicted = module.network(batch, batch.relations[:, [0, 2]]).argmax(dim=1)
    assert torch.equal(predicted, batch.relations[:, 1])


def test_it_starts_from_a_detector() -> None:
    torch.manual_seed(1)
    body = build_body("small", widths=(4, 4, 8, 8))
    head = build_roi_head("small", body, hidden_dim=6)
    visual = {"body": "small", "body_settings": {"widths": (4, 4, 8, 8)}}
    visual |= {"head": "small", "head_settings": {"hidden_dim": 6}}
    module = VTransETraining({**NETWORK, "visual": visual}, {}, (body.state_dict(), head.state_dict()))
    assert module.network.visual is not None
    copies = zip(module.network.visual.head.parameters(), head.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in copies)


@pytest.mark.parametrize("scores", ["sum", "product"])
def test_scores_join_three_probabilities(scores: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lit_modules.vtranse.CHUNK", 5)  # in parts
    batch = make_batch(*random_images(0))
    torch.manual_seed(0)
    module = VTransEScoring(VTransENetwork(**NETWORK), scores, **EVALUATION, train_triplets=None).eval()
    pairs = module.candidate_pairs(batch)
    found = module.score_pairs(batch, pairs)
    logits = module.network(batch, pairs).tolist()
    assert found.dtype == torch.float64 and found.shape == (42, 3)
    for (subject, obj), row, given in zip(pairs.tolist(), logits, found.tolist(), strict=True):
        total = sum(map(math.exp, row))
        s, o = float(batch.scores[subject]), float(batch.scores[obj])
        expected = [s + o + math.exp(x) / total if scores == "sum" else s * o * math.exp(x) / total for x in row]
        assert given == pytest.approx(expected, rel=1e-6)


def test_unknown_scores_are_an_error() -> None:
    with pytest.raises(ValueError, match="scores must be sum or product, not 'mean'"):
        VTransEScoring(VTransENetwork(**NETWORK), "mean", **EVALUATION, train_triplets=None)
