from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from data_modules.scene_graph import PairPredictions, SceneGraph
from lit_modules.metrics.openimages import OpenImagesScore, average_precision
from tests.lit_modules.metrics.test_vrd import BOX, FAR, HALF, graph, pairs, world

NAMES = ("on", "holds", "under")


def measure(
    predictions: list[PairPredictions], graphs: list[SceneGraph], names: tuple[str, ...] = NAMES, **options: Any
) -> dict[str, float]:
    metric = OpenImagesScore(names, **options)
    for start in range(0, max(len(graphs), 1), 2):  # two images a batch
        metric.update(predictions[start : start + 2], graphs[start : start + 2])
    return {key: float(value) for key, value in metric.compute().items()}


def area(box: NDArray[np.float64]) -> float:
    return max(box[2] - box[0] + 1, 0) * max(box[3] - box[1] + 1, 0)


def iou(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    inter = area(np.array([max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])]))
    return inter / (area(a) + area(b) - inter)


def hull(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.array([min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])])


def slow(predictions: list[PairPredictions], graphs: list[SceneGraph], k: int, kept: int, top: int) -> dict[str, float]:
    """The measures as the spec words them, one triplet at a time."""
    pools: dict[tuple[str, int], list[tuple[float, int, bool]]] = {(n, c): [] for n in ("rel", "phr") for c in range(3)}
    npos, recalled, total = [0, 0, 0], 0, 0
    for number, (p, g) in enumerate(zip(predictions, graphs, strict=True)):
        flat = []
        for pair in range(len(p.scores)):
            for slot in range(min(k, p.scores.shape[1])):
                if p.scores[pair, slot] > -math.inf:
                    ends = p.subject_boxes_xyxy[pair].astype(float), p.object_boxes_xyxy[pair].astype(float)
                    flat.append((float(p.scores[pair, slot]), tuple(p.triplets[pair, slot].tolist()), *ends))
        flat.sort(key=lambda d: -d[0])  # Python's sort is stable
        flat = [d for d in flat[:kept] if d[0] > 1e-5]
        truth = []
        for s, c, o in g.relations.tolist():
            ends = g.boxes_xyxy[s].astype(float), g.boxes_xyxy[o].astype(float)
            truth.append(((int(g.labels[s]), c, int(g.labels[o])), *ends))
            npos[c] += 1
        total += len(truth)
        for labels, s_box, o_box in truth:
            recalled += any(d[1] == labels and iou(d[2], s_box) >= 0.5 and iou(d[3], o_box) >= 0.5 for d in flat[:top])
        for name in ("rel", "phr"):
            used = [False] * len(truth)
            for score, labels, s_box, o_box in flat:
                best, best_overlap = -1, -math.inf
                for i, (wanted, ts, to) in enumerate(truth):
                    if wanted == labels:
                        phrase = iou(hull(s_box, o_box), hull(ts, to))
                        overlap = phrase if name == "phr" else min(iou(s_box, ts), iou(o_box, to))
                        if overlap > best_overlap:
                            best, best_overlap = i, overlap
                hit = best >= 0 and best_overlap > 0.5 and not used[best]
                if hit:
                    used[best] = True
                pools[name, labels[1]].append((score, number, hit))
    found = {f"R@{top}": recalled / max(total, 1)}
    for name in ("rel", "phr"):
        aps = []
        for c in range(3):
            ranked = sorted(pools[name, c], key=lambda d: -d[0])
            points = []
            for n in range(1, len(ranked) + 1):
                true = sum(d[2] for d in ranked[:n])
                points.append((true / npos[c] if npos[c] else 0.0, true / n))
            ap, before = 0.0, 0.0
            for i, (recall, _) in enumerate(points):
                ap += (recall - before) * max(precision for _, precision in points[i:])
                before = recall
            aps.append(ap if npos[c] else 0.0)
        found |= {f"AP_{name}/{n}": ap for n, ap in zip(NAMES, aps, strict=True)}
        found[f"mAP_{name}"] = sum(aps) / 3
        found[f"wmAP_{name}"] = sum(a * n for a, n in zip(aps, npos, strict=True)) / max(total, 1)
    for score, mean in (("score", "mAP"), ("score_wtd", "wmAP")):
        found[score] = 0.2 * found[f"R@{top}"] + 0.4 * (found[f"{mean}_rel"] + found[f"{mean}_phr"])
    return found


