from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from data_modules.scene_graph import PairPredictions, SceneGraph
from lit_modules.metrics.vrd import VRDRecall, evaluate_dataset
from lit_modules.metrics.vrd_matching import UNMATCHED, greedy_ranks, rank_triplets, shortlist
from tests.lit_modules.metrics import reference_vrd

FAR = [500, 500, 509, 509]
BOX = [0, 0, 9, 9]
HALF = [0, 0, 9, 4]  # IoU with BOX: 50 / 100
TASKS = ("relationship", "phrase", "predicate")


def graph(*rows: tuple[Sequence[float], tuple[int, int, int], Sequence[float]], image: str = "a.jpg") -> SceneGraph:
    """One relation per (subject box, triplet, object box)."""
    boxes = [box for subject, _, obj in rows for box in (subject, obj)]
    labels = [label for _, triplet, _ in rows for label in (triplet[0], triplet[2])]
    relations = [(2 * i, triplet[1], 2 * i + 1) for i, (_, triplet, _) in enumerate(rows)]
    return SceneGraph(
        image,
        None,
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(labels, np.int64),
        np.array(relations, np.int64).reshape(-1, 3),
    )


def pairs(
    *rows: tuple[Sequence[float], Sequence[float], Sequence[tuple[tuple[int, int, int], float]]],
) -> PairPredictions:
    """One pair per (subject box, object box, [(triplet, score), ...])."""
    slots = max((len(ranked) for _, _, ranked in rows), default=1)
    triplets, scores = np.zeros((len(rows), slots, 3), np.int64), np.full((len(rows), slots), -np.inf)
    for i, (_, _, ranked) in enumerate(rows):
        for j, (triplet, value) in enumerate(ranked):
            triplets[i, j], scores[i, j] = triplet, value
    ends = (np.array([row[i] for row in rows], np.float32).reshape(-1, 4) for i in (0, 1))
    return PairPredictions(*ends, triplets, scores)


def recalls(prediction: PairPredictions, truth: SceneGraph, **options: object) -> dict[str, float]:
    metric = VRDRecall(**{"ks": (1,), "tops": (50,), **options})
    metric.update([prediction], [truth])
    return {key: float(value) for key, value in metric.compute().items()}


def world(seed: int) -> tuple[list[PairPredictions], list[SceneGraph], set[tuple[int, ...]]]:
    """A few images whose labels, boxes and scores coincide often."""
    rng = np.random.default_rng(seed)
    predictions, graphs = [], []
    for i in range(int(rng.integers(1, 6))):
        nodes, count = int(rng.integers(1, 7)), int(rng.integers(0, 9))
        # Steps of 5 on sides of 10 or 20 give IoUs of exactly 1/2, and several equal ones.
        low = rng.integers(0, 3, (nodes, 2)) * 5
        boxes = np.concatenate([low, low + rng.choice([4, 9, 19], (nodes, 2))], axis=1).astype(np.float32)
        labels = rng.integers(0, 2, nodes)
        relations = np.stack([rng.integers(0, n, count) for n in (nodes, 3, nodes)], axis=1)
        graphs.append(SceneGraph(f"{i}.jpg", None, boxes, labels, relations))

        pool = int(rng.choice([0, 1, 5, 30])) if rng.random() < 0.8 else 80
        slots = int(rng.integers(1, 8))
        moved = boxes + rng.choice([0, 0, 2.5], (nodes, 4)).astype(np.float32) * [-1, -1, 1, 1]
        ends = rng.integers(0, nodes, (2, pool))
        triplets = np.stack(
            [
                np.broadcast_to(labels[ends[0]][:, None], (pool, slots)),
                rng.integers(0, 3, (pool, slots)),
                np.broadcast_to(labels[ends[1]][:, None], (pool, slots)),
            ],
            axis=-1,
        )
        grid = int(rng.choice([2, 5, 1000]))
        scores = -np.sort(-rng.integers(0, grid, (pool, slots)) / grid, axis=1)
        scores[rng.random((pool, slots)) < 0.1] = -np.inf
        scores = -np.sort(-scores, axis=1)
        boxes_of = (moved[end].astype(np.float32) for end in ends)
        predictions.append(PairPredictions(*boxes_of, triplets, scores))
    train = {tuple(t) for t in rng.integers(0, [2, 3, 2], (6, 3)).tolist()}
    return predictions, graphs, train


