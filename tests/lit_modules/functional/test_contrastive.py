from __future__ import annotations

import math

import pytest
import torch

from lit_modules.functional import contrastive as C
from tests.lit_modules.functional.reference_contrastive import random_pairs, reference_losses, reference_side_losses

MARGINS = (0.2, 0.35, 0.5)


def small_graph(seed: int, num_pairs: int = 60) -> tuple[torch.Tensor, ...]:
    """Few anchors, classes and predicates: groups of every kind, with and without positives and negatives."""
    anchors, classes, predicates = 3 + seed % 7, 1 + seed % 4, 1 + seed % 5
    return random_pairs(seed, num_pairs, anchors, classes, predicates, torch.float64)


def values_and_gradient(losses: tuple, logits: torch.Tensor, weights: tuple = (1.0, 0.5, 0.1)) -> tuple:
    total = sum(weight * loss for weight, loss in zip(weights, losses, strict=True))
    gradient = torch.autograd.grad(total, logits)[0]
    return [loss.item() for loss in losses], gradient


@pytest.mark.parametrize("reduction", ["official", "paper"])
@pytest.mark.parametrize("num_entities", [None, 7])
def test_against_nested_loops(reduction: str, num_entities: int | None) -> None:
    active = torch.zeros(3)
    for seed in range(25):
        logits, *pairs = small_graph(seed)
        logits.requires_grad_()
        arguments = (logits, *pairs, MARGINS, reduction, num_entities)
        slow, slow_gradient = values_and_gradient(reference_losses(*arguments), logits)
        fast, gradient = values_and_gradient(C.graphical_contrastive_losses(*arguments), logits)
        assert fast == pytest.approx(slow, abs=1e-12)
        torch.testing.assert_close(gradient, slow_gradient, rtol=1e-9, atol=1e-12)
        active += torch.tensor(slow) > 0
    assert (active > 10).all()  # each loss took part


@pytest.mark.parametrize("reduction", ["official", "paper"])
def test_each_side_and_loss_alone(reduction: str) -> None:
    for seed in range(10):
        logits, predicates, anchor, _, _, partner_class = small_graph(seed)
        phi, predicted, positive = C.affinity(logits), C.predicted_predicates(logits), predicates > 0
        lists = [t.tolist() for t in (predicates, predicted, anchor, partner_class)]
        expected = [loss.item() for loss in reference_side_losses(phi, *lists, MARGINS, reduction)]
        alone = (
            C.class_agnostic_loss(phi, positive, anchor, MARGINS[0], reduction),
            C.entity_class_aware_loss(phi, positive, anchor, partner_class, MARGINS[1], reduction),
            C.predicate_class_aware_loss(phi, predicates, predicted, anchor, MARGINS[2], reduction),
        )
        together = C.anchored_contrastive_losses(logits, predicates, anchor, partner_class, MARGINS, reduction)
        assert [loss.item() for loss in alone] == pytest.approx(expected, abs=1e-12)
        assert [loss.item() for loss in together] == pytest.approx(expected, abs=1e-12)


def test_official_sides_may_have_their_own_pairs() -> None:
    logits, predicates, subject, obj, subject_class, object_class = small_graph(3)
    first, second = slice(0, 40), slice(20, 60)
    by_subject = C.anchored_contrastive_losses(logits[first], predicates[first], subject[first], object_class[first])
    by_object = C.anchored_contrastive_losses(logits[second], predicates[second], obj[second], subject_class[second])
    everything = C.graphical_contrastive_losses(logits, predicates, subject, obj, subject_class, object_class)
    same = C.anchored_contrastive_losses(logits, predicates, subject, object_class)
    other = C.anchored_contrastive_losses(logits, predicates, obj, subject_class)
    assert [x.item() for x in everything] == pytest.approx([(a + b).item() for a, b in zip(same, other, strict=True)])
    assert by_subject.class_agnostic != same.class_agnostic
    assert by_object.class_agnostic != other.class_agnostic


def test_reductions_by_hand() -> None:
    # Anchor 5: positives of classes 1 and 2, negatives of class 1 only. Anchor 9: a positive, no negative.
    phi = torch.tensor([0.5, 0.6, 0.7, 0.1, 0.3], dtype=torch.float64)
    positive = torch.tensor([True, True, False, False, True])
    anchor, label = torch.tensor([5, 5, 5, 5, 9]), torch.tensor([1, 2, 1, 1, 1])
    agnostic, aware = 0.2 - (0.5 - 0.7), 0.2 - (0.5 - 0.7)
    assert C.class_agnostic_loss(phi, positive, anchor).item() == pytest.approx(agnostic / 2)
    assert C.class_agnostic_loss(phi, positive, anchor, reduction="paper").item() == pytest.approx(agnostic / 2)
    assert C.entity_class_aware_loss(phi, positive, anchor, label).item() == pytest.approx(aware / 2)
    # 1/N over anchors 5 and 9, 1/|C| over classes 1 and 2, although class 2 has no negative.
    assert C.entity_class_aware_loss(phi, positive, anchor, label, reduction="paper").item() == pytest.approx(aware / 4)
    loss = C.entity_class_aware_loss(phi, positive, anchor, label, reduction="paper", num_anchors=10)
    assert loss.item() == pytest.approx(aware / 20)


