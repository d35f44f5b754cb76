"""VRD evaluation of a whole test set against image-by-image loops."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_modules.scene_graph import PairPredictions, SceneGraph
from data_modules.vrd import VRDDataModule
from lit_modules.frequency import FrequencyPrior
from lit_modules.functional.frequency import predicate_counts, predicate_probabilities
from lit_modules.metrics.vrd import Task, evaluate_dataset, triplet_set
from scripts.bench_measure import Measurement, milliseconds

NUM_OBJECTS, NUM_PREDICATES = 100, 70
TASKS: tuple[Task, ...] = ("relationship", "phrase")
TOPS = (50, 100)
LIMIT_MS = 500.0

TestSet = tuple[list[PairPredictions], list[SceneGraph]]


def generated_test_set(images: int, seed: int = 0) -> TestSet:
    """Return random annotations and predictions of the size of the VRD test set.

    An image has 2 to 14 detections, so that 1,000 of them have about 68,000 ordered pairs with 70 predicates each, and
    0 to 15 relations between annotated boxes that are detected with an error of a few pixels.
    """
    draw = np.random.default_rng(seed)
    predictions, graphs = [], []
    for number in range(images):
        count = int(draw.integers(2, 15))
        corner, sides = draw.integers(1, 400, (count, 2)), draw.integers(20, 300, (count, 2))
        boxes_xyxy = np.concatenate([corner, corner + sides], axis=1).astype(np.float32)
        labels = draw.integers(0, NUM_OBJECTS, count)
        subject, obj = np.argwhere(~np.eye(count, dtype=bool)).T
        relations = np.stack([subject, draw.integers(0, NUM_PREDICATES, len(subject)), obj], axis=1)
        relations = relations[draw.permutation(len(subject))[: draw.integers(0, 16)]]
        graphs.append(SceneGraph(f"{number}.jpg", None, boxes_xyxy, labels, relations))
        found = boxes_xyxy + draw.integers(-8, 9, (count, 4)).astype(np.float32)
        scores = -np.sort(-(draw.random((len(subject), NUM_PREDICATES)) ** 8), axis=1)
        order = np.argsort(draw.random(scores.shape), axis=1)
        ends = (np.broadcast_to(labels[end][:, None], order.shape) for end in (subject, obj))
        triplets = np.stack([next(ends), order, next(ends)], axis=2)
        predictions.append(PairPredictions(found[subject], found[obj], triplets, scores))
    return predictions, graphs


def real_test_set(root: Path) -> TestSet:
    """Return the annotations of the VRD test set and the frequency prior's ranking of Lu et al.'s detections."""
    data = VRDDataModule(root, batch_size=16, seed=0, proposals="lu2016", image_size="box_extent")
    data.setup()
    seen = np.concatenate([graph.triplets for graph in data.train_graphs])
    table = predicate_probabilities(predicate_counts(seen, data.num_objects, data.num_predicates), None)
    evaluation: dict[str, Any] = {"pairs": "all", "ks": (NUM_PREDICATES,), "tops": TOPS, "matching": "greedy"}
    prior = FrequencyPrior(table, free_k=0, train_triplets=seen, **evaluation)
    with torch.no_grad():
        predictions = [record for batch in data.test_dataloader() for record in prior.predict_pairs(batch)]
    return predictions, data.test_graphs


def measure_evaluation(test_set: TestSet, source: str, reference_images: int, repeats: int) -> list[Measurement]:
    """Measure both tasks, both matchings and zero-shot recall of the k = 70 best predicates of each pair."""
    predictions, graphs = test_set
    oracle = importlib.import_module("tests.lit_modules.metrics.reference_vrd")
    train = triplet_set(np.concatenate([graph.triplets for graph in graphs[::2]]))
    some = slice(None, None, max(1, len(graphs) // reference_images))
    few_predictions, few_graphs = predictions[some], graphs[some]

    def ours() -> object:
        return evaluate_dataset(predictions, graphs, ks=(NUM_PREDICATES,), tops=TOPS, tasks=TASKS, train_triplets=train)

    def reference() -> object:
        return oracle.recalls(few_predictions, few_graphs, (NUM_PREDICATES,), TOPS, TASKS, train)

    pairs = sum(len(p.scores) for p in predictions)
    scale = pairs / sum(len(p.scores) for p in few_predictions)
    name = f"VRD evaluation, {len(graphs)} images, {pairs} pairs, k={NUM_PREDICATES}: time"
    note = f"{source}; loops over {len(few_graphs)} images, times {scale:.1f} (by pairs)"
    time, reference_time = milliseconds(ours, reference, repeats)
    return [Measurement(name, "ms", time, scale * reference_time, note, limit=LIMIT_MS)]