@pytest.mark.parametrize("block", range(6))
def test_equals_the_definition_on_random_worlds(block: int) -> None:
    ks, tops = (1, 2, 3, 20), (1, 3, 7, 60)
    for seed in range(40 * block, 40 * block + 40):
        predictions, graphs, train = world(seed)
        metric = VRDRecall(ks, tops, TASKS, train)
        metric.update(predictions, graphs)
        actual = {key: float(value) for key, value in metric.compute().items()}
        expected = reference_vrd.recalls(predictions, graphs, ks, tops, TASKS, train)
        assert actual == pytest.approx(expected, rel=1e-12, nan_ok=True), seed


def test_random_worlds_tell_the_protocols_apart() -> None:
    differing = dict.fromkeys(("/multi", "/image_mean", "/zero_shot"), 0)
    for seed in range(40):
        predictions, graphs, train = world(seed)
        expected = reference_vrd.recalls(predictions, graphs, (3,), (7,), ("phrase",), train)
        for suffix in differing:
            differing[suffix] += expected["phrase_k3/R@7"] != expected[f"phrase_k3/R@7{suffix}"]
    assert min(differing.values()) > 5


def test_ranking_equals_a_full_stable_sort() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        shape = tuple(rng.integers(1, [60, 20]))
        scores = -np.sort(-rng.integers(0, rng.choice([2, 10, 10000]), shape).astype(float), axis=1)
        scores[:, shape[1] - int(rng.integers(0, shape[1])) :] = -np.inf
        boxes = np.zeros((shape[0], 4), np.float32)
        prediction = PairPredictions(boxes, boxes, np.zeros((*shape, 3), np.int64), scores)
        ks, top = rng.integers(1, 25, 3).tolist(), int(rng.integers(1, 80))
        flat, ranks = shortlist(scores, ks, top)
        for k, rank in zip(ks, ranks, strict=True):
            expected = reference_vrd.ranking(prediction, k, top)
            pair, slot = rank_triplets(prediction, k, top)
            assert list(zip(pair.tolist(), slot.tolist(), strict=True)) == expected
            assert flat[np.argsort(rank)][: len(expected)].tolist() == [p * shape[1] + s for p, s in expected]


def test_greedy_rounds_equal_one_by_one_visits() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        predictions, truths = rng.integers(1, 15, 2)
        match = np.argwhere(rng.random((predictions, truths)) < rng.random())
        for prediction in range(predictions):  # any preference among the truths of a prediction
            rows = match[:, 0] == prediction
            match[rows] = rng.permutation(match[rows])
        expected: dict[int, int] = {}
        for prediction, truth in match.tolist():
            if truth not in expected and prediction not in expected.values():
                expected[truth] = prediction
        actual = greedy_ranks(match[:, 0], match[:, 1], match[:, 0], int(truths))
        assert {i: int(r) for i, r in enumerate(actual) if r != UNMATCHED} == expected


def test_an_overlap_of_exactly_half_is_a_hit() -> None:
    truth = graph((BOX, (0, 0, 1), FAR))
    assert recalls(pairs((HALF, FAR, [((0, 0, 1), 1.0)])), truth)["relationship_k1/R@50"] == 1
    assert recalls(pairs(([0, 0, 9, 3.9], FAR, [((0, 0, 1), 1.0)])), truth)["relationship_k1/R@50"] == 0


def test_phrases_compare_union_boxes() -> None:
    truth = graph((BOX, (0, 0, 1), FAR))
    corners = pairs(([0, 0, 0, 0], [509, 509, 509, 509], [((0, 0, 1), 1.0)]))
    found = recalls(corners, truth)
    assert (found["relationship_k1/R@50"], found["phrase_k1/R@50"]) == (0, 1)


@pytest.mark.parametrize("triplet", [(1, 0, 1), (0, 1, 1), (0, 0, 0), (1, 0, 0)])
def test_all_three_labels_must_agree(triplet: tuple[int, int, int]) -> None:
    found = recalls(pairs((BOX, FAR, [(triplet, 1.0)])), graph((BOX, (0, 0, 1), FAR)), tasks=TASKS)
    assert set(found.values()) == {0}


def test_duplicated_relations_need_a_prediction_each_unless_multi() -> None:
    row, pair = (BOX, (0, 0, 1), FAR), (BOX, FAR, [((0, 0, 1), 1.0)])
    once, twice = recalls(pairs(pair), graph(row, row)), recalls(pairs(pair, pair), graph(row, row))
    for task in ("relationship", "phrase"):
        assert (once[f"{task}_k1/R@50"], once[f"{task}_k1/R@50/multi"]) == (0.5, 1)
        assert (twice[f"{task}_k1/R@50"], twice[f"{task}_k1/R@50/multi"]) == (1, 1)


