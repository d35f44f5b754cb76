"""Known scores on the real VRD test set: Lu et al.'s released predictions, a frequency predictor, and upper bounds."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from data_modules.scene_graph import Detections, PairPredictions, SceneGraph
from data_modules.vrd_files import read_annotations, read_image_order, read_lu_detections, read_lu_predictions
from lit_modules.metrics.vrd import VRDRecall, evaluate_dataset

pytestmark = [pytest.mark.real_data, pytest.mark.slow]

Pairs = Callable[[NDArray[np.float32]], NDArray[np.int64]]


@pytest.fixture(scope="module")
def train(data_root: Path) -> list[SceneGraph]:
    return list(read_annotations(data_root / "vrd/json_dataset/annotations_train.json", 100, 70).values())


@pytest.fixture(scope="module")
def test(data_root: Path) -> list[SceneGraph]:
    graphs = read_annotations(data_root / "vrd/json_dataset/annotations_test.json", 100, 70)
    return [graphs[name] for name in read_image_order(data_root / "vrd/lu2016/imagePath.mat")]


@pytest.fixture(scope="module")
def proposals(data_root: Path) -> list[Detections]:
    return read_lu_detections(data_root / "vrd/lu2016/objectDetRCNN.mat", 100, 1000)


def all_pairs(boxes_xyxy: NDArray[np.float32]) -> NDArray[np.int64]:
    return np.argwhere(~np.eye(len(boxes_xyxy), dtype=bool))


def overlapping_pairs(boxes_xyxy: NDArray[np.float32]) -> NDArray[np.int64]:
    low = np.maximum(boxes_xyxy[:, None, :2], boxes_xyxy[None, :, :2])
    high = np.minimum(boxes_xyxy[:, None, 2:], boxes_xyxy[None, :, 2:])
    overlap = (high - low + 1 > 0).all(-1)
    return np.argwhere(overlap & ~np.eye(len(boxes_xyxy), dtype=bool))


def frequencies(train: list[SceneGraph], background: bool, pairs: Pairs = all_pairs) -> NDArray[np.float64]:
    """P(predicate | subject category, object category), float64 [100, 100, 70]."""
    count = np.zeros((100, 100, 70))
    total = np.zeros((100, 100))
    for graph in train:
        subject, predicate, obj = graph.triplets.T
        np.add.at(count, (subject, obj, predicate), 1)
        if background:
            chosen = pairs(graph.boxes_xyxy)
            if not len(chosen):
                chosen = all_pairs(graph.boxes_xyxy)
            np.add.at(total, tuple(graph.labels[chosen].T), 1)
    total += count.sum(-1) + background
    return count / np.where(total > 0, total, 1)[..., None]


def predict(table: NDArray[np.float64], objects: Detections, pairs: Pairs = all_pairs) -> PairPredictions:
    subject, obj = pairs(objects.boxes_xyxy).T
    ends = objects.labels[subject], objects.labels[obj]
    scores = (objects.scores[subject] * objects.scores[obj])[:, None] * table[ends]
    order = np.argsort(-scores, axis=1, kind="stable")
    labels = [np.broadcast_to(end[:, None], order.shape) for end in ends]
    return PairPredictions(
        objects.boxes_xyxy[subject],
        objects.boxes_xyxy[obj],
        np.stack([labels[0], order, labels[1]], axis=-1),
        np.take_along_axis(scores, order, axis=1),
    )


def annotated(graphs: list[SceneGraph]) -> list[Detections]:
    return [Detections(g.boxes_xyxy, g.labels, np.ones(len(g.labels))) for g in graphs]


def score(predictions: list[PairPredictions], graphs: list[SceneGraph], **options: Any) -> dict[str, float]:
    metric = VRDRecall(**options)
    metric.update(predictions, graphs)
    return {key: 100 * float(value) for key, value in metric.compute().items()}


def assert_printed(recalls: dict[str, float], expected: dict[str, str]) -> None:
    for prefix, cell in expected.items():
        key, _, suffix = prefix.partition(" ")
        for top, value in zip((50, 100), cell.split("/"), strict=True):
            assert f"{recalls[f'{key}/R@{top}{suffix}']:.4f}" == value, (prefix, top)


def test_released_predictions_of_lu_et_al(data_root: Path, test: list[SceneGraph], train: list[SceneGraph]) -> None:
    predictions = read_lu_predictions(data_root / "vrd/lu2016/relationship_det_result.mat", 1000)
    counts = evaluate_dataset(predictions, test, ks=(1,))
    assert (int(counts.truths), int(counts.images)) == (7638, 955)
    assert counts.hits[:, 0, :, 0].tolist() == [[1078, 1143], [1257, 1324]]
    recalls = score(predictions, test, ks=(1,))
    assert_printed(recalls, {"relationship_k1": "14.1136/14.9647", "phrase_k1": "16.4572/17.3344"})

    seen = np.concatenate([g.triplets for g in train])
    zero_shot = evaluate_dataset(predictions, test, train_triplets=frozenset(map(tuple, seen.tolist())))
    assert int(zero_shot.zero_shot_truths) == 1169


@pytest.mark.parametrize(
    ("background", "pairs", "expected"),
    [
        (
            True,
            all_pairs,
            [
                "47.8659/50.2880",
                "59.0992/70.5420",
                "59.3873/71.0134",
                "49.1228/51.6104",
                "60.7882/72.6499",
                "66.5923/76.1994",
            ],
        ),
        (
            False,
            all_pairs,
            [
                "41.8827/49.5156",
                "49.8560/65.8942",
                "50.1309/66.3394",
                "43.0348/50.8117",
                "51.4533/67.8581",
                "59.9691/72.8877",
            ],
        ),
        (
            True,
            overlapping_pairs,
            ["44.2917/44.4095", None, "60.5787/67.0594", "45.4307/45.5486", "61.9403/68.4603", "64.8455/70.1080"],
        ),
    ],
)
def test_frequency_predictor_predicate_detection(
    train: list[SceneGraph], test: list[SceneGraph], background: bool, pairs: Pairs, expected: list[str | None]
) -> None:
    table = frequencies(train, background, pairs)
    recalls = score([predict(table, objects, pairs) for objects in annotated(test)], test, tasks=("predicate",))
    settings = (
        "predicate_k1",
        "predicate_k10",
        "predicate_k70",
        "predicate_k1 /multi",
        "predicate_k70 /multi",
        "predicate_k70 /image_mean",
    )
    assert_printed(recalls, {s: cell for s, cell in zip(settings, expected, strict=True) if cell})


@pytest.mark.parametrize(
    ("background", "relationship", "phrase"),
    [
        (
            True,
            ["15.6978/16.5750", "19.4030/22.9248", "19.4554/22.9772", "16.1168/17.0594", "19.9791/23.5533"],
            ["17.7795/18.7484", "21.9036/26.1194", "21.9298/26.1587", "18.3687/19.4030", "22.6499/26.9049"],
        ),
        (
            False,
            ["14.1136/16.1822", "16.4310/20.9479", "16.4834/21.0134", "14.5719/16.6667", "16.9940/21.5763"],
            ["15.8549/18.2901", "18.4996/23.7759", "18.5258/23.8544", "16.4703/18.9447", "19.2459/24.6531"],
        ),
    ],
)
def test_frequency_predictor_detection(
    train: list[SceneGraph],
    test: list[SceneGraph],
    proposals: list[Detections],
    background: bool,
    relationship: list[str],
    phrase: list[str],
) -> None:
    table = frequencies(train, background)
    recalls = score([predict(table, objects) for objects in proposals], test)
    for task, cells in (("relationship", relationship), ("phrase", phrase)):
        settings = ("k1", "k10", "k70", "k1 /multi", "k70 /multi")
        assert_printed(recalls, {f"{task}_{s}": cell for s, cell in zip(settings, cells, strict=True)})


def test_bounds_of_the_proposals(test: list[SceneGraph], proposals: list[Detections]) -> None:
    """Every predicate of every pair ranked: what is missed no model over these proposals can find."""
    predictions = [predict(np.ones((100, 100, 70)), objects) for objects in proposals]
    hits = evaluate_dataset(predictions, test, ks=(70,), tops=(10**9,)).hits[:, 0, 0, 1]
    assert hits.tolist() == [2509, 2875]


def test_bound_of_one_predicate_a_pair(test: list[SceneGraph]) -> None:
    predictions = []
    for graph in test:
        first = np.unique(graph.relations[:, [0, 2]], axis=0, return_index=True)[1]
        subject, _, obj = graph.relations[first].T
        predictions.append(
            PairPredictions(
                graph.boxes_xyxy[subject], graph.boxes_xyxy[obj], graph.triplets[first, None], np.ones((len(first), 1))
            )
        )
    recalls = score(predictions, test, ks=(1,), tasks=("predicate",))
    assert sum(len(p.scores) for p in predictions) == 6806
    assert_printed(recalls, {"predicate_k1": "89.1071/89.1071"})


def test_a_test_set_takes_half_a_second(
    train: list[SceneGraph], test: list[SceneGraph], proposals: list[Detections]
) -> None:
    table = frequencies(train, True)
    predictions = [predict(table, objects) for objects in proposals]
    seconds = []
    for _ in range(3):
        start = time.process_time()
        evaluate_dataset(predictions, test, ks=(70,))
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.5
