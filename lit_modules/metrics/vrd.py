"""Recall of visual relationships: relationship, phrase and predicate detection (METRICS.md defines the protocols)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from data_modules.scene_graph import PairPredictions, SceneGraph
from lit_modules.metrics.triplet_rows import annotated_rows, check_record, ranked_rows
from lit_modules.metrics.vrd_matching import (
    IOU_THRESHOLD,
    Rule,
    greedy_ranks,
    join_triplets,
    match_overlap,
    multi_ranks,
)

Task = Literal["relationship", "phrase", "predicate"]
# Predicate detection is relationship detection over annotated boxes; what differs is the candidates it is given.
_RULES: dict[Task, Rule] = {"relationship": "relationship", "phrase": "phrase", "predicate": "relationship"}
_MATCHINGS = ("", "/multi")


@dataclass(frozen=True, slots=True)
class RecallCounts:
    """What recalls are made of; the counts of two sets of images add up.

    Axes: T tasks, K values of k, N lengths of the ranking, and 2 matchings (greedy, multi).

    Attributes:
        hits: int64 `[T, K, N, 2]`, recalled relations.
        zero_shot_hits: int64 `[T, K, N, 2]`, those whose triplet never occurs in training.
        image_recall: float64 `[T, K, N, 2]`, sum over images of recalled relations / relations.
        truths: int64 `[]`, relations.
        zero_shot_truths: int64 `[]`, relations whose triplet never occurs in training.
        images: int64 `[]`, images with at least one relation.
    """

    hits: NDArray[np.int64]
    zero_shot_hits: NDArray[np.int64]
    image_recall: NDArray[np.float64]
    truths: NDArray[np.int64]
    zero_shot_truths: NDArray[np.int64]
    images: NDArray[np.int64]


def triplet_set(triplets: Iterable[Sequence[int]] | NDArray[np.int64]) -> frozenset[tuple[int, ...]]:
    """Make a set of triplets for zero-shot recall.

    Args:
        triplets: (subject category, predicate, object category) rows, 0-based, repeats allowed; e.g. int64 `[M, 3]`.

    Returns:
        Its distinct rows.
    """
    rows = triplets.tolist() if isinstance(triplets, np.ndarray) else triplets
    return frozenset(tuple(row) for row in rows)


def evaluate_dataset(
    predictions: Sequence[PairPredictions],
    graphs: Sequence[SceneGraph],
    *,
    ks: Sequence[int] = (1, 10, 70),
    tops: Sequence[int] = (50, 100),
    tasks: Sequence[Task] = ("relationship", "phrase"),
    train_triplets: frozenset[tuple[int, ...]] | None = None,
) -> RecallCounts:
    """Count recalled relations of many images at once; all k, N, tasks and matchings share the ranking and the join.

    Args:
        predictions: One record an image.
        graphs: The annotations of the same images, in the same order.
        ks: Triplets kept per ordered pair.
        tops: N, lengths of the ranking of an image.
        tasks: Of "relationship", "phrase", "predicate".
        train_triplets: Triplets seen in training; None counts nothing as zero-shot.

    Returns:
        Counts, see `RecallCounts`.

    Raises:
        ValueError: Different numbers of predictions and graphs, a record of inconsistent shape, NaN scores, scores that
            aren't descending within a pair, non-finite boxes or negative labels; the message names the image.
    """
    if len(predictions) != len(graphs):
        raise ValueError(f"expected one record of predictions per graph, got {len(predictions)} and {len(graphs)}")
    for prediction, graph in zip(predictions, graphs, strict=True):
        check_record(prediction, graph.image)
    truth = annotated_rows(graphs)
    predicted, ranks, _ = ranked_rows(predictions, graphs, ks, max(tops))
    entry, row = join_triplets(predicted.image, predicted.triplets, truth.image, truth.triplets)
    ends = (predicted.subject_xyxy, predicted.object_xyxy, truth.subject_xyxy, truth.object_xyxy)
    boxes = [end[i].astype(np.float64) for end, i in zip(ends, (entry, entry, row, row), strict=True)]

    count = len(truth.image)
    per_image = np.bincount(truth.image, minlength=len(graphs))
    unseen = np.zeros(count, bool)
    if train_triplets is not None:
        # Rows that compete for a prediction have equal labels, so they are zero-shot together: matching the zero-shot
        # rows alone, as Lu et al. do, equals taking the zero-shot rows out of the whole matching.
        unseen[:] = [tuple(t) not in train_triplets for t in truth.triplets.tolist()]
    # One weight a row turns a matching into: hits, zero-shot hits, sum of per-image recalls.
    weights = np.stack([np.ones(count), unseen, 1 / per_image[truth.image]], axis=1)
    sums = np.zeros((len(tasks), len(ks), len(tops), len(_MATCHINGS), 3))
    for t, task in enumerate(tasks):
        overlap = match_overlap(_RULES[task], *boxes)
        fit = np.flatnonzero(overlap >= IOU_THRESHOLD)
        fit = fit[np.lexsort((row[fit], -overlap[fit], entry[fit]))]
        for j in range(len(ks)):
            rank = ranks[j, entry[fit]]
            inside = rank < max(tops)
            match, rank = fit[inside], rank[inside]
            recalled_at = np.stack(
                [greedy_ranks(entry[match], row[match], rank, count), multi_ranks(row[match], rank, count)]
            )
            sums[t, j] = (recalled_at < np.asarray(tops)[:, None, None]) @ weights
    hits, zero_shot_hits = (sums[..., i].round().astype(np.int64) for i in (0, 1))
    totals = (np.asarray(n, np.int64) for n in (count, unseen.sum(), (per_image > 0).sum()))
    return RecallCounts(hits, zero_shot_hits, sums[..., 2], *totals)


class VRDRecall(Metric):
    """Recall@N with k triplets per pair, by corpus and by image, greedy and multi-match, and zero-shot.

    `compute` gives fractions in [0, 1], float64 `[]`, NaN where nothing was to be recalled. Of task prefix, k and N
    `relationship_k1/R@50` is recalled relations / relations with greedy matching; followed by `/multi` it uses the
    multi-match rule; either may be followed by `/image_mean` (mean over images with relations) or, with
    `train_triplets`, by `/zero_shot` (only relations whose triplet isn't among these). See METRICS.md.

    Args:
        ks: Triplets kept per ordered pair.
        tops: N, lengths of the ranking of an image.
        tasks: Of "relationship", "phrase", "predicate".
        train_triplets: Triplets seen in training, (subject category, predicate, object category) rows.
        names: Prefix of a task in the keys, where it isn't the task itself; e.g. `{"predicate": "phrcls"}`.

    Raises:
        ValueError: An empty or unknown option, or a k or N below 1.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True

    hits: Tensor
    zero_shot_hits: Tensor
    image_recall: Tensor
    truths: Tensor
    zero_shot_truths: Tensor
    images: Tensor

    def __init__(
        self,
        ks: Sequence[int] = (1, 10, 70),
        tops: Sequence[int] = (50, 100),
        tasks: Sequence[Task] = ("relationship", "phrase"),
        train_triplets: Iterable[Sequence[int]] | NDArray[np.int64] | None = None,
        names: Mapping[Task, str] | None = None,
    ) -> None:
        super().__init__()
        for option, values in (("ks", ks), ("tops", tops)):
            if not values or min(values) < 1:
                raise ValueError(f"{option} must be integers of at least 1, got {tuple(values)}")
        for option, chosen in (("tasks", tasks), ("names", names or {})):
            if unknown := set(chosen) - set(_RULES):
                raise ValueError(f"{option}: unknown {sorted(unknown)}; known are {sorted(_RULES)}")
        if not tasks:
            raise ValueError(f"tasks is empty; choose from {sorted(_RULES)}")
        self.ks, self.tops, self.tasks = tuple(ks), tuple(tops), tuple(tasks)
        self.train_triplets = None if train_triplets is None else triplet_set(train_triplets)
        self.prefixes = [(names or {}).get(task, task) for task in tasks]
        axes = (len(self.tasks), len(self.ks), len(self.tops), len(_MATCHINGS))
        for name in ("hits", "zero_shot_hits"):
            self.add_state(name, torch.zeros(axes, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("image_recall", torch.zeros(axes, dtype=torch.float64), dist_reduce_fx="sum")
        for name in ("truths", "zero_shot_truths", "images"):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, predictions: Sequence[PairPredictions], graphs: Sequence[SceneGraph]) -> None:
        """Add images; errors as in `evaluate_dataset`.

        Args:
            predictions: One record an image, with no pairs where nothing was predicted.
            graphs: The annotations of the same images, in the same order.
        """
        counts = evaluate_dataset(
            predictions, graphs, ks=self.ks, tops=self.tops, tasks=self.tasks, train_triplets=self.train_triplets
        )
        for field in fields(counts):
            state = getattr(self, field.name)
            setattr(self, field.name, state + torch.from_numpy(getattr(counts, field.name)).to(state.device))

    def compute(self) -> dict[str, Tensor]:
        """Return the recalls of all images so far, see the class."""
        recalls = {
            "": self.hits.double() / self.truths,
            "/image_mean": self.image_recall / self.images,
        }
        if self.train_triplets is not None:
            recalls["/zero_shot"] = self.zero_shot_hits.double() / self.zero_shot_truths
        return {
            f"{prefix}_k{k}/R@{top}{matching}{suffix}": recall[t, j, n, m]
            for t, prefix in enumerate(self.prefixes)
            for j, k in enumerate(self.ks)
            for n, top in enumerate(self.tops)
            for m, matching in enumerate(_MATCHINGS)
            for suffix, recall in recalls.items()
        }