def test_greedy_takes_the_largest_overlap_then_the_first() -> None:
    label = (0, 0, 1)
    best, second = ([0, 0, 9, 8], label, FAR), (HALF, label, FAR)
    # The first prediction fits both and takes `best` although `second` precedes it; the next fits `best` alone.
    predicted = pairs((BOX, FAR, [(label, 0.9)]), ([0, 0, 9, 18], FAR, [(label, 0.8)]))
    found = recalls(predicted, graph(second, best))
    assert (found["relationship_k1/R@50"], found["relationship_k1/R@50/multi"]) == (0.5, 1)
    # With equal overlaps the order of the relations decides; the next prediction fits `left` alone.
    left, right = (HALF, label, FAR), ([0, 5, 9, 9], label, FAR)
    predicted = pairs((BOX, FAR, [(label, 0.9)]), (HALF, FAR, [(label, 0.8)]))
    assert recalls(predicted, graph(left, right))["relationship_k1/R@50"] == 0.5
    assert recalls(predicted, graph(right, left))["relationship_k1/R@50"] == 1


def test_k_keeps_the_best_of_each_pair_before_pooling() -> None:
    truth = graph((BOX, (0, 1, 1), FAR), (FAR, (1, 0, 0), BOX))
    predicted = pairs((BOX, FAR, [((0, 0, 1), 0.9), ((0, 1, 1), 0.8)]), (FAR, BOX, [((1, 0, 0), 0.1)]))
    found = recalls(predicted, truth, ks=(1, 2, 100), tops=(1, 2, 1000))
    assert [found[f"relationship_k{k}/R@{n}"] for k in (1, 2, 100) for n in (1, 2, 1000)] == [
        *(0, 0.5, 0.5),
        *(0, 0.5, 1),
        *(0, 0.5, 1),
    ]


def test_empty_slots_take_no_place_in_the_ranking() -> None:
    predicted = pairs((BOX, FAR, [((0, 0, 1), -math.inf)]), (BOX, FAR, [((0, 0, 1), -1e300)]))
    pair, slot = rank_triplets(predicted, 5, 10)
    assert (pair.tolist(), slot.tolist()) == ([1], [0])
    assert recalls(predicted, graph((BOX, (0, 0, 1), FAR)), tops=(1,))["relationship_k1/R@1"] == 1


def test_images_without_relations_or_predictions() -> None:
    row, hit = (BOX, (0, 0, 1), FAR), pairs((BOX, FAR, [((0, 0, 1), 1.0)]))
    metric = VRDRecall(ks=(1,), tops=(50,))
    assert math.isnan(metric.update([hit], [graph()]) or metric.compute()["relationship_k1/R@50"])
    metric.update([hit, pairs(), pairs()], [graph(row), graph(row, row, row), graph()])
    found = metric.compute()
    assert found["relationship_k1/R@50"] == 0.25  # relations of images without predictions count
    assert found["relationship_k1/R@50/image_mean"] == 0.5  # over the two images that have relations
    metric.update([], [])
    assert metric.compute() == found


def test_pair_order_is_immaterial_where_scores_differ() -> None:
    rng = np.random.default_rng(3)
    predictions, graphs, _ = world(11)
    distinct = [
        replace(p, scores=-np.sort(-rng.permutation(p.scores.size).reshape(p.scores.shape).astype(float), axis=1))
        for p in predictions
    ]
    orders = [rng.permutation(len(p.scores)) for p in distinct]
    shuffled = [
        PairPredictions(p.subject_boxes_xyxy[o], p.object_boxes_xyxy[o], p.triplets[o], p.scores[o])
        for p, o in zip(distinct, orders, strict=True)
    ]
    a, b = (evaluate_dataset(p, graphs, ks=(1, 3), tops=(2, 9)) for p in (distinct, shuffled))
    assert a.hits.sum() > 0
    np.testing.assert_array_equal(a.hits, b.hits)


def test_zero_shot_counts_only_unseen_triplets() -> None:
    truth = graph((BOX, (0, 0, 1), FAR), (BOX, (0, 1, 1), FAR), (BOX, (0, 2, 1), FAR))
    predicted = pairs((BOX, FAR, [((0, 0, 1), 0.9), ((0, 1, 1), 0.8)]))
    found = recalls(predicted, truth, ks=(1, 2), train_triplets=np.array([[0, 0, 1], [0, 0, 1]]))
    assert [found[f"relationship_k{k}/R@50/zero_shot"] for k in (1, 2)] == [0, 0.5]
    assert not any("zero_shot" in key for key in recalls(predicted, truth))
    assert math.isnan(recalls(predicted, truth, train_triplets=truth.triplets)["phrase_k1/R@50/zero_shot"])


