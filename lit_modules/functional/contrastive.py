"""Graphical contrastive losses of RelDN: margins between related and unrelated partners of the same entity.

An *anchor* is one entity of the sampled pairs (one annotated box or region of interest), a *side* is the role it has in
them. On each side an anchor's positives are its pairs with a relation, its negatives those without. Pairs are grouped
by a label: all alike (L1), the partner's class (L2), the predicate (L3). For each group that holds a positive and a
negative there is one term

    max(0, margin - (min over positives of Phi - max over negatives of Phi))

Reductions: "official" is the released code's plain mean over a side's terms and one more term that is 0, that is,
their sum / (terms + 1). "paper" is the printed (1 / N) sum over anchors of (1 / |C|) sum over groups, where C are the
labels of all the anchor's positives (a group without negatives counts in |C| and adds 0) and N is the number of anchors
that have a positive on this side, unless the caller names another.

The terms of all the pairs passed are pooled, unless `anchored_contrastive_losses` is told their images: then each
image is reduced by itself and the images are averaged, as the released code does with one image per device. In a batch
of images each image needs its own anchor numbers.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Reduction = Literal["official", "paper"]


class _Images(NamedTuple):
    """The image of each pair, int64 `[N]`, and the number of images."""

    of_pair: Tensor
    number: int


class ContrastiveLosses(NamedTuple):
    """The three unweighted losses, scalars of the same dtype (L1, L2 and L3 of the paper)."""

    class_agnostic: Tensor
    entity_class_aware: Tensor
    predicate_class_aware: Tensor


def affinity(logits: Tensor) -> Tensor:
    """Phi, the probability that a pair is related at all: 1 - softmax(logits)_0 (equation 1).

    Computed as sigmoid(lse of the predicates' logits - logit of no relation), which keeps small values exact.

    Args:
        logits: `[N, P + 1]`, column 0 stands for no relation.

    Returns:
        `[N]`, fraction in [0, 1]; float32 for half precision logits.

    Raises:
        ValueError: If the logits aren't `[N, P + 1]` with P >= 1.
    """
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ValueError(f"logits must have shape [N, P + 1] with P >= 1, got {list(logits.shape)}")
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    return (logits[:, 1:].logsumexp(dim=1) - logits[:, 0]).sigmoid()


def class_agnostic_loss(
    affinities: Tensor,
    positive: Tensor,
    anchor: Tensor,
    margin: float = 0.2,
    reduction: Reduction = "official",
    num_anchors: int | None = None,
) -> Tensor:
    """One side of L1: any related partner against any unrelated one (equations 2 and 3).

    Args:
        affinities: `[N]`, see `affinity`. Gradient flows through the least positive and the greatest negative of each
            group; among equal ones, through the first positive and the last negative.
        positive: bool `[N]`, whether the pair is related.
        anchor: int64 `[N]`, identity of the entity on this side, below 2^31.
        margin: alpha_1, at most 1: the dummy term of the official reduction is 0 only then.
        reduction: See above.
        num_anchors: N of the paper's reduction; None counts the anchors with a positive.

    Returns:
        Scalar; exactly 0, with zero gradient, if no group holds a positive and a negative.

    Raises:
        ValueError: If shapes or dtypes don't fit, or the reduction is unknown.
    """
    anyone = torch.zeros_like(anchor)
    return _grouped_hinge(affinities, positive, [anchor], [anyone], [margin], reduction, num_anchors)[0]


def entity_class_aware_loss(
    affinities: Tensor,
    positive: Tensor,
    anchor: Tensor,
    partner_class: Tensor,
    margin: float = 0.2,
    reduction: Reduction = "official",
    num_anchors: int | None = None,
) -> Tensor:
    """One side of L2: related against unrelated partners of the same class (equations 4 and 5).

    Args:
        affinities: `[N]`, see `affinity`; gradient as in `class_agnostic_loss`.
        positive: bool `[N]`, whether the pair is related.
        anchor: int64 `[N]`, identity of the entity on this side.
        partner_class: int64 `[N]`, class of the entity on the other side; -1 for one that overlaps no annotated box
            enough, which is left out.
        margin: alpha_2.
        reduction: See above.
        num_anchors: N of the paper's reduction; None counts the anchors with a positive.

    Returns:
        Scalar; exactly 0, with zero gradient, if no group holds a positive and a negative.

    Raises:
        ValueError: If shapes or dtypes don't fit, or the reduction is unknown.
    """
    return _grouped_hinge(affinities, positive, [anchor], [partner_class], [margin], reduction, num_anchors)[0]


def predicate_class_aware_loss(
    affinities: Tensor,
    predicates: Tensor,
    predicted: Tensor,
    anchor: Tensor,
    margin: float = 0.2,
    reduction: Reduction = "official",
    num_anchors: int | None = None,
) -> Tensor:
    """One side of L3: pairs with a predicate against unrelated ones that the model gives it (equations 6 and 7).

    Args:
        affinities: `[N]`, see `affinity`; gradient as in `class_agnostic_loss`.
        predicates: int64 `[N]`, annotated predicate 1 to P; 0 for no relation.
        predicted: int64 `[N]`, the predicate 1 to P with the highest logit, see `predicted_predicates`.
        anchor: int64 `[N]`, identity of the entity on this side.
        margin: alpha_3.
        reduction: See above.
        num_anchors: N of the paper's reduction; None counts the anchors with a positive.

    Returns:
        Scalar; exactly 0, with zero gradient, if no group holds a positive and a negative.

    Raises:
        ValueError: If shapes or dtypes don't fit, or the reduction is unknown.
    """
    labels = _predicate_labels(predicates, predicted)
    return _grouped_hinge(affinities, predicates > 0, [anchor], [labels], [margin], reduction, num_anchors)[0]


def predicted_predicates(logits: Tensor) -> Tensor:
    """The real predicate with the highest logit of each pair.

    Args:
        logits: `[N, P + 1]`, column 0 stands for no relation and isn't looked at.

    Returns:
        int64 `[N]`, 1 to P.
    """
    return logits[:, 1:].argmax(dim=1) + 1


def anchored_contrastive_losses(
    logits: Tensor,
    predicates: Tensor,
    anchor: Tensor,
    partner_class: Tensor,
    margins: tuple[float, float, float] = (0.2, 0.2, 0.2),
    reduction: Reduction = "official",
    num_anchors: int | None = None,
    image: Tensor | None = None,
    num_images: int = 1,
) -> ContrastiveLosses:
    """All three losses of one side, for callers that sample each side's pairs on their own, as the released code does.

    Args:
        logits: `[N, P + 1]`, fused logits of the pairs; column 0 stands for no relation.
        predicates: int64 `[N]`, annotated predicate 1 to P; 0 for no relation.
        anchor: int64 `[N]`, identity of the entity on this side.
        partner_class: int64 `[N]`, class of the entity on the other side, -1 for none.
        margins: alpha_1, alpha_2, alpha_3.
        reduction: See above.
        num_anchors: N of the paper's reduction; None counts the anchors with a positive.
        image: int64 `[N]`, the image of each pair, to reduce image by image; None pools all pairs.
        num_images: Images to average over; one without terms counts as 0.

    Returns:
        The unweighted losses, float32 for half precision logits.

    Raises:
        ValueError: If shapes or dtypes don't fit, or the reduction is unknown.
    """
    sides = [(anchor, partner_class)]
    images = None if image is None else _Images(image, num_images)
    return ContrastiveLosses(*_stacked_losses(logits, predicates, sides, margins, reduction, num_anchors, images)[0])


def graphical_contrastive_losses(
    logits: Tensor,
    predicates: Tensor,
    subject_anchor: Tensor,
    object_anchor: Tensor,
    subject_class: Tensor,
    object_class: Tensor,
    margins: tuple[float, float, float] = (0.2, 0.2, 0.2),
    reduction: Reduction = "official",
    num_entities: int | None = None,
) -> ContrastiveLosses:
    """The three losses, subject-anchored plus object-anchored, of pairs that both sides share (equations 3, 5 and 7).

    Args:
        logits: `[N, P + 1]`, fused logits of the pairs; column 0 stands for no relation.
        predicates: int64 `[N]`, annotated predicate 1 to P; 0 for no relation.
        subject_anchor: int64 `[N]`, identity of each pair's subject.
        object_anchor: int64 `[N]`, identity of each pair's object.
        subject_class: int64 `[N]`, class of the subject, -1 for one that overlaps no annotated box enough.
        object_class: int64 `[N]`, class of the object, likewise.
        margins: alpha_1, alpha_2, alpha_3.
        reduction: See above.
        num_entities: N of the paper's reduction, for both sides; None counts each side's anchors with a positive.

    Returns:
        The unweighted losses, float32 for half precision logits.

    Raises:
        ValueError: If shapes or dtypes don't fit, or the reduction is unknown.
    """
    sides = [(subject_anchor, object_class), (object_anchor, subject_class)]
    return ContrastiveLosses(*_stacked_losses(logits, predicates, sides, margins, reduction, num_entities).sum(dim=0))


def _stacked_losses(
    logits: Tensor,
    predicates: Tensor,
    sides: list[tuple[Tensor, Tensor]],
    margins: tuple[float, float, float],
    reduction: Reduction,
    num_anchors: int | None,
    images: _Images | None = None,
) -> Tensor:
    """`[sides, 3]`: the losses of several (anchor, partner class) sides, reduced together because that is faster."""
    phi, positive = affinity(logits), predicates > 0
    anyone, relation = torch.zeros_like(predicates), _predicate_labels(predicates, predicted_predicates(logits))
    anchors = [anchor for anchor, _ in sides for _ in range(3)]
    labels = [label for _, partner_class in sides for label in (anyone, partner_class, relation)]
    ways = [*margins] * len(sides)
    return _grouped_hinge(phi, positive, anchors, labels, ways, reduction, num_anchors, images).view(-1, 3)


def _predicate_labels(predicates: Tensor, predicted: Tensor) -> Tensor:
    """The predicate that groups a pair in L3: the annotated one, or for unrelated pairs the predicted one."""
    if predicted.shape != predicates.shape:
        raise ValueError(f"predicted must have shape {list(predicates.shape)}, got {list(predicted.shape)}")
    return torch.where(predicates > 0, predicates, predicted)


def _grouped_hinge(
    affinities: Tensor,
    positive: Tensor,
    anchors: list[Tensor],
    labels: list[Tensor],
    margins: list[float],
    reduction: Reduction,
    num_anchors: int | None,
    images: _Images | None = None,
) -> Tensor:
    """The reduced hinge terms `[T]` of T ways to group the pairs by equal (anchor, label >= 0).

    Groups get numbers below N, so that every tensor has N slots: no size depends on values, and a GPU needn't wait.
    """
    _check_pairs(affinities, positive, anchors, labels)
    if reduction not in ("official", "paper"):
        raise ValueError(f"reduction must be official or paper, got {reduction!r}")
    ways, size = len(anchors), len(affinities)
    if not size:
        return affinities.sum().expand(ways)
    anchor, label = torch.stack(anchors), torch.stack(labels)  # [T, N]
    groups = _dense_ids(anchor * 2**32 + label)
    # Ranks instead of affinities: each pair has its own, so that the extremes are single pairs even among equals.
    order = affinities.detach().argsort(stable=True)
    rank = torch.empty_like(order).scatter(0, order, torch.arange(size, device=order.device))
    least = torch.full_like(groups, size).scatter_reduce(1, groups, rank.where(positive & (label >= 0), size), "amin")
    greatest = torch.full_like(groups, -1).scatter_reduce(1, groups, rank.where(~positive & (label >= 0), -1), "amax")
    valid = (least < size) & (greatest >= 0)
    gaps = affinities[order[least.clamp(max=size - 1)]] - affinities[order[greatest.clamp(min=0)]]
    # Filled, not copied from the host: such a copy would make a GPU wait.
    margin = torch.stack([affinities.new_full((1,), value) for value in margins])
    terms = (margin - gaps).clamp(min=0).where(valid, 0)
    image, num_images = (torch.zeros_like(anchor[0]), 1) if images is None else images
    image = image.expand(ways, size)

    def per_image(values: Tensor, images_of_values: Tensor) -> Tensor:  # [T, images]
        return terms.new_zeros(ways, num_images).scatter_add(1, images_of_values, values.to(terms.dtype))

    image_of_group = torch.zeros_like(groups).scatter(1, groups, image)
    if reduction == "official":
        return (per_image(terms, image_of_group) / (per_image(valid, image_of_group) + 1)).mean(dim=1)
    anchor_ids = _dense_ids(anchor)
    # How many labels an anchor's positives have, |C|: one for each of its groups with a positive.
    anchor_of_group = torch.zeros_like(groups).scatter(1, groups, anchor_ids)
    num_labels = torch.zeros_like(groups).scatter_add(1, anchor_of_group, (least < size).to(groups.dtype))
    means = per_image(terms / num_labels.gather(1, anchor_of_group).clamp(min=1), image_of_group)
    if num_anchors is not None:
        return means.mean(dim=1) / max(num_anchors, 1)
    with_positive = torch.zeros_like(groups).scatter_add(1, anchor_ids, positive.to(groups.dtype).expand(ways, size))
    image_of_anchor = torch.zeros_like(groups).scatter(1, anchor_ids, image)
    return (means / per_image(with_positive > 0, image_of_anchor).clamp(min=1)).mean(dim=1)


def _dense_ids(keys: Tensor) -> Tensor:
    """int64 `[T, N]`: the rank of each key among the different keys of its row."""
    ordered, order = keys.sort(dim=1)
    ranks = (ordered.diff(dim=1, prepend=ordered[:, :1]) != 0).cumsum(dim=1)
    return torch.empty_like(ranks).scatter(1, order, ranks)


def _check_pairs(affinities: Tensor, positive: Tensor, anchors: list[Tensor], labels: list[Tensor]) -> None:
    if affinities.ndim != 1 or not affinities.is_floating_point():
        raise ValueError(f"affinities must be floats of shape [N], got {list(affinities.shape)} of {affinities.dtype}")
    named = [("positive", positive, torch.bool), *(("anchor", anchor, torch.int64) for anchor in anchors)]
    for name, tensor, dtype in [*named, *(("labels of the pairs", label, torch.int64) for label in labels)]:
        if tensor.shape != affinities.shape or tensor.dtype != dtype:
            expected, got = f"{dtype} of shape {list(affinities.shape)}", f"{tensor.dtype} of {list(tensor.shape)}"
            raise ValueError(f"{name} must be {expected}, got {got}")
