"""The protocols of Visual Genome and Open Images image by image, triplet by triplet, in plain Python."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from data_modules.scene_graph import PairPredictions, SceneGraph

Box = list[float]


class Row(NamedTuple):
    """One triplet: its three labels, its two boxes in pixels, and its score (1 for an annotated one)."""

    labels: tuple[int, ...]
    subject_xyxy: Box
    object_xyxy: Box
    score: float = 1.0


def iou(a: Box, b: Box) -> float:
    """Return the intersection over union of two boxes, widths counted as x2 - x1 + 1."""
    width = min(a[2], b[2]) - max(a[0], b[0]) + 1
    height = min(a[3], b[3]) - max(a[1], b[1]) + 1
    if width <= 0 or height <= 0:
        return 0.0
    both = (a[2] - a[0] + 1) * (a[3] - a[1] + 1) + (b[2] - b[0] + 1) * (b[3] - b[1] + 1)
    return width * height / (both - width * height)


def union(row: Row) -> Box:
    """Return the box around subject and object."""
    a, b = row.subject_xyxy, row.object_xyxy
    return [min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])]


def both_overlap(a: Row, b: Row) -> float:
    """Return the smaller IoU, of the subjects or of the objects."""
    return min(iou(a.subject_xyxy, b.subject_xyxy), iou(a.object_xyxy, b.object_xyxy))


def union_overlap(a: Row, b: Row) -> float:
    """Return the IoU of the boxes around subject and object."""
    return iou(union(a), union(b))


def ranked(prediction: PairPredictions, k: int, top: int) -> list[Row]:
    """Return the `top` best of the k best triplets of each pair, best first."""
    entries = [
        (-score, pair, slot)
        for pair, scores in enumerate(prediction.scores[:, :k].tolist())
        for slot, score in enumerate(scores)
        if score > -math.inf
    ]
    return [
        Row(
            tuple(prediction.triplets[pair, slot].tolist()),
            prediction.subject_boxes_xyxy[pair].tolist(),
            prediction.object_boxes_xyxy[pair].tolist(),
            -negative,
        )
        for negative, pair, slot in sorted(entries)[:top]
    ]


def annotated(graph: SceneGraph) -> list[Row]:
    """Return the annotated triplets of an image."""
    boxes, labels = graph.boxes_xyxy.tolist(), graph.labels.tolist()
    return [Row((labels[s], p, labels[o]), boxes[s], boxes[o]) for s, p, o in graph.relations.tolist()]


def greedy_positions(rows: Sequence[Row], truths: Sequence[Row]) -> Iterator[int]:
    """Yield, for each relation that is recalled, where the triplet stands that takes it; a triplet takes one."""
    free = [True] * len(truths)
    for position, row in enumerate(rows):
        best, most = -1, 0.0
        for number, truth in enumerate(truths):
            if free[number] and row.labels == truth.labels:
                overlap = both_overlap(row, truth)
                if overlap >= 0.5 and overlap > most:
                    best, most = number, overlap
        if best >= 0:
            free[best] = False
            yield position


def multi_positions(rows: Sequence[Row], truths: Sequence[Row]) -> Iterator[int]:
    """Yield, for each relation that is recalled, where the first triplet stands that fits it."""
    for truth in truths:
        for position, row in enumerate(rows):
            if row.labels == truth.labels and both_overlap(row, truth) >= 0.5:
                yield position
                break


def vg_recalls(
    predictions: Sequence[PairPredictions], graphs: Sequence[SceneGraph], tops: Sequence[int]
) -> dict[str, float]:
    """Return the recalls with one predicate a pair, by corpus and by image, under the keys of `VRDRecall`."""
    keys = [(top, matching) for top in tops for matching in ("", "/multi")]
    hits = dict.fromkeys(keys, 0)
    means = dict.fromkeys(keys, 0.0)
    truths_seen = images = 0
    for prediction, graph in zip(predictions, graphs, strict=True):
        truths = annotated(graph)
        if not truths:
            continue
        truths_seen, images = truths_seen + len(truths), images + 1
        rows = ranked(prediction, 1, max(tops))
        found = {"": list(greedy_positions(rows, truths)), "/multi": list(multi_positions(rows, truths))}
        for top, matching in keys:
            count = sum(position < top for position in found[matching])
            hits[top, matching] += count
            means[top, matching] += count / len(truths)
    recalls = {}
    for top, matching in keys:
        recalls[f"relationship_k1/R@{top}{matching}"] = hits[top, matching] / truths_seen
        recalls[f"relationship_k1/R@{top}{matching}/image_mean"] = means[top, matching] / images
    return recalls


def openimages_measures(
    predictions: Sequence[PairPredictions], graphs: Sequence[SceneGraph], names: Sequence[str]
) -> dict[str, float]:
    """Return recall and average precisions of `OpenImagesScore`, under its keys, without their sums and means."""
    pools: dict[str, list[tuple[float, bool]]] = {f"AP_{x}/{name}": [] for x in ("rel", "phr") for name in names}
    positives = [0] * len(names)
    recalled = 0
    for prediction, graph in zip(predictions, graphs, strict=True):
        truths = annotated(graph)
        for truth in truths:
            positives[truth.labels[1]] += 1
        rows = [row for row in ranked(prediction, 2, 100) if row.score > 1e-5]
        recalled += sum(1 for _ in multi_positions(rows[:50], truths))
        for key, measure in (("rel", both_overlap), ("phr", union_overlap)):
            used = [False] * len(truths)
            for row in rows:
                best, most = -1, -1.0
                for number, truth in enumerate(truths):
                    if row.labels == truth.labels:
                        overlap = measure(row, truth)
                        if overlap > most:
                            best, most = number, overlap
                is_true = best >= 0 and most > 0.5 and not used[best]
                if is_true:
                    used[best] = True
                pools[f"AP_{key}/{names[row.labels[1]]}"].append((row.score, is_true))
    found = {"R@50": recalled / max(sum(positives), 1)}
    for key, pool in pools.items():
        found[key] = precision_area(pool, positives[names.index(key.split("/", 1)[1])])
    return found


def precision_area(pool: Sequence[tuple[float, bool]], positives: int) -> float:
    """Return the area under the falling envelope of precision over recall of (score, is it true) pairs."""
    if not positives:
        return 0.0
    hits, precisions = 0, []
    for count, (_, is_true) in enumerate(sorted(pool, key=lambda entry: -entry[0]), start=1):
        if is_true:
            hits += 1
            precisions.append(hits / count)
    area = best = 0.0
    for precision in reversed(precisions):
        best = max(best, precision)
        area += best / positives
    return area