def test_halves_add_up_as_processes_do() -> None:
    worlds = [world(seed) for seed in range(4)]
    predictions, graphs = ([x for w in worlds for x in w[i]] for i in (0, 1))
    whole, left, right = (VRDRecall((1, 3), (2, 9), TASKS, worlds[0][2]) for _ in range(3))
    whole.update(predictions, graphs)
    left.update(predictions[::2], graphs[::2])
    for prediction, truth in zip(predictions[1::2], graphs[1::2], strict=True):
        right.update([prediction], [truth])
    gathered = {id(value): [value, right.metric_state[name]] for name, value in left.metric_state.items()}
    left.dist_sync_fn = lambda state, group: gathered[id(state)]
    left.distributed_available_fn = lambda: True
    expected = {key: float(value) for key, value in whole.compute().items()}
    left_found = {key: float(value) for key, value in left.compute().items()}
    assert left_found == pytest.approx(expected, rel=1e-12)
    assert all(isinstance(state, torch.Tensor) and state.numel() <= 48 for state in left.metric_state.values())


def test_metric_can_be_copied_reset_and_named() -> None:
    metric = VRDRecall((1,), (50,), ("predicate",), names={"predicate": "phrcls"})
    metric.update([pairs((BOX, FAR, [((0, 0, 1), 1.0)]))], [graph((BOX, (0, 0, 1), FAR))])
    for twin in (copy.deepcopy(metric), pickle.loads(pickle.dumps(metric)), metric.clone()):
        assert twin.compute()["phrcls_k1/R@50"] == 1
    assert set(metric.compute()) == {f"phrcls_k1/R@50{m}{a}" for m in ("", "/multi") for a in ("", "/image_mean")}
    metric.reset()
    assert metric.truths == 0 and metric.hits.dtype == torch.int64 and metric.image_recall.dtype == torch.float64


GOOD = pairs((BOX, FAR, [((0, 0, 1), 0.9), ((0, 1, 1), 0.8)]))


@pytest.mark.parametrize(
    ("prediction", "message"),
    [
        (replace(GOOD, scores=np.array([[np.nan, 0.8]])), "bad.jpg: 1 scores are NaN"),
        (replace(GOOD, scores=np.array([[0.9, np.nan]])), "bad.jpg: 1 scores are NaN"),
        (replace(GOOD, scores=np.array([[np.nan]]), triplets=GOOD.triplets[:, :1]), "bad.jpg: 1 scores are NaN"),
        (replace(GOOD, scores=np.array([[0.8, 0.9]])), "bad.jpg: scores of pair 0 aren't descending"),
        (
            replace(GOOD, scores=np.array([[0.9]])),
            r"bad.jpg: expected shapes .* got \(\(1, 4\), \(1, 4\), \(1, 2, 3\), \(1, 1\)",
        ),
        (replace(GOOD, scores=np.array([0.9])), "bad.jpg: expected shapes"),
        (replace(GOOD, subject_boxes_xyxy=np.full((1, 4), np.nan)), "bad.jpg: predictions have non-finite boxes"),
        (replace(GOOD, triplets=GOOD.triplets - 1), "bad.jpg: predictions have negative labels"),
    ],
)
def test_faulty_predictions_name_their_image(prediction: PairPredictions, message: str) -> None:
    truth = graph((BOX, (0, 0, 1), FAR))
    with pytest.raises(ValueError, match=message):
        VRDRecall().update([GOOD, prediction], [truth, replace(truth, image="bad.jpg")])


def test_faulty_arguments() -> None:
    with pytest.raises(ValueError, match="one record of predictions per graph, got 1 and 0"):
        VRDRecall().update([GOOD], [])
    with pytest.raises(ValueError, match=r"ks must be integers of at least 1, got \(0, 1\)"):
        VRDRecall(ks=(0, 1))
    with pytest.raises(ValueError, match="tops must be"):
        VRDRecall(tops=())
    with pytest.raises(ValueError, match="tasks: unknown \\['phrases'\\]"):
        VRDRecall(tasks=("phrases",))
    with pytest.raises(ValueError, match="names: unknown"):
        VRDRecall(names={"predcls": "x"})
    with pytest.raises(ValueError, match="tasks is empty"):
        VRDRecall(tasks=())
    with pytest.raises(ValueError, match="at least 1, got k=1, top=0"):
        rank_triplets(GOOD, 1, 0)
