from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from data_modules.scene_graph import RelationBatch
from lit_modules.layers.reldn import RelDNNetwork
from lit_modules.pair_sampling import LabelledPairs, label_pairs
from lit_modules.reldn import RelDNScoring, RelDNTraining, cross_entropy_per_image, resized_sides
from tests.lit_modules.batches import Image, make_batch, random_images
from tests.lit_modules.functional.reference_contrastive import reference_affinity, reference_side_losses

pytestmark = pytest.mark.filterwarnings("ignore:You are trying to `self.log:UserWarning")

NETWORK = {"semantic": True, "spatial": True, "spatial_hidden_dim": 8}
WEIGHTS = (1.0, 0.5, 0.1)
EVALUATION: dict[str, Any] = {"pairs": "all", "ks": (1, 3), "tops": (5,), "matching": "multi", "free_k": 0}


def bias() -> Tensor:
    return torch.randn(4, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def training(**changes: Any) -> RelDNTraining:
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "candidates": "all",
        "max_pairs": 10_000,
        "max_positive_pairs": 10_000,
        "contrastive_positive_pairs": 10_000,
        "contrastive_negative_pairs": 10_000,
        "weights": WEIGHTS,
        "margin": 0.3,
        "reduction": "official",
        "optimizer": {},
    }
    return RelDNTraining({"frequency_bias": bias(), **NETWORK}, **settings | changes)


def slow_cross_entropy(logits: list[list[float]], predicates: list[int]) -> float:
    losses = [math.log(sum(map(math.exp, row))) - row[p] for row, p in zip(logits, predicates, strict=True)]
    return sum(losses) / len(losses) if losses else 0.0


def slow_losses(module: RelDNTraining, images: list[Image], reduction: str) -> list[float]:
    """L0 to L3 of all pairs, image by image, averaged over the images."""
    totals = [0.0] * 4
    for image in images:
        batch = make_batch(image)
        labelled = label_pairs(batch, "all")
        if not len(labelled.pairs):
            continue
        logits = module.network(batch, labelled.pairs).double()
        predicates = labelled.predicates.tolist()
        totals[0] += slow_cross_entropy(logits.tolist(), predicates)
        predicted = (logits[:, 1:].argmax(dim=1) + 1).tolist()
        for anchor, partner in ((0, 1), (1, 0)):
            classes = batch.labels[labelled.pairs[:, partner]].tolist()
            anchors = labelled.pairs[:, anchor].tolist()
            phi = reference_affinity(logits)
            losses = reference_side_losses(phi, predicates, predicted, anchors, classes, (0.3,) * 3, reduction)
            totals = [totals[0], *(t + float(x) for t, x in zip(totals[1:], losses, strict=True))]
    return [total / len(images) for total in totals]


def test_cross_entropy_is_each_images_own_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.tensor([0] * 5 + [2] * 1 + [3] * 4)
    predicates = torch.randint(4, (10,), generator=generator)
    logits = torch.randn(10, 4, generator=generator)
    expected = 0.0
    for number in range(5):  # images 1 and 4 have no pairs
        of_image = image == number
        expected += slow_cross_entropy(logits[of_image].tolist(), predicates[of_image].tolist()) / 5
    labelled = LabelledPairs(torch.zeros(10, 2, dtype=torch.int64), predicates, image)
    assert float(cross_entropy_per_image(logits, labelled, 5)) == pytest.approx(expected, rel=1e-6)
    nothing = labelled.take(torch.zeros(0, dtype=torch.int64))
    assert float(cross_entropy_per_image(logits[:0], nothing, 2)) == 0


@pytest.mark.parametrize("reduction", ["official", "paper"])
@pytest.mark.parametrize("seed", range(3))
def test_the_losses_equal_loops_over_the_images(seed: int, reduction: str) -> None:
    images = random_images(seed, boxes=(7, 0, 1, 6, 2))
    module = training(reduction=reduction)
    got = module.training_step(make_batch(*images), 0)
    expected = slow_losses(module, images, reduction)
    names = ("cross_entropy", "class_agnostic", "entity_class_aware", "predicate_class_aware")
    assert [float(got[name]) for name in names] == pytest.approx(expected, rel=1e-5)
    assert all(value > 0 for value in expected)
    total = expected[0] + sum(w * x for w, x in zip(WEIGHTS, expected[1:], strict=True))
    assert float(got["loss"]) == pytest.approx(total, rel=1e-5)


