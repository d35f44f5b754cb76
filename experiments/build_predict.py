"""From a finished run to its graphs of single images: a user's own, or the run's test images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from data_modules.collation import RelationExample
from data_modules.detections_file import read_coco_results, read_detections
from data_modules.errors import DataError
from data_modules.image_loading import decode_rgb, header_size
from data_modules.relation_data import ImageReader, RelationDataset, RelationItem, collate_items
from data_modules.relation_module import RelationDataModule
from data_modules.reldn_files import read_detection_annotations
from data_modules.scene_graph import Detections, SceneGraph
from data_modules.suppression import suppress
from experiments.build_detector import detecting
from experiments.build_ranker import Ranker, context_of, for_any_images
from experiments.config import Config
from experiments.errors import ExperimentError
from experiments.graph_picture import Graph
from experiments.machine import Machine
from experiments.runs import Run

REMEDY = "give another file, or repair it"
Pixels = NDArray[np.uint8]


class Predictor:
    """A finished run's model on images of a user.

    Args:
        run: A run that scores pairs; its detector and all that it trained is done.
        detector: The training of its detector, or None.
        machine: This machine's folders.
        images: Image files by name.
        per_pair: See `Ranker`.
        detections: Objects in the images: our npz, or a COCO list of results; None asks the detector.
        index: Annotations whose ids such a list uses.

    Raises:
        DataError: An image is not readable, or the detections are damaged or lack one.
    """

    def __init__(
        self,
        run: Run,
        detector: Run | None,
        machine: Machine,
        images: Mapping[str, Path],
        per_pair: int = 0,
        detections: Path | None = None,
        index: Path | None = None,
    ):
        self._images, self._data_config = images, run.config["data"]
        self._sizes = {name: header_size(path, REMEDY) for name, path in images.items()}
        self._ranker = Ranker(for_any_images(run), machine, per_pair)
        self._reader = _reader(run.config) if run.config.get("model", {}).get("visual") else None
        self._detections = None if detections is None else self._read(detections, index)
        self._detector = None
        if self._detections is None:
            assert detector is not None
            needs = Run(run.paper, run.stage_name, run.seed, run.config, {"detector": detector})
            module = detecting(detector.config, context_of(needs, machine), self._ranker.data.num_objects)
            self._detector = module.to(self._ranker.device).eval()
            self._detector_reader = _reader(detector.config)

    def predict(self, top: int, with_truth: bool) -> Iterator[tuple[Graph, Pixels]]:
        """Yield the graph and the pixels uint8 `[H, W, 3]` of one image after another.

        Args:
            top: Length of the ranking.
            with_truth: Say of triplets whether the annotations of the run's data set have them.

        Raises:
            DataError: An image is damaged.
            ExperimentError: No image is annotated there.
        """
        truths = self._truths() if with_truth else {}
        for name, path in self._images.items():
            pixels = decode_rgb(path, REMEDY).permute(1, 2, 0).contiguous().numpy()
            found = self._detect(name) if self._detections is None else self._detections[name]
            kept = found.scores >= self._data_config.get("min_score", 0.0)
            found = Detections(found.boxes_xyxy[kept], found.labels[kept], found.scores[kept])
            found = suppress(found, self._data_config.get("nms", 1.0))
            item = self._item(name, found, self._reader)
            yield self._ranker.rank(item, top, truths.get(name)), pixels

    def _item(self, name: str, boxes: Detections, reader: ImageReader | None) -> RelationItem:
        example = RelationExample(
            _unannotated(name, self._sizes[name]), boxes, self._sizes[name], np.zeros((0, 3), dtype=np.int64)
        )
        pixels = None if reader is None else reader.read(str(self._images[name].absolute()), self._sizes[name], False)
        return example, pixels

    @torch.inference_mode()
    def _detect(self, name: str) -> Detections:
        assert self._detector is not None
        nothing = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0))
        batch = collate_items([self._item(name, nothing, self._detector_reader)]).to(self._ranker.device)
        return self._detector.predict_step(batch, 0)[0]

    def _read(self, path: Path, index: Path | None) -> dict[str, Detections]:
        names = self._ranker.data.object_names
        if path.suffix == ".json":
            if index is None:
                raise ExperimentError(f"{path}: name the annotations whose ids this COCO list uses with --index FILE")
            found = read_coco_results(path, read_detection_annotations(index), names)
        else:
            found = read_detections(path, names)
        graphs = [_unannotated(_among(name, found.detections), size) for name, size in self._sizes.items()]
        return dict(zip(self._sizes, found.fitted(graphs, list(self._sizes.values())), strict=True))

    def _truths(self) -> dict[str, SceneGraph]:
        """Return the annotations of those images that the run's data set has, in the images' own frames."""
        data = self._ranker.data
        known = {graph.image: graph for graph in (*data.train_graphs, *data.val_graphs, *data.test_graphs)}
        found = {name: known[other] for name in self._images if (other := _among(name, known)) in known}
        if not found:
            raise ExperimentError(
                f"--truth: {data.dataset} annotates none of these images, as {next(iter(self._images))!r}; leave it out"
            )
        return {name: _in_frame(graph, self._sizes[name]) for name, graph in found.items()}


class ScoredImages:
    """Test images of some runs on one data set, with the graphs that each run's model sees.

    Args:
        runs: Runs that score pairs; all they need is done.
        machine: This machine's folders.
        per_pair: See `Ranker`.

    Raises:
        ExperimentError: The runs don't score the same images.
    """

    def __init__(self, runs: list[Run], machine: Machine, per_pair: int = 0):
        self._rankers = [Ranker(run, machine, per_pair) for run in runs]
        self._sets = [_test_set(ranker.data) for ranker in self._rankers]
        first, *others = [ranker.data for ranker in self._rankers]
        for run, other in zip(runs[1:], others, strict=True):
            if first.predicate_names != other.predicate_names or not _same(first.test_graphs, other.test_graphs):
                raise ExperimentError(
                    f"run {run.name} scores other images than run {runs[0].name}: name runs on one set"
                )
        first.images, first.image_sides, first.image_cache = "uint8", None, None
        reader = _test_set(first).reader
        assert reader is not None
        self._reader = replace(reader, frame=0)

    def chosen(self, count: int) -> dict[str, int]:
        """Return so many annotated images, evenly spaced over the data set, and their places in it."""
        graphs = self._sets[0].graphs
        related = [i for i, graph in enumerate(graphs) if len(graph.relations)]
        places = np.linspace(0, len(related) - 1, min(count, len(related))).round().astype(int)
        return {graphs[related[i]].image: related[i] for i in places}

    def graphs(self, place: int, top: int) -> tuple[list[Graph], Pixels | None]:
        """Return the graph of each run at one place, and the pixels uint8 `[H, W, 3]` if they are at hand."""
        found = [
            ranker.rank(images[place], top, images.graphs[place])
            for ranker, images in zip(self._rankers, self._sets, strict=True)
        ]
        try:
            pixels = self._reader.read(found[0].image, found[0].size_wh, False)
        except DataError:
            return found, None
        size = float(pixels.shape[2]), float(pixels.shape[1])
        for number, images in enumerate(self._sets):
            if images.graphs[place].size_wh is None:  # what the model got is an estimate
                found[number] = replace(found[number], size_wh=size)
        return found, pixels.permute(1, 2, 0).contiguous().numpy()


def _reader(config: Config) -> ImageReader:
    backbone = config["backbone"]
    sides = (backbone["short_side"], backbone["long_side"])
    return ImageReader((Path(),), backbone["pixels"], sides, None, REMEDY)


def _unannotated(name: str, size_wh: tuple[int, int]) -> SceneGraph:
    nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros((0, 3), np.int64)
    return SceneGraph(name, size_wh, *nothing)


def _among(name: str, known: Mapping[str, object]) -> str:
    """Return an image's name among known ones: of VRD's, some files have another suffix than the annotations say."""
    if name in known:
        return name
    stem = Path(name).with_suffix("")
    alike = [other for other in known if Path(other).with_suffix("") == stem]
    return alike[0] if len(alike) == 1 else name


def _same(graphs: Sequence[SceneGraph], others: Sequence[SceneGraph]) -> bool:
    """Return whether these are the same annotations of the same images."""
    pairs = zip(graphs, others, strict=False)
    return len(graphs) == len(others) and all(
        a.image == b.image
        and np.array_equal(a.boxes_xyxy, b.boxes_xyxy)
        and np.array_equal(a.labels, b.labels)
        and np.array_equal(a.relations, b.relations)
        for a, b in pairs
    )


def _in_frame(graph: SceneGraph, size_wh: tuple[int, int]) -> SceneGraph:
    """Return the annotations in an image's own frame; those that state no size are in it already."""
    if graph.size_wh is None or graph.size_wh == size_wh:
        return graph
    factors = np.tile(np.array(size_wh) / np.array(graph.size_wh), 2)
    return replace(graph, size_wh=size_wh, boxes_xyxy=(graph.boxes_xyxy * factors).astype(np.float32))


def _test_set(data: RelationDataModule) -> RelationDataset:
    dataset = data.test_dataloader().dataset
    assert isinstance(dataset, RelationDataset)
    return dataset
