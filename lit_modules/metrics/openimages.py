"""The metrics of RelDN's Open Images tables: corpus recall and average precision of relations and phrases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from data_modules.scene_graph import PairPredictions, SceneGraph
from lit_modules.metrics.triplet_rows import annotated_rows, check_record, ranked_rows
from lit_modules.metrics.vrd_matching import IOU_THRESHOLD, Rule, join_triplets, match_overlap, multi_ranks

RULES: tuple[Rule, ...] = ("relationship", "phrase")
NAMES = ("rel", "phr")


class JudgedTriplets(NamedTuple):
    """The kept triplets of some images, and what they recall; those of two sets of images add up.

    Attributes:
        scores: float64 `[R]`.
        predicates: int64 `[R]`.
        is_true: bool `[R, 2]`, true positive as a relation and as a phrase.
        positives: int64 `[P]`, annotated relations of each predicate.
        recalled: int64 `[]`, annotated relations among the N best triplets.
    """

    scores: NDArray[np.float64]
    predicates: NDArray[np.int64]
    is_true: NDArray[np.bool_]
    positives: NDArray[np.int64]
    recalled: NDArray[np.int64]


def judge_triplets(
    predictions: Sequence[PairPredictions],
    graphs: Sequence[SceneGraph],
    *,
    num_predicates: int,
    k: int = 2,
    kept: int = 100,
    top: int = 50,
    min_score: float = 1e-5,
) -> JudgedTriplets:
    """Decide which triplets are right.

    A triplet is compared with one annotated relation alone: of those of its image with its three labels, the one with
    the largest overlap, the first of equals. It is a true positive if that overlap is above 0.5, not equal to it, and
    no better triplet has had this relation; there is no second choice. Recall follows the rules of
    `metrics.vrd` instead: an overlap of 0.5 is enough, and any triplet may recall any relation.

    Args:
        predictions: One record an image; scores are probabilities.
        graphs: The annotations of the same images, in the same order.
        num_predicates: P.
        k: Triplets kept per ordered pair.
        kept: Triplets kept per image.
        top: N of the recall.
        min_score: Triplets that don't score more are dropped.

    Raises:
        ValueError: As in `metrics.vrd.evaluate_dataset`.
    """
    if len(predictions) != len(graphs):
        raise ValueError(f"expected one record of predictions per graph, got {len(predictions)} and {len(graphs)}")
    for prediction, graph in zip(predictions, graphs, strict=True):
        check_record(prediction, graph.image)
    truth = annotated_rows(graphs)
    rows, (rank,), scores = ranked_rows(predictions, graphs, (k,), kept)
    entry, relation = join_triplets(rows.image, rows.triplets, truth.image, truth.triplets)
    ends = (rows.subject_xyxy, rows.object_xyxy, truth.subject_xyxy, truth.object_xyxy)
    boxes = [end[i].astype(np.float64) for end, i in zip(ends, (entry, entry, relation, relation), strict=True)]
    is_kept = scores > min_score
    is_true = np.zeros((len(scores), len(RULES)), dtype=np.bool_)
    recalled = np.int64(0)
    for column, rule in enumerate(RULES):
        overlap = match_overlap(rule, *boxes)
        order = np.lexsort((relation, -overlap, entry))
        best = order[np.r_[True, entry[order][1:] != entry[order][:-1]][: len(order)]]
        best = best[(overlap[best] > IOU_THRESHOLD) & is_kept[entry[best]]]
        # Entries are sorted best first within an image, so the first of a relation is its best.
        _, first = np.unique(relation[best], return_index=True)
        is_true[entry[best[first]], column] = True
        if rule == "relationship":
            fit = (overlap >= IOU_THRESHOLD) & is_kept[entry]
            recalled = np.int64((multi_ranks(relation[fit], rank[entry[fit]], len(truth.image)) < top).sum())
    positives = np.bincount(truth.triplets[:, 1], minlength=num_predicates)
    return JudgedTriplets(scores[is_kept], rows.triplets[is_kept, 1], is_true[is_kept], positives, np.asarray(recalled))


def average_precision(scores: NDArray[np.float64], is_true: NDArray[np.bool_], positives: int) -> float:
    """Area under the monotone envelope of precision over recall, at all points (VOC from 2010 on).

    Args:
        scores: `[R]`, of the detections of one class.
        is_true: `[R]`.
        positives: Annotated instances of the class.

    Returns:
        A fraction; 0 where there is nothing annotated.
    """
    if not positives or not len(scores):
        return 0.0
    hits = is_true[np.argsort(-scores, kind="stable")].cumsum()
    precision = np.maximum.accumulate((hits / np.arange(1, len(hits) + 1))[::-1])[::-1]
    return float((np.diff(hits, prepend=0) * precision).sum() / positives)


class OpenImagesScore(Metric):
    """RelDN's measures of relation detection on Open Images, all as fractions, float64 `[]`.

    `compute` gives, with x one of rel (both boxes overlap) and phr (the union boxes do): `R@50`; `AP_x/<predicate>`;
    `mAP_x`, their mean; `wmAP_x`, their mean weighted by annotated relations; `score` = 0.2 R@50 + 0.4 mAP_rel + 0.4
    mAP_phr; `score_wtd`, the same of wmAP. With `rare`, `mAP*_x` and `score*` leave those predicates out.

    Args:
        predicates: Names, in the order of their labels.
        rare: Names left out of the measures with a star (under and hits in the paper).
        present_only: Take the means over predicates with annotated relations, as the paper's Table 6 does, not all.
        k: Triplets kept per ordered pair.
        kept: Triplets kept per image.
        top: N of the recall.
        min_score: Triplets that don't score more are dropped.

    Raises:
        ValueError: A rare predicate isn't among the names.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True

    scores: list[Tensor]
    labels: list[Tensor]
    is_true: list[Tensor]
    positives: Tensor
    recalled: Tensor

    def __init__(
        self,
        predicates: Sequence[str],
        *,
        rare: Sequence[str] = (),
        present_only: bool = False,
        k: int = 2,
        kept: int = 100,
        top: int = 50,
        min_score: float = 1e-5,
    ) -> None:
        super().__init__()
        if unknown := set(rare) - set(predicates):
            raise ValueError(f"rare: unknown {sorted(unknown)}; known are {list(predicates)}")
        self.predicates, self.rare, self.present_only = tuple(predicates), frozenset(rare), present_only
        self.settings = {"k": k, "kept": kept, "top": top, "min_score": min_score}
        for name in ("scores", "labels", "is_true"):
            self.add_state(name, [], dist_reduce_fx="cat")
        self.add_state("positives", torch.zeros(len(predicates), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("recalled", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, predictions: Sequence[PairPredictions], graphs: Sequence[SceneGraph]) -> None:
        """Add images; errors as in `judge_triplets`.

        Args:
            predictions: One record an image, with no pairs where nothing was predicted.
            graphs: The annotations of the same images, in the same order.
        """
        judged = judge_triplets(predictions, graphs, num_predicates=len(self.predicates), **self.settings)  # type: ignore[arg-type]
        device = self.positives.device
        self.scores.append(torch.from_numpy(judged.scores).to(device))
        self.labels.append(torch.from_numpy(judged.predicates).to(device))
        self.is_true.append(torch.from_numpy(judged.is_true).to(device))
        self.positives = self.positives + torch.from_numpy(judged.positives).to(device)
        self.recalled = self.recalled + torch.from_numpy(judged.recalled).to(device)

    def compute(self) -> dict[str, Tensor]:
        """Return the measures of all images so far, see the class."""
        joined = [torch.cat(v) if isinstance(v, list) and v else v for v in (self.scores, self.labels, self.is_true)]
        empty = (np.zeros(0), np.zeros(0, np.int64), np.zeros((0, 2), np.bool_))
        scores, labels, is_true = (
            v.cpu().numpy() if isinstance(v, Tensor) else e for v, e in zip(joined, empty, strict=True)
        )
        order = np.argsort(np.negative(scores), kind="stable")  # once, as sorting again what is in order takes no time
        scores, labels, is_true = scores[order], labels[order], is_true[order]
        positives = self.positives.cpu().numpy()
        recall = float(self.recalled) / max(int(positives.sum()), 1)
        found: dict[str, float] = {f"R@{self.settings['top']}": recall}
        is_counted = positives > 0 if self.present_only else np.ones(len(positives), np.bool_)
        is_common = np.array([name not in self.rare for name in self.predicates])
        for column, name in enumerate(NAMES):
            precisions = np.array(
                [
                    average_precision(scores[labels == c], is_true[labels == c, column], int(positives[c]))
                    for c in range(len(positives))
                ]
            )
            found |= {f"AP_{name}/{p}": float(v) for p, v in zip(self.predicates, precisions, strict=True)}
            found[f"mAP_{name}"] = _mean(precisions, is_counted)
            found[f"mAP*_{name}"] = _mean(precisions, is_counted & is_common)
            found[f"wmAP_{name}"] = float((precisions * positives).sum() / max(int(positives.sum()), 1))
        for score, mean in (("score", "mAP"), ("score_wtd", "wmAP"), ("score*", "mAP*")):
            found[score] = 0.2 * recall + 0.4 * found[f"{mean}_rel"] + 0.4 * found[f"{mean}_phr"]
        return {
            key: torch.tensor(value, dtype=torch.float64) for key, value in found.items() if self.rare or "*" not in key
        }


def _mean(values: NDArray[np.float64], chosen: NDArray[np.bool_]) -> float:
    return float(values[chosen].mean()) if chosen.any() else 0.0
