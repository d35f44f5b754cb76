"""The VRD protocols in plain Python, slow and straight from their definition."""

from __future__ import annotations

import math
from collections.abc import Sequence

from data_modules.scene_graph import PairPredictions, SceneGraph

Box = list[float]
Row = tuple[tuple[int, int, int], Box, Box]


def iou(a: Box, b: Box) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0]) + 1
    height = min(a[3], b[3]) - max(a[1], b[1]) + 1
    if width <= 0 or height <= 0:
        return 0.0
    area_a = (a[2] - a[0] + 1) * (a[3] - a[1] + 1)
    area_b = (b[2] - b[0] + 1) * (b[3] - b[1] + 1)
    return width * height / (area_a + area_b - width * height)


def union(a: Box, b: Box) -> Box:
    return [min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])]


def overlap(task: str, a: Row, b: Row) -> float:
    if task == "phrase":
        return iou(union(a[1], a[2]), union(b[1], b[2]))
    return min(iou(a[1], b[1]), iou(a[2], b[2]))


def ranking(prediction: PairPredictions, k: int, top: int) -> list[tuple[int, int]]:
    pairs, slots = prediction.scores.shape
    entries = [
        (pair, slot)
        for pair in range(pairs)
        for slot in range(min(k, slots))
        if prediction.scores[pair, slot] > -math.inf
    ]
    entries.sort(key=lambda entry: -float(prediction.scores[entry]))
    return entries[:top]


def hits(task: str, predicted: list[Row], truths: list[Row], multi: bool) -> int:
    if multi:
        return sum(any(p[0] == t[0] and overlap(task, p, t) >= 0.5 for p in predicted) for t in truths)
    free = [True] * len(truths)
    for row in predicted:
        best, best_overlap = None, 0.0
        for i, truth in enumerate(truths):
            if free[i] and row[0] == truth[0]:
                value = overlap(task, row, truth)
                if value >= 0.5 and value > best_overlap:
                    best, best_overlap = i, value
        if best is not None:
            free[best] = False
    return free.count(False)


def recalls(
    predictions: Sequence[PairPredictions],
    graphs: Sequence[SceneGraph],
    ks: Sequence[int],
    tops: Sequence[int],
    tasks: Sequence[str],
    train: set[tuple[int, ...]],
) -> dict[str, float]:
    result = {}
    for task in tasks:
        for k in ks:
            for top in tops:
                for multi in (False, True):
                    found, count, zero_found, zero_count = 0, 0, 0, 0
                    images = []
                    for prediction, graph in zip(predictions, graphs, strict=True):
                        predicted = [
                            (
                                tuple(prediction.triplets[pair, slot].tolist()),
                                prediction.subject_boxes_xyxy[pair].tolist(),
                                prediction.object_boxes_xyxy[pair].tolist(),
                            )
                            for pair, slot in ranking(prediction, k, top)
                        ]
                        truths = []
                        for subject, predicate, obj in graph.relations.tolist():
                            labels = (int(graph.labels[subject]), predicate, int(graph.labels[obj]))
                            truths.append((labels, graph.boxes_xyxy[subject].tolist(), graph.boxes_xyxy[obj].tolist()))
                        n = hits(task, predicted, truths, multi)
                        found += n
                        count += len(truths)
                        if truths:
                            images.append(n / len(truths))
                        zero_shot = [t for t in truths if t[0] not in train]
                        zero_found += hits(task, predicted, zero_shot, multi)
                        zero_count += len(zero_shot)
                    key = f"{task}_k{k}/R@{top}" + ("/multi" if multi else "")
                    result[key] = found / count if count else math.nan
                    result[f"{key}/image_mean"] = sum(images) / len(images) if images else math.nan
                    result[f"{key}/zero_shot"] = zero_found / zero_count if zero_count else math.nan
    return result
