"""Training pairs of RelDN: candidates, their labels by overlap with the annotated relations, and quotas."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from data_modules.scene_graph import RelationBatch
from lit_modules.functional.boxes import all_pairs, box_iou

POSITIVE_OVERLAP = 0.5


class LabelledPairs(NamedTuple):
    """Pairs of boxes and what relates them.

    Attributes:
        pairs: int64 `[P, 2]`, (subject box, object box) of the batch.
        predicates: int64 `[P]`, 1 to num_predicates, or 0 for no relation.
        image: int64 `[P]`, ascending, image of each pair.
    """

    pairs: Tensor
    predicates: Tensor
    image: Tensor

    def take(self, index: Tensor) -> LabelledPairs:
        """Return the pairs at int64 `[Q]` positions."""
        return LabelledPairs(*(field[index] for field in self))


def label_pairs(batch: RelationBatch, candidates: str, is_annotated: Tensor | None = None) -> LabelledPairs:
    """Return all candidate pairs of annotated and proposed boxes with their labels.

    Every annotated relation is a candidate with its own predicate, so that a pair with two predicates occurs twice.
    The others are pairs whose boxes overlap (`overlapping`, as the official code) or all (`all`), and each pair of a
    box that is some relation's subject or a proposal with one that is some relation's object or a proposal, unless
    both are proposals. They take the predicate of the relation with the greatest min(IoU of subjects, IoU of objects)
    if that is at least 0.5, whatever the categories, and count as unrelated otherwise.

    Args:
        batch: Boxes and the relations of the annotated ones.
        candidates: `overlapping` or `all`.
        is_annotated: bool `[N]`, False for proposals; None if there are none.

    Raises:
        ValueError: `candidates` is neither.
    """
    if candidates not in ("all", "overlapping"):
        raise ValueError(f"sampling.pairs must be all or overlapping, not {candidates!r}")
    relations = batch.relations
    overlap = box_iou(batch.boxes_xyxy, batch.boxes_xyxy)
    pairs = all_pairs(batch.image_index)
    if candidates == "overlapping":
        roles = torch.zeros(2, len(batch.labels), dtype=torch.bool, device=relations.device)
        subjects = roles[0].scatter(0, relations[:, 0], True)
        objects = roles[1].scatter(0, relations[:, 2], True)
        proposed = roles[0] if is_annotated is None else ~is_annotated
        s, o = pairs.unbind(dim=1)
        given = (subjects[s] & (objects[o] | proposed[o])) | (proposed[s] & objects[o])
        pairs = pairs[given | (overlap[s, o] > 0)]
    boxes = len(batch.labels)
    pairs = pairs[~torch.isin(pairs[:, 0] * boxes + pairs[:, 1], relations[:, 0] * boxes + relations[:, 2])]
    image = batch.image_index[pairs[:, 0]]
    predicates = torch.zeros_like(image)
    if len(relations) and len(pairs):
        both = torch.minimum(
            overlap[pairs[:, 0, None], relations[None, :, 0]], overlap[pairs[:, 1, None], relations[None, :, 2]]
        )
        both = both.where(image[:, None] == batch.image_index[relations[None, :, 0]], both.new_tensor(-1.0))
        best, which = both.max(dim=1)
        predicates = torch.where(best >= POSITIVE_OVERLAP, relations[which, 1] + 1, 0)
    pairs = torch.cat([relations[:, [0, 2]], pairs])
    predicates = torch.cat([relations[:, 1] + 1, predicates])
    image = torch.cat([batch.image_index[relations[:, 0]], image])
    return LabelledPairs(pairs, predicates, image).take(torch.sort(image, stable=True).indices)


def sample_pairs(labelled: LabelledPairs, max_pairs: int, max_positive: int, max_negative: int | None = None) -> Tensor:
    """Return int64 `[Q]`, ascending random positions of at most `max_pairs` pairs of each image.

    At most `max_positive` of them are related. Unrelated pairs fill what these leave of the quota, or are at most
    `max_negative`. Draws from the global random state only.
    """
    order = torch.randperm(len(labelled.image), device=labelled.image.device)
    related = labelled.predicates[order] > 0
    image = labelled.image[order]
    kept_related = related & (_rank_within(image, related) < max_positive)
    images = int(image.max()) + 1 if len(image) else 0
    room = max_pairs - image.new_zeros(images).scatter_add(0, image, kept_related.to(image.dtype))
    room = room if max_negative is None else room.clamp(max=max_negative)
    kept_other = ~related & (_rank_within(image, ~related) < room[image])
    return order[kept_related | kept_other].sort().values


def _rank_within(image: Tensor, chosen: Tensor) -> Tensor:
    """Return int64 `[N]`: how many chosen pairs of the same image stand before each pair."""
    order = torch.sort(image, stable=True).indices
    counts = chosen[order].to(torch.int64).cumsum(0) - chosen[order].to(torch.int64)
    first = torch.ones_like(order, dtype=torch.bool)
    first[1:] = image[order][1:] != image[order][:-1]
    start = torch.where(first, counts, 0).cummax(0).values  # counts never fall, so the latest start is the greatest
    return torch.empty_like(order).scatter(0, order, counts - start)