@pytest.mark.parametrize("seed", range(60))
def test_equals_the_loops(seed: int) -> None:
    predictions, graphs, _ = world(seed)
    scaled = []  # probabilities, some below the limit
    for p in predictions:
        low = p.scores[p.scores > -np.inf].min(initial=0.0)
        scores = np.where(np.isinf(p.scores), -np.inf, (p.scores - low) / 20)
        scaled.append(PairPredictions(p.subject_boxes_xyxy, p.object_boxes_xyxy, p.triplets, scores))
    k, kept, top = ((2, 100, 50), (1, 10, 5), (3, 40, 20))[seed % 3]
    expected = slow(scaled, graphs, k, kept, top)
    found = measure(scaled, graphs, k=k, kept=kept, top=top)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, abs=1e-12), key


def test_the_worlds_reach_every_case() -> None:
    values = [slow(p, g, 2, 100, 50) for p, g, _ in map(world, range(40))]
    assert sum(0 < v["mAP_rel"] < v["mAP_phr"] for v in values) > 5
    assert sum(v["R@50"] > v["wmAP_rel"] > 0 for v in values) > 5


def test_an_overlap_of_exactly_a_half_is_a_recall_but_no_true_positive() -> None:
    truth = graph((BOX, (0, 1, 2), FAR))
    found = measure([pairs((HALF, FAR, [((0, 1, 2), 0.9)]))], [truth])
    assert found["R@50"] == 1 and found["AP_rel/holds"] == 0
    assert found["AP_phr/holds"] == 1  # the unions agree


def test_a_duplicate_is_a_false_positive() -> None:
    truth = [graph((BOX, (0, 1, 2), FAR)), graph((BOX, (0, 1, 2), FAR))]
    twice = pairs((BOX, FAR, [((0, 1, 2), 0.9)]), (BOX, FAR, [((0, 1, 2), 0.8)]))
    found = measure([twice, pairs((BOX, FAR, [((0, 1, 2), 0.7)]))], truth)
    assert found["AP_rel/holds"] == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)


def test_there_is_no_second_choice() -> None:
    """Two equal annotations: the second is never taken, because the first of equals is the only one tested."""
    truth = graph((BOX, (0, 1, 2), FAR), (BOX, (0, 1, 2), FAR))
    twice = pairs((BOX, FAR, [((0, 1, 2), 0.9)]), (BOX, FAR, [((0, 1, 2), 0.8)]))
    found = measure([twice], [truth])
    assert found["AP_rel/holds"] == 0.5 and found["R@50"] == 1


def test_predicates_without_annotations() -> None:
    truth = graph((BOX, (0, 1, 2), FAR))
    given = [pairs((BOX, FAR, [((0, 1, 2), 0.9), ((0, 0, 2), 0.5)]))]
    found = measure(given, [truth])
    assert (found["AP_rel/on"], found["AP_rel/holds"], found["mAP_rel"]) == (0, 1, pytest.approx(1 / 3))
    assert measure(given, [truth], present_only=True)["mAP_rel"] == 1
    assert found["wmAP_rel"] == 1 and found["score_wtd"] == pytest.approx(1.0)
    assert set(measure([], []).values()) == {0.0}


def test_measures_with_a_star_leave_rare_predicates_out() -> None:
    truth = graph((BOX, (0, 1, 2), FAR), (FAR, (0, 2, 2), BOX))
    given = [pairs((BOX, FAR, [((0, 1, 2), 0.9)]))]
    found = measure(given, [truth], rare=("under",))
    assert found["mAP_rel"] == pytest.approx(1 / 3) and found["mAP*_rel"] == 0.5
    assert found["score*"] == pytest.approx(0.2 * 0.5 + 0.4 * 0.5 + 0.4 * 0.5)
    assert not any("*" in key for key in measure(given, [truth]))
    with pytest.raises(ValueError, match=r"rare: unknown \['hits'\]; known are \['on'"):
        OpenImagesScore(NAMES, rare=("hits",))


def test_scores_at_the_limit_are_dropped() -> None:
    truth = graph((BOX, (0, 1, 2), FAR))
    assert measure([pairs((BOX, FAR, [((0, 1, 2), 1e-5)]))], [truth])["R@50"] == 0
    assert measure([pairs((BOX, FAR, [((0, 1, 2), 1.1e-5)]))], [truth])["R@50"] == 1


def test_average_precision_by_hand() -> None:
    scores, is_true = np.array([0.9, 0.8, 0.7, 0.6]), np.array([False, True, False, True])
    assert average_precision(scores, is_true, 4) == pytest.approx(0.25 * 0.5 + 0.25 * 0.5)
    assert average_precision(scores[::-1], is_true[::-1], 4) == pytest.approx(0.25)
    assert average_precision(scores, is_true, 0) == 0.0
    # Of equal scores the earlier comes first.
    assert average_precision(np.ones(2), np.array([True, False]), 1) == 1.0
    assert average_precision(np.ones(2), np.array([False, True]), 1) == 0.5
