"""Annotated and predicted triplets of many images as long tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_modules.scene_graph import PairPredictions, SceneGraph
from lit_modules.metrics.vrd_matching import shortlist


class TripletRows(NamedTuple):
    """Triplets of many images, one a row.

    Attributes:
        image: int64 `[R]`, ascending.
        triplets: int64 `[R, 3]`, 0-based (subject category, predicate, object category).
        subject_xyxy: float `[R, 4]`, pixels.
        object_xyxy: float `[R, 4]`, pixels.
    """

    image: NDArray[np.int64]
    triplets: NDArray[np.int64]
    subject_xyxy: NDArray[np.floating]
    object_xyxy: NDArray[np.floating]


def check_record(prediction: PairPredictions, image: str) -> None:
    """Raise ValueError, naming the image, where a record breaks the contract of `PairPredictions`."""
    scores = prediction.scores
    boxes = (prediction.subject_boxes_xyxy.shape, prediction.object_boxes_xyxy.shape)
    shapes = (*boxes, prediction.triplets.shape, scores.shape)
    pairs, slots = scores.shape if scores.ndim == 2 else (-1, -1)
    if shapes != ((pairs, 4), (pairs, 4), (pairs, slots, 3), (pairs, slots)):
        raise ValueError(f"{image}: expected shapes [P, 4], [P, 4], [P, K, 3] and [P, K], got {shapes}")
    # NaN compares false, so one pass over the columns finds both faults, and only column 0 of a sole slot is left.
    if not ((scores[:, 1:] <= scores[:, :-1]).all() and (scores[:, :1] == scores[:, :1]).all()):
        if np.isnan(scores).any():
            raise ValueError(f"{image}: {np.isnan(scores).sum()} scores are NaN")
        pair = int(np.flatnonzero((scores[:, 1:] > scores[:, :-1]).any(1))[0])
        raise ValueError(f"{image}: scores of pair {pair} aren't descending; sort the slots of each pair best first")


def annotated_rows(graphs: Sequence[SceneGraph]) -> TripletRows:
    """Concatenate the annotated relations of all images."""
    if not graphs:
        boxes = np.empty((0, 4))
        return TripletRows(np.empty(0, np.int64), np.empty((0, 3), np.int64), boxes, boxes)
    relations = np.concatenate([g.relations for g in graphs])
    image = np.repeat(np.arange(len(graphs)), [len(g.relations) for g in graphs])
    offset = np.cumsum([0, *(len(g.labels) for g in graphs)])[image]
    labels, boxes = (np.concatenate([getattr(g, name) for g in graphs]) for name in ("labels", "boxes_xyxy"))
    subject, obj = relations[:, 0] + offset, relations[:, 2] + offset
    triplets = np.stack([labels[subject], relations[:, 1], labels[obj]], axis=1)
    return TripletRows(image, triplets, boxes[subject], boxes[obj])


def ranked_rows(
    predictions: Sequence[PairPredictions], graphs: Sequence[SceneGraph], ks: Sequence[int], top: int
) -> tuple[TripletRows, NDArray[np.int64], NDArray[np.float64]]:
    """Concatenate the triplets that are among the `top` best of their image for some k.

    Args:
        predictions: One record an image.
        graphs: Their annotations; only their names are read, for messages.
        ks: Triplets kept per ordered pair.
        top: Length of the ranking of an image.

    Returns:
        The R triplets, image by image, best first; their ranks for every k, int64 `[len(ks), R]`, from 0, `UNMATCHED`
        where the triplet isn't kept; and their scores, float64 `[R]`.

    Raises:
        ValueError: Boxes aren't finite, or labels are negative; the message names the image.
    """
    empty = PairPredictions(
        np.empty((0, 4), np.float32), np.empty((0, 4), np.float32), np.empty((0, 1, 3), np.int64), np.empty((0, 1))
    )
    records = [*predictions, empty]  # so that nothing below is special about no images at all
    flats, ranks = zip(*(shortlist(p.scores, ks, top) for p in records), strict=True)
    image = np.repeat(np.arange(len(records)), [len(flat) for flat in flats])
    pairs = [flat // max(p.scores.shape[1], 1) for p, flat in zip(records, flats, strict=True)]
    subject = _taken([p.subject_boxes_xyxy for p in records], pairs)
    obj = _taken([p.object_boxes_xyxy for p in records], pairs)
    triplets = _taken([p.triplets.reshape(-1, 3) for p in records], flats)
    rows = TripletRows(image, triplets, subject, obj)
    for fault, bad in (
        ("non-finite boxes", ~np.isfinite(rows.subject_xyxy + rows.object_xyxy).all(1)),
        ("negative labels", (rows.triplets < 0).any(1)),
    ):
        if bad.any():
            raise ValueError(f"{graphs[rows.image[bad.argmax()]].image}: predictions have {fault}")
    return rows, np.concatenate(ranks, axis=1), _taken([p.scores.reshape(-1) for p in records], flats)


def _taken(parts: Sequence[NDArray[Any]], rows: Sequence[NDArray[np.int64]]) -> NDArray[Any]:
    """Join some rows of each part; an image has far more pairs than are ranked, so that they are not joined first."""
    return np.concatenate([part.take(at, axis=0) for part, at in zip(parts, rows, strict=True)])
