"""The evaluators of Visual Genome and Open Images against image-by-image loops."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from data_modules.scene_graph import PairPredictions, SceneGraph
from lit_modules.metrics.openimages import OpenImagesScore
from lit_modules.metrics.vrd import VRDRecall
from scripts.bench_measure import Measurement, milliseconds
from scripts.bench_relations_loops import openimages_measures, vg_recalls

TestSet = tuple[list[PairPredictions], list[SceneGraph]]
Evaluator = Callable[[Sequence[PairPredictions], Sequence[SceneGraph]], dict[str, float]]
MARK = 20.0
VG_TOPS = (20, 50, 100)


@dataclass(frozen=True)
class SetSize:
    """What a generated image holds.

    Attributes:
        detections: Boxes that are ranked; all ordered pairs of them are candidates.
        boxes: Annotated boxes.
        relations: Annotated relations.
        objects: Categories of boxes.
        predicates: Categories of relations.
        k: Predicates ranked per pair.
    """

    detections: int
    boxes: int
    relations: int
    objects: int
    predicates: int
    k: int


VG = SetSize(detections=100, boxes=12, relations=20, objects=150, predicates=50, k=1)
OPEN_IMAGES = SetSize(detections=100, boxes=6, relations=5, objects=57, predicates=9, k=2)
FEW_DETECTIONS = replace(OPEN_IMAGES, detections=30)
PREDICATES = tuple(f"predicate {i}" for i in range(OPEN_IMAGES.predicates))


def generated_images(size: SetSize, images: int, seed: int = 0) -> TestSet:
    """Return random annotations, and predictions that find about half of them.

    The first detections are the annotated boxes with an error of a few pixels, some with a wrong label; the others are
    random boxes of low confidence. Related pairs mostly have their own predicate first.
    """
    draw = np.random.default_rng(seed)
    subject, obj = np.argwhere(~np.eye(size.detections, dtype=bool)).T
    predictions, graphs = [], []
    for number in range(images):
        corner, sides = draw.integers(1, 400, (size.detections, 2)), draw.integers(20, 300, (size.detections, 2))
        found = np.concatenate([corner, corner + sides], axis=1).astype(np.float32)
        labels = draw.integers(0, size.objects, size.detections)
        own = found[: size.boxes] + draw.integers(-8, 9, (size.boxes, 4)).astype(np.float32)
        pairs = draw.permutation(np.argwhere(~np.eye(size.boxes, dtype=bool)))[: size.relations]
        relations = np.insert(pairs, 1, draw.integers(0, size.predicates, len(pairs)), axis=1)
        graphs.append(SceneGraph(f"{number}.jpg", None, own, labels[: size.boxes].copy(), relations))
        is_mistaken = draw.random(size.detections) < 0.1
        labels = np.where(is_mistaken, (labels + 1) % size.objects, labels)
        ranked = np.stack([draw.integers(0, size.predicates, len(subject))] * size.k, axis=1)
        ranked = (ranked + np.arange(size.k)) % size.predicates
        scores = np.sort(draw.random((len(subject), size.k)), axis=1)[:, ::-1] * 0.3
        of_pair = {(s, o): i for i, (s, o) in enumerate(zip(subject.tolist(), obj.tolist(), strict=True))}
        for s, p, o in relations[draw.random(len(relations)) < 0.8].tolist():
            ranked[of_pair[s, o]] = (p + np.arange(size.k)) % size.predicates
            scores[of_pair[s, o]] += 0.5 * draw.random()
        triplets = np.stack(np.broadcast_arrays(labels[subject][:, None], ranked, labels[obj][:, None]), axis=2)
        predictions.append(PairPredictions(found[subject], found[obj], triplets, scores))
    return predictions, graphs


def vg_metric(predictions: Sequence[PairPredictions], graphs: Sequence[SceneGraph]) -> dict[str, float]:
    """Return the suite's recalls with one predicate a pair."""
    metric = VRDRecall(ks=(1,), tops=VG_TOPS, tasks=("relationship",))
    metric.update(predictions, graphs)
    return {key: float(value) for key, value in metric.compute().items()}


def openimages_metric(predictions: Sequence[PairPredictions], graphs: Sequence[SceneGraph]) -> dict[str, float]:
    """Return the suite's measures of Open Images."""
    metric = OpenImagesScore(PREDICATES)
    metric.update(predictions, graphs)
    return {key: float(value) for key, value in metric.compute().items()}


def vg_loop(predictions: Sequence[PairPredictions], graphs: Sequence[SceneGraph]) -> dict[str, float]:
    """Return the same recalls by loops."""
    return vg_recalls(predictions, graphs, VG_TOPS)


def openimages_loop(predictions: Sequence[PairPredictions], graphs: Sequence[SceneGraph]) -> dict[str, float]:
    """Return recall and average precisions by loops."""
    return openimages_measures(predictions, graphs, PREDICATES)


CASES: tuple[tuple[str, SetSize, Evaluator, Evaluator, float | None], ...] = (
    ("VG", VG, vg_metric, vg_loop, MARK),
    ("Open Images", OPEN_IMAGES, openimages_metric, openimages_loop, MARK),
    ("Open Images", FEW_DETECTIONS, openimages_metric, openimages_loop, None),
)


def measure_evaluators(images: int, reference_images: int, repeats: int) -> list[Measurement]:
    """Measure both protocols over that many images, the loops over the first few of them."""
    measurements = []
    for name, size, metric, loop, mark in CASES:
        predictions, graphs = generated_images(size, images)
        few = predictions[:reference_images], graphs[:reference_images]

        def ours(run: Evaluator = metric, given: TestSet = (predictions, graphs)) -> object:
            return run(*given)

        def reference(run: Evaluator = loop, given: TestSet = few) -> object:
            return run(*given)

        scale = images / reference_images
        gc.disable()  # else it takes two thirds of the loops' time, for objects that are all still needed
        try:
            time, reference_time = milliseconds(ours, reference, repeats)
        finally:
            gc.enable()
        title = f"{name} evaluation, {images} images, {size.detections} detections, {size.relations} relations: time"
        note = f"loops over {reference_images} images, times {scale:g}; no garbage collection"
        measurements.append(Measurement(title, "ms", time, scale * reference_time, note, mark=mark))
    return measurements
