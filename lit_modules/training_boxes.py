"""Training boxes of relation models: annotated ones, and a detector's proposals that fit them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from data_modules.scene_graph import RelationBatch
from lit_modules.functional.boxes import box_iou

FOREGROUND_OVERLAP = 0.5


def add_foreground(batch: RelationBatch, proposals: Sequence[Tensor], max_boxes: int) -> tuple[RelationBatch, Tensor]:
    """Add the proposals that overlap an annotated box by at least 0.5 to a batch of annotated boxes.

    A proposal gets the category of the box that it overlaps most. Where there are too many, random ones are kept, drawn
    from the global random state.

    Args:
        batch: Annotated boxes and their relations.
        proposals: `[n, 4]` of each image, annotated pixels.
        max_boxes: Boxes of an image, annotated ones included; these are kept in any case.

    Returns:
        The batch with both, an image's annotated boxes before its proposals, and bool `[N]`: which are annotated.

    Raises:
        ValueError: There isn't one list of proposals for each image.
    """
    if len(proposals) != len(batch.graphs):
        raise ValueError(f"expected proposals of {len(batch.graphs)} images, got {len(proposals)}")
    counts = torch.bincount(batch.image_index, minlength=len(proposals)).tolist()
    annotated = zip(batch.boxes_xyxy.split(counts), batch.labels.split(counts), batch.scores.split(counts), strict=True)
    boxes, labels, scores, is_annotated, added = [], [], [], [], []
    for (own, own_labels, own_scores), given in zip(annotated, proposals, strict=True):
        chosen, nearest = _foreground(own, given, max_boxes - len(own))
        boxes += [own, chosen]
        labels += [own_labels, own_labels[nearest]]
        scores += [own_scores, own_scores.new_ones(len(chosen))]
        is_annotated += [own.new_ones(len(own)), own.new_zeros(len(chosen))]
        added.append(len(chosen))
    is_own = torch.cat(is_annotated).bool()
    place = torch.nonzero(is_own).flatten()  # where the boxes of the old batch stand in the new one
    subject, predicate, obj = batch.relations.unbind(dim=1)
    totals = torch.tensor([c + a for c, a in zip(counts, added, strict=True)], device=place.device)
    extended = replace(
        batch,
        boxes_xyxy=torch.cat(boxes),
        labels=torch.cat(labels),
        scores=torch.cat(scores),
        image_index=torch.repeat_interleave(torch.arange(len(proposals), device=place.device), totals),
        relations=torch.stack([place[subject], predicate, place[obj]], dim=1),
    )
    return extended, is_own


def propose_relations(batch: RelationBatch, proposals: Sequence[Tensor], per_box: int) -> RelationBatch:
    """Replace annotated boxes by proposals that overlap them by at least 0.5, up to `per_box` of each (vrd_tensor).

    A relation whose subject has m and whose object n proposals becomes max(m, n) relations: of the first with the
    first, the second with the second and so on, beginning again where one list ends. A box without proposals stays
    itself. Which proposals are taken is drawn from the global random state.

    Args:
        batch: Annotated boxes and their relations.
        proposals: `[n, 4]` of each image, annotated pixels.
        per_box: Proposals of a box, at most.

    Returns:
        A batch of proposals and of the annotated boxes that have none.
    """
    counts = torch.bincount(batch.image_index, minlength=len(proposals)).tolist()
    boxes: list[Tensor] = []
    first = 0
    of_box: list[list[int]] = []  # where the stand-ins of each annotated box are
    owner: list[int] = []
    for own, given in zip(batch.boxes_xyxy.split(counts), proposals, strict=True):
        chosen, nearest = _foreground(own, given, len(given))
        for number in range(len(own)):
            mine = torch.nonzero(nearest == number).flatten()
            mine = mine[torch.randperm(len(mine), device=mine.device)[:per_box]]
            stand_ins = chosen[mine] if len(mine) else own[[number]]
            of_box.append(list(range(len(owner), len(owner) + len(stand_ins))))
            owner += [first + number] * len(stand_ins)
            boxes.append(stand_ins)
        first += len(own)
    relations = []
    for subject, predicate, obj in batch.relations.tolist():
        many, others = of_box[subject], of_box[obj]
        count = max(len(many), len(others))
        relations += [[many[i % len(many)], predicate, others[i % len(others)]] for i in range(count)]
    index = torch.tensor(owner, dtype=torch.int64, device=batch.labels.device)
    return replace(
        batch,
        boxes_xyxy=torch.cat(boxes) if boxes else batch.boxes_xyxy,
        labels=batch.labels[index],
        scores=batch.scores[index],
        image_index=batch.image_index[index],
        relations=batch.relations.new_tensor(relations).reshape(-1, 3),
    )


def _foreground(annotated: Tensor, proposals: Tensor, room: int) -> tuple[Tensor, Tensor]:
    """Return the kept proposals of one image, and which annotated box each overlaps most."""
    if not len(annotated) or not len(proposals) or room <= 0:
        return proposals[:0].to(annotated.dtype), annotated.new_zeros(0, dtype=torch.int64)
    overlap, nearest = box_iou(proposals.to(annotated.dtype), annotated).max(dim=1)
    fit = torch.nonzero(overlap >= FOREGROUND_OVERLAP).flatten()
    fit = fit[torch.randperm(len(fit), device=fit.device)[:room]].sort().values
    return proposals[fit].to(annotated.dtype), nearest[fit]