def test_predicate_groups_by_hand() -> None:
    phi = torch.tensor([0.6, 0.4, 0.5, 0.9], dtype=torch.float64)
    predicates, predicted = torch.tensor([2, 3, 0, 0]), torch.tensor([1, 1, 2, 1])
    anchor = torch.zeros(4, dtype=torch.int64)
    # Predicate 2 meets the pair predicted as 2; 3 meets none; the pair predicted as 1 meets no positive.
    loss = C.predicate_class_aware_loss(phi, predicates, predicted, anchor, margin=0.3)
    assert loss.item() == pytest.approx((0.3 - (0.6 - 0.5)) / 2)


def test_perfect_separation_costs_nothing_and_equal_affinities_cost_the_margin() -> None:
    positive, anchor = torch.tensor([True, True, False]), torch.zeros(3, dtype=torch.int64)
    for margin in (0.2, 1.0):
        perfect = torch.tensor([1.0, 1.0, 0.0], requires_grad=True)
        loss = C.class_agnostic_loss(perfect, positive, anchor, margin, "paper")
        loss.backward()
        assert loss.item() == 0
        equal = torch.full((3,), 0.3)
        assert C.class_agnostic_loss(equal, positive, anchor, margin, "paper").item() == pytest.approx(margin)
        assert C.class_agnostic_loss(equal, positive, anchor, margin, "official").item() == pytest.approx(margin / 2)


def test_gradient_goes_through_the_extreme_pairs_only_even_among_equals() -> None:
    phi = torch.tensor([0.5, 0.4, 0.4, 0.6, 0.6, 0.1], requires_grad=True)
    positive = torch.tensor([True, True, True, False, False, False])
    C.class_agnostic_loss(phi, positive, torch.zeros(6, dtype=torch.int64), reduction="paper").backward()
    assert phi.grad.tolist() == [0, -1, 0, 0, 1, 0]


def test_one_class_is_the_class_agnostic_loss_on_matching_partners() -> None:
    logits, predicates, anchor, *_ = small_graph(5)
    phi, positive = C.affinity(logits), predicates > 0
    generator = torch.Generator().manual_seed(0)
    matches = torch.rand(len(phi), generator=generator) < 0.5
    partner_class = torch.where(matches, 3, -1)
    for reduction in ("official", "paper"):
        aware = C.entity_class_aware_loss(phi, positive, anchor, partner_class, 0.2, reduction, num_anchors=4)
        subset = (phi[matches], positive[matches], anchor[matches])
        assert aware > 0
        torch.testing.assert_close(aware, C.class_agnostic_loss(*subset, 0.2, reduction, num_anchors=4))


@pytest.mark.parametrize("reduction", ["official", "paper"])
@pytest.mark.parametrize("predicates", [[0, 0, 0, 0], [1, 2, 1, 1], [1, 0, 1, 0]])
def test_without_contrast_loss_and_gradient_are_zero(reduction: str, predicates: list[int]) -> None:
    # All negative; all positive; both, but no anchor or class holds the two.
    logits = torch.randn(4, 3, requires_grad=True)
    anchor = torch.tensor([0, 1, 0, 1])
    losses = C.anchored_contrastive_losses(logits, torch.tensor(predicates), anchor, anchor, MARGINS, reduction)
    sum(losses).backward()
    assert [loss.item() for loss in losses] == [0, 0, 0]
    assert (logits.grad == 0).all()


def test_no_pairs_cost_nothing() -> None:
    logits, none = torch.zeros(0, 4, requires_grad=True), torch.zeros(0, dtype=torch.int64)
    for reduction in ("official", "paper"):
        losses = C.graphical_contrastive_losses(logits, none, none, none, none, none, reduction=reduction)
        sum(losses).backward()
        assert [loss.item() for loss in losses] == [0, 0, 0]


def test_partners_without_class_match_nothing() -> None:
    phi, positive = torch.tensor([0.1, 0.9]), torch.tensor([True, False])
    anchor, nobody = torch.zeros(2, dtype=torch.int64), torch.full((2,), -1)
    assert C.entity_class_aware_loss(phi, positive, anchor, nobody).item() == 0
    # ... and don't fall into the group of the anchor before, whose labels are the highest.
    phi, positive = torch.tensor([0.1, 0.9]), torch.tensor([True, False])
    assert C.entity_class_aware_loss(phi, positive, torch.tensor([0, 1]), torch.tensor([2**31 - 1, -1])).item() == 0


