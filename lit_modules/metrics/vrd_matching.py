"""Ranking of triplets and their matching with annotated relations, as pure array functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from data_modules.scene_graph import PairPredictions

Rule = Literal["relationship", "phrase"]

IOU_THRESHOLD = 0.5
UNMATCHED = int(np.iinfo(np.int64).max)


def shortlist(scores: NDArray[np.float64], ks: Sequence[int], top: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rank the triplets of one image for several k at once, with one sort.

    Args:
        scores: `[P, K]`, descending along K, -inf in empty slots.
        ks: Triplets kept per pair; those above K mean K.
        top: Entries wanted for each k.

    Returns:
        Flat indices into `[P, K]` of the E triplets that are among the `top` best for some k, int64 `[E]`, best first,
        ties in flat (pair-major) order; and their ranks for every k, int64 `[len(ks), E]`, from 0, `UNMATCHED` where
        the triplet isn't kept. Empty slots are never ranked.
    """
    pairs, slots = scores.shape
    if not scores.size:
        return np.empty(0, np.int64), np.empty((len(ks), 0), np.int64)
    widths = [min(k, slots) for k in ks]
    width = max(widths)
    if len(ks) == 1:
        return _shortlist_of_one(scores, width, top)
    # A pool no larger than `top` is wanted whole; of the others, only what reaches the top-th best of some part of the
    # smallest. A few times `top` slots, the first of every pair, bound that well and are quick to search.
    whole = max((w for w in widths if w * pairs <= top), default=0)
    if whole == width:
        chosen = scores[:, :width] > -np.inf
    else:
        part = -scores[:, : min(-(-4 * top // pairs), min(w for w in widths if w > whole))].ravel()
        chosen = scores[:, :width] >= max(-np.partition(part, top - 1)[top - 1], np.finfo(np.float64).min)
        if whole:
            chosen[:, :whole] |= scores[:, :whole] > -np.inf
    pair, slot = np.divmod(np.flatnonzero(chosen), width)
    order = np.argsort(-scores[pair, slot], kind="stable")
    pair, slot = pair[order], slot[order]
    kept = slot < np.asarray(ks)[:, None]
    ranks = np.where(kept, np.cumsum(kept, axis=1) - 1, UNMATCHED)
    used = ranks.min(0) < top
    return (pair * slots + slot)[used], ranks[:, used]


def _shortlist_of_one(scores: NDArray[np.float64], width: int, top: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rank the triplets of one image for one k, in half the time that the general case takes."""
    pool = scores[:, :width].ravel()
    least = np.finfo(np.float64).min
    if pool.size > top:
        # As below: what reaches the top-th best of the first slots of every pair.
        part = scores[:, : min(-(-4 * top // len(scores)), width)].ravel()
        least = max(np.partition(part, part.size - top)[part.size - top], least)
    flat = np.flatnonzero(pool >= least)
    flat = flat[(-pool[flat]).argsort(kind="stable")[:top]]
    if width < scores.shape[1]:
        flat = flat // width * scores.shape[1] + flat % width
    return flat, np.arange(len(flat))[None]


def rank_triplets(prediction: PairPredictions, k: int, top: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rank the triplets of one image: the k best of each pair, pooled, the `top` best of the pool.

    Args:
        prediction: P pairs of K triplets, scores descending within a pair.
        k: Triplets kept per pair.
        top: Length of the ranking; fewer are returned where fewer exist.

    Returns:
        Pair and slot of each ranked triplet, int64 `[<= top]` each, best first. The sort is stable over pair-major
        order, so that of equal scores the earlier pair, then the earlier slot, comes first.

    Raises:
        ValueError: k or top is below 1.
    """
    if k < 1 or top < 1:
        raise ValueError(f"k and top must be at least 1, got k={k}, top={top}")
    flat, _ = shortlist(prediction.scores, (k,), top)
    return np.divmod(flat, max(prediction.scores.shape[1], 1))


def join_triplets(
    image: NDArray[np.int64],
    triplets: NDArray[np.int64],
    truth_image: NDArray[np.int64],
    truth_triplets: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """List every (prediction, annotated relation) of one image with the same three labels.

    Args:
        image: `[E]`, image of each prediction.
        triplets: `[E, 3]`, non-negative labels.
        truth_image: `[G]`, image of each relation.
        truth_triplets: `[G, 3]`, non-negative labels.

    Returns:
        Indices into E, ascending, and into G; of equal length.
    """
    if not len(image) or not len(truth_image):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    base = np.maximum(triplets.max(0), truth_triplets.max(0)) + 1
    keys, truth_keys = (
        ((i * base[0] + t[:, 0]) * base[1] + t[:, 1]) * base[2] + t[:, 2]
        for i, t in ((image, triplets), (truth_image, truth_triplets))
    )
    order = np.argsort(truth_keys, kind="stable")
    ordered = truth_keys[order]
    start = np.searchsorted(ordered, keys)
    found = np.flatnonzero(ordered[np.minimum(start, ordered.size - 1)] == keys)
    start = start[found]
    count = np.searchsorted(ordered, keys[found], side="right") - start
    within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    return np.repeat(found, count), order[np.repeat(start, count) + within]


def box_iou(a_xyxy: NDArray[np.float64], b_xyxy: NDArray[np.float64]) -> NDArray[np.float64]:
    """Intersection over union of boxes in rows, widths counted as x2 - x1 + 1.

    Args:
        a_xyxy: float64 `[M, 4]`, pixels.
        b_xyxy: float64 `[M, 4]`, pixels.

    Returns:
        float64 `[M]`, in [0, 1].
    """
    low, high = np.maximum(a_xyxy[:, :2], b_xyxy[:, :2]), np.minimum(a_xyxy[:, 2:], b_xyxy[:, 2:])
    inter = np.maximum(high - low + 1, 0).prod(1)
    a_area, b_area = ((boxes[:, 2:] - boxes[:, :2] + 1).prod(1) for boxes in (a_xyxy, b_xyxy))
    iou: NDArray[np.float64] = inter / (a_area + b_area - inter)
    return iou


def match_overlap(
    rule: Rule,
    subject_xyxy: NDArray[np.float64],
    object_xyxy: NDArray[np.float64],
    truth_subject_xyxy: NDArray[np.float64],
    truth_object_xyxy: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Overlap that decides a match: the smaller of the two IoUs, or for phrases the IoU of the pairs' union boxes.

    Args:
        rule: "relationship" or "phrase".
        subject_xyxy: float64 `[M, 4]`, predicted subject boxes, pixels.
        object_xyxy: float64 `[M, 4]`, predicted object boxes.
        truth_subject_xyxy: float64 `[M, 4]`, annotated subject boxes.
        truth_object_xyxy: float64 `[M, 4]`, annotated object boxes.

    Returns:
        float64 `[M]`, in [0, 1]; a match needs at least 0.5.
    """
    if rule == "relationship":
        return np.minimum(box_iou(subject_xyxy, truth_subject_xyxy), box_iou(object_xyxy, truth_object_xyxy))
    unions = [
        np.concatenate([np.minimum(s[:, :2], o[:, :2]), np.maximum(s[:, 2:], o[:, 2:])], axis=1)
        for s, o in ((subject_xyxy, object_xyxy), (truth_subject_xyxy, truth_object_xyxy))
    ]
    return box_iou(*unions)


def greedy_ranks(
    prediction: NDArray[np.int64], truth: NDArray[np.int64], rank: NDArray[np.int64], truths: int
) -> NDArray[np.int64]:
    """Match one to one: best prediction first, each taking its first relation that is still free.

    Visiting the matches one by one is the same as repeating, until none is left, "accept every match that is the
    first remaining one both of its prediction and of its relation"; that takes a handful of array passes.

    Args:
        prediction: `[M]`, prediction of each possible match, ascending in the order of visit.
        truth: `[M]`, its relation; within a prediction the preferred relation first.
        rank: `[M]`, rank of the prediction in its image.
        truths: Number of relations, G.

    Returns:
        int64 `[G]`: rank of the prediction that took each relation, `UNMATCHED` where none did. Hits among the N best
        are those `< N`, for every N, as a greedy matching of the first N is a prefix of the whole one.
    """
    matched = np.full(truths, UNMATCHED)
    while prediction.size:
        position = np.arange(prediction.size)
        first = np.full(truths, UNMATCHED)
        np.minimum.at(first, truth, position)
        accept = first[truth] == position
        accept[1:] &= prediction[1:] != prediction[:-1]
        matched[truth[accept]] = rank[accept]
        left = (matched[truth] == UNMATCHED) & ~np.isin(prediction, prediction[accept])
        prediction, truth, rank = prediction[left], truth[left], rank[left]
    return matched


def multi_ranks(truth: NDArray[np.int64], rank: NDArray[np.int64], truths: int) -> NDArray[np.int64]:
    """Match many to many: a relation is recalled by the best prediction that fits it, whatever else that fits.

    Args:
        truth: `[M]`, relation of each possible match.
        rank: `[M]`, rank of its prediction in its image.
        truths: Number of relations, G.

    Returns:
        int64 `[G]`: smallest rank of a fitting prediction, `UNMATCHED` where there is none.
    """
    matched = np.full(truths, UNMATCHED)
    np.minimum.at(matched, truth, rank)
    return matched