def test_weights_of_zero_leave_only_the_cross_entropy() -> None:
    batch = make_batch(*random_images(0))
    torch.manual_seed(3)
    without = training(weights=(0.0, 0.0, 0.0), max_pairs=5, max_positive_pairs=2)
    got = without.training_step(batch, 0)
    assert set(got) == {"loss", "cross_entropy"}
    assert float(got["loss"]) == float(got["cross_entropy"])
    # The pairs of L0 are drawn first, so that rows that differ in their losses only see the same ones.
    one = training(weights=(0.0, 2.0, 0.0), max_pairs=5, max_positive_pairs=2)
    torch.manual_seed(4)
    cross_entropy = without.training_step(batch, 0)["cross_entropy"]
    torch.manual_seed(4)
    parts = one.training_step(batch, 0)
    assert torch.equal(parts["cross_entropy"], cross_entropy)
    assert float(parts["loss"]) == pytest.approx(float(parts["cross_entropy"]) + 2 * float(parts["entity_class_aware"]))


def test_gradient_reaches_both_modules_and_the_parts_carry_none() -> None:
    batch = make_batch(*random_images(0))
    for weights in ((0.0, 0.0, 0.0), WEIGHTS):
        module = training(weights=weights)
        losses = module.training_step(batch, 0)
        losses["loss"].backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.network.parameters())
        assert not any(value.requires_grad for key, value in losses.items() if key != "loss")


def test_the_contrastive_losses_alone_move_the_network() -> None:
    batch = make_batch(*random_images(1))
    labelled = label_pairs(batch, "all")
    for which in range(3):
        module = training()
        losses = module._contrastive(batch, labelled, module.network(batch, labelled.pairs))
        losses[which].backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.network.parameters())


def test_quotas_are_handed_to_the_sampler(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []

    def sampler(labelled: LabelledPairs, *quota: int) -> Tensor:
        seen.append(quota)
        return torch.arange(len(labelled.image))

    monkeypatch.setattr("lit_modules.reldn.sample_pairs", sampler)
    module = training(max_pairs=50, max_positive_pairs=20, contrastive_positive_pairs=7, contrastive_negative_pairs=9)
    module.training_step(make_batch(*random_images(0)), 0)
    assert seen == [(50, 20), (16, 7, 9), (16, 7, 9)]  # L0, then each side on its own


@pytest.mark.parametrize(
    "images", [[Image(), Image([[1, 1, 2, 2]], [0])], [Image([[1, 1, 5, 5], [3, 3, 9, 9]], [0, 1])]]
)
def test_a_batch_without_relations_is_harmless(images: list[Image]) -> None:
    module = training()
    losses = module.training_step(make_batch(*images), 0)
    losses["loss"].backward()
    assert all(torch.isfinite(p.grad).all() for p in module.network.parameters() if p.grad is not None)
    assert math.isfinite(float(losses["loss"]))


def test_training_follows_the_global_seed() -> None:
    batch = make_batch(*random_images(0))
    module = training(max_pairs=6, max_positive_pairs=2, contrastive_positive_pairs=3, contrastive_negative_pairs=3)
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(float(module.training_step(batch, 0)["loss"]))
    assert losses[0] == losses[1] != losses[2]


def scoring(normalisation: str = "original") -> RelDNScoring:
    torch.manual_seed(0)
    return RelDNScoring(RelDNNetwork(bias(), **NETWORK), normalisation, **EVALUATION, train_triplets=None).eval()


def test_scores_are_the_product_of_three_probabilities() -> None:
    batch = make_batch(*random_images(0))
    module = scoring()
    pairs = module.candidate_pairs(batch)
    scores = module.score_pairs(batch, pairs)
    logits = module.network(batch, pairs).tolist()
    assert scores.dtype == torch.float64 and scores.shape == (42, 3)
    for (subject, obj), row, given in zip(pairs.tolist(), logits, scores.tolist(), strict=True):
        total = sum(map(math.exp, row))
        confidence = float(batch.scores[subject]) * float(batch.scores[obj])
        # The column of "no relation" is left out, but its probability isn't shared out.
        assert given == pytest.approx([confidence * math.exp(x) / total for x in row[1:]], rel=1e-6)
        assert sum(given) < confidence


def test_the_official_test_normalisation_divides_by_the_resized_sides() -> None:
    def scores(batch: RelationBatch, normalisation: str) -> Tensor:
        module = scoring(normalisation)
        return module.score_pairs(batch, module.candidate_pairs(batch))

    images = random_images(0, boxes=(4, 3))
    images[0].size, images[1].size = (400, 200), (1000, 250)
    resized = [Image(i.boxes, i.labels, i.relations, i.scores) for i in images]
    resized[0].size, resized[1].size = (1333, 666.5), (1333, 333.25)
    batch = make_batch(*images)
    assert torch.allclose(scores(batch, "resized"), scores(make_batch(*resized), "original"), rtol=1e-6)
    assert not torch.allclose(scores(batch, "resized"), scores(batch, "original"), rtol=1e-3)
    sides = resized_sides(torch.tensor([[400.0, 300.0], [300.0, 400.0], [1600.0, 1200.0]]))
    assert torch.allclose(sides, torch.tensor([[1066.6667, 800.0], [800.0, 1066.6667], [1066.6667, 800.0]]))
    with pytest.raises(ValueError, match="must be original or resized, not 'none'"):
        scoring("none")