def test_anchor_numbers_and_pair_order_do_not_matter() -> None:
    logits, predicates, subject, obj, *classes = small_graph(11)
    expected = C.graphical_contrastive_losses(logits, predicates, subject, obj, *classes)
    order = torch.randperm(len(logits), generator=torch.Generator().manual_seed(0))
    renamed = ((subject * 7919 + 100_003)[order], (2**31 - 1 - obj)[order])
    changed = C.graphical_contrastive_losses(
        logits[order], predicates[order], *renamed, *(labels[order] for labels in classes)
    )
    torch.testing.assert_close(tuple(changed), tuple(expected))


def test_affinity() -> None:
    logits = torch.randn(20, 6, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(C.affinity(logits), 1 - logits.softmax(dim=1)[:, 0])
    assert torch.autograd.gradcheck(C.affinity, logits)
    small = C.affinity(torch.tensor([[40.0, 0.0, 0.0]]))  # 1 - softmax is 0 in float32
    assert small.item() == pytest.approx(2 * math.exp(-40), rel=1e-5)
    extreme = torch.tensor([[1e4, -1e4], [-1e4, 1e4]], requires_grad=True)
    C.affinity(extreme).sum().backward()
    assert C.affinity(extreme).tolist() == [0, 1]
    assert torch.isfinite(extreme.grad).all()


@pytest.mark.parametrize("reduction", ["official", "paper"])
def test_gradient_against_finite_differences(reduction: str) -> None:
    for seed in (2, 6):
        logits, *pairs = small_graph(seed, num_pairs=24)
        logits.requires_grad_()
        function = lambda x, pairs=pairs: C.graphical_contrastive_losses(x, *pairs, MARGINS, reduction)  # noqa: E731
        assert torch.autograd.gradcheck(function, logits)


def test_half_precision_is_computed_in_float32() -> None:
    logits, *pairs = random_pairs(0, 200, 16, 5, 9)
    low = logits.bfloat16().requires_grad_()
    losses = C.graphical_contrastive_losses(low, *pairs)
    expected = C.graphical_contrastive_losses(low.detach().float(), *pairs)
    assert all(loss.dtype == torch.float32 for loss in losses)
    assert all(torch.equal(loss, want) for loss, want in zip(losses, expected, strict=True))
    sum(losses).backward()
    assert torch.isfinite(low.grad).all()
    assert low.grad.abs().sum() > 0


def test_a_nan_reaches_the_loss() -> None:
    logits, *pairs = small_graph(4)
    logits[pairs[0] == 0] = math.nan
    assert C.graphical_contrastive_losses(logits, *pairs).class_agnostic.isnan()


def test_wrong_arguments_are_named() -> None:
    logits, predicates, anchor, _, _, labels = small_graph(1)
    phi, positive = C.affinity(logits), predicates > 0
    with pytest.raises(ValueError, match=r"logits must have shape \[N, P \+ 1\]"):
        C.affinity(logits[:, :1])
    with pytest.raises(ValueError, match=r"anchor must be torch.int64 of shape \[60\], got torch.int64 of \[59\]"):
        C.entity_class_aware_loss(phi, positive, anchor[1:], labels)
    with pytest.raises(ValueError, match=r"positive must be torch\.bool"):
        C.class_agnostic_loss(phi, predicates, anchor)
    with pytest.raises(ValueError, match=r"labels of the pairs must be torch\.int64"):
        C.entity_class_aware_loss(phi, positive, anchor, labels.double())
    with pytest.raises(ValueError, match=r"predicted must have shape \[60\]"):
        C.predicate_class_aware_loss(phi, predicates, predicates[1:], anchor)
    with pytest.raises(ValueError, match="reduction must be official or paper, got 'mean'"):
        C.class_agnostic_loss(phi, positive, anchor, reduction="mean")
    with pytest.raises(ValueError, match=r"affinities must be floats of shape \[N\]"):
        C.class_agnostic_loss(logits, positive, anchor)


@pytest.mark.parametrize("reduction", ["official", "paper"])
def test_images_of_a_batch_are_reduced_one_by_one(reduction: str) -> None:
    parts = [random_pairs(seed, 20 + 10 * seed, 4, 3, 5, torch.float64) for seed in range(4)]
    anchors = [anchor + 100 * n for n, (_, _, anchor, *_) in enumerate(parts)]
    image = torch.cat([torch.full_like(anchor, n) for n, anchor in enumerate(anchors)])
    logits, predicates, classes = (torch.cat([p[i] for p in parts]) for i in (0, 1, 5))
    order = torch.randperm(len(image), generator=torch.Generator().manual_seed(0))
    batch = [t[order] for t in (logits, predicates, torch.cat(anchors), classes)]
    found = C.anchored_contrastive_losses(*batch, MARGINS, reduction, image=image[order], num_images=5)
    alone = [C.anchored_contrastive_losses(p[0], p[1], p[2], p[5], MARGINS, reduction) for p in parts]
    expected = [sum(losses).item() / 5 for losses in zip(*alone, strict=True)]  # the fifth image has no pairs
    assert [loss.item() for loss in found] == pytest.approx(expected, abs=1e-12)
    assert min(expected) > 0
