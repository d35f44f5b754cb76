"""The LightningDataModule that the relation data sets of Visual Genome, VRD and Open Images share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch.utils.data import DataLoader, Dataset

from data_modules.detections_file import read_coco_results, read_detections
from data_modules.errors import DataError
from data_modules.image_loading import PIXEL_SCALES, ImageDataModule, check_choice, describe_file
from data_modules.relation_data import (
    EpochsCounted,
    Flip,
    ImageReader,
    Images,
    RelationDataset,
    annotated_boxes,
    collate_items,
)
from data_modules.reldn_files import (
    RELDN_REMEDY,
    DetectionAnnotations,
    read_detection_annotations,
    read_reldn_relations,
    with_all_boxes,
)
from data_modules.scene_graph import Detections, RelationBatch, SceneGraph
from data_modules.suppression import suppress

Split = Literal["train", "val", "test"]
Proposals = Literal["ground_truth", "file"]


class RelationDataModule(ImageDataModule, ABC):
    """A LightningDataModule of annotated graphs; a subclass reads names and splits.

    Args:
        root: Folder of the data set.
        batch_size: Images a batch.
        seed: Seed of the order of training images and of what is drawn for them.
        flip: Training images: as they are, doubled by mirrored ones, or each mirrored half of the time.
        one_predicate_per_pair: In training, keep a random one of several relations of one (subject, object) an epoch.
        images: "none" reads no image; "uint8" and the pixel scales of networks give `ImageRelationBatch`.
        image_sides: Short side of resized images in pixels, unless the long one would exceed the second number.
        num_workers: Loader processes, and threads that fill the cache.
        image_cache: Folder of the cache of decoded and resized images; None decodes the files in every epoch.
        proposals: Boxes that the model gets for held-out and scored images: the annotated nodes with their relations,
            or detections without relations. Training images have their annotated nodes.
        proposals_file: Those detections, also relative to `root`: our npz (see `detections_file`), or a COCO list of
            results that ends in `.json`.
        proposals_index: The annotations in COCO's format whose ids such a list uses, also relative to `root`; None
            takes RelDN's `detections_{train,val}.json` where those are read.
        min_score: Detections with a lower confidence, a fraction, are dropped.

    Attributes:
        nms: Detections that overlap a more confident one of their category by more than this are dropped too; 1, the
            default, keeps all. To be set before `setup`.
    """

    dataset = ""  # name in provenance
    remedy = ""  # what to do about images; ends error messages
    column_offset = 0.0  # see RelationExample.flipped
    clip_train = False  # cut training boxes at the image's borders
    frame: int | None = None  # see ImageReader
    all_proposals: tuple[str, ...] = ("ground_truth", "file")

    def __init__(
        self,
        root: str | Path,
        batch_size: int,
        seed: int,
        flip: Flip,
        one_predicate_per_pair: bool,
        images: Images,
        image_sides: tuple[int, int] | None,
        num_workers: int,
        image_cache: str | Path | None = None,
        proposals: str = "ground_truth",
        proposals_file: str | Path | None = None,
        proposals_index: str | Path | None = None,
        min_score: float = 0.0,
    ) -> None:
        super().__init__(batch_size, seed, num_workers)
        check_choice("flip", flip, ("none", "double", "random"))
        check_choice("images", images, ("none", "uint8", *PIXEL_SCALES))
        if image_sides is not None and not 0 < image_sides[0] <= image_sides[1]:
            raise ValueError(f"image_sides={image_sides}: expected 0 < short side <= long side")
        check_choice("proposals", proposals, self.all_proposals)
        if (proposals == "file") != (proposals_file is not None):
            given = f"proposals={proposals!r}, proposals_file={proposals_file}"
            raise ValueError(f"{given}: 'file' needs a file, and nothing else takes one")
        if not 0 <= min_score <= 1:
            raise ValueError(f"min_score={min_score}: expected a fraction from 0 to 1")
        self.root, self.flip, self.one_predicate_per_pair = Path(root), flip, one_predicate_per_pair
        self.images, self.image_sides, self.image_cache = images, image_sides, image_cache
        self.proposals, self.proposals_file, self.proposals_index = proposals, proposals_file, proposals_index
        self.min_score, self.nms = min_score, 1.0
        self._files: dict[str, Path] = {}
        self._proposals_files: dict[str, Path] = {}
        self._annotations: dict[str, DetectionAnnotations] = {}
        self._detections: dict[Split, list[Detections]] = {}
        self._graphs: dict[Split, list[SceneGraph]] = {}
        self._known_names: tuple[list[str], list[str]] | None = None

    def setup(self, stage: str | None = None) -> None:
        """Read the splits of a stage (`fit`: train and val, `validate`: val, `test` and `predict`: test; None: all).

        A split is read once, and the boxes that are scored in it.

        Raises:
            DataError: A file is missing, damaged or doesn't fit the others, or an image is in two splits.
            ValueError: More images are to be held out or drawn than there are, or a COCO list of results has no index.
        """
        stages: dict[str | None, tuple[Split, ...]] = {"fit": ("train", "val"), "validate": ("val",)}
        stages |= {"test": ("test",), "predict": ("test",), None: ("train", "val", "test")}
        for split in stages[stage]:
            self._split(split)
            self._boxes(split)

    @property
    def object_names(self) -> list[str]:
        """Names of the object categories; a name's position is its label."""
        return self._names()[0]

    @property
    def predicate_names(self) -> list[str]:
        """Names of the predicates; a name's position is its label."""
        return self._names()[1]

    @property
    def num_objects(self) -> int:
        """Number of object categories."""
        return len(self.object_names)

    @property
    def num_predicates(self) -> int:
        """Number of predicates."""
        return len(self.predicate_names)

    @property
    def train_graphs(self) -> list[SceneGraph]:
        """The graphs trained on, without mirrored ones."""
        return self._split("train")

    @property
    def val_graphs(self) -> list[SceneGraph]:
        """The graphs held out of the training images."""
        return self._split("val")

    @property
    def test_graphs(self) -> list[SceneGraph]:
        """The graphs that are scored."""
        return self._split("test")

    @property
    def detections(self) -> list[Detections]:
        """The boxes that are scored, one record for each of `test_graphs`; annotated nodes have score 1."""
        found = self._boxes("test")
        return [annotated_boxes(graph) for graph in self.test_graphs] if found is None else found

    @property
    def annotation_files(self) -> dict[str, Path]:
        """The annotation files read so far, by name."""
        return dict(self._files)

    @abstractmethod
    def is_official(self) -> bool:
        """Tell whether these are the published files and splits, as far as checksums or counts can."""

    def train_dataloader(self) -> DataLoader[RelationBatch]:
        """Shuffled training batches from `start_step` on."""
        dataset = self._dataset("train")
        return self._train_loader(dataset, len(dataset), collate_items)

    def val_dataloader(self) -> DataLoader[RelationBatch] | list[Any]:
        """Batches of the held-out images in their order; no loader where there are none."""
        return self._test_loader(self._dataset("val"), collate_items) if self.val_graphs else []

    def test_dataloader(self) -> DataLoader[RelationBatch]:
        """Batches of the scored images in their order, all of them in every process."""
        return self._test_loader(self._dataset("test"), collate_items)

    def provenance(self) -> dict[str, Any]:
        """Describe the data for a run's record.

        Returns:
            `dataset`, `official`, `proposals`, `files` (name, bytes and sha256 of each file of annotations or
            detections read so far), and `counts` of the images, objects, relations and detections in each split read so
            far (all of them, if none was), and of the boxes that reach outside their images.
        """
        if not self._graphs:
            self.setup()
        counts: dict[str, int] = {}
        for split, graphs in self._graphs.items():
            counts[f"{split}_images"] = len(graphs)
            counts[f"{split}_objects"] = sum(len(g.labels) for g in graphs)
            counts[f"{split}_relations"] = sum(len(g.relations) for g in graphs)
        for split, detections in self._detections.items():
            counts[f"{split}_detections"] = sum(len(d.labels) for d in detections)
        counts["boxes_outside_image"] = sum(_outside(g) for graphs in self._graphs.values() for g in graphs)
        files = [describe_file(name, path) for name, path in (self._files | self._proposals_files).items()]
        record: dict[str, Any] = {"dataset": self.dataset, "official": self.is_official()}
        suppressed = {"nms": self.nms} if self.nms < 1 else {}
        return record | suppressed | {"proposals": self.proposals, "files": files, "counts": counts}

    def _file(self, name: str) -> Path:
        self._files[name] = self.root / name
        return self._files[name]

    def _names(self) -> tuple[list[str], list[str]]:
        if self._known_names is None:
            self._known_names = self._read_names()
        return self._known_names

    def _split(self, split: Split) -> list[SceneGraph]:
        if split not in self._graphs:
            graphs = self._read(split)
            names = {g.image for g in graphs}
            for other, known in self._graphs.items():
                shared = sorted(names & {g.image for g in known})
                if shared:
                    found = f"{len(shared)} images are in both {other} and {split}, as {shared[0]!r}"
                    raise DataError(f"{self.root}: {found}; fetch the annotation files again")
            self._graphs[split] = graphs
        return self._graphs[split]

    def _boxes(self, split: Split) -> list[Detections] | None:
        """Return the detections that the model gets for a split's images; None where it gets the annotated nodes."""
        if split == "train" or self.proposals == "ground_truth":
            return None
        if split not in self._detections:
            found = self._read_detections(split) if self._split(split) else []
            self._detections[split] = [suppress(each, self.nms) for each in found]
        return self._detections[split]

    def _read_detections(self, split: Split) -> list[Detections]:
        assert self.proposals_file is not None
        path = self.root / self.proposals_file
        self._proposals_files[path.name] = path
        if path.suffix == ".json":
            index, rename = self._index(split), self._index_names(split)
            found = read_coco_results(path, index, self.object_names, lambda name: rename.get(name, name))
        else:
            found = read_detections(path, self.object_names)
        return found.fitted(self._split(split), self._frames(split), self.min_score)

    def _index(self, split: Split) -> DetectionAnnotations:
        """Return the annotations whose ids a COCO list of results for a split uses."""
        if self.proposals_index is None:
            raise ValueError(f"proposals_file={self.proposals_file}: name the annotations it is for as proposals_index")
        path = self.root / self.proposals_index
        self._proposals_files[path.name] = path
        return read_detection_annotations(path)

    def _index_names(self, split: Split) -> dict[str, str]:
        """Return the annotated image names by those of the index, where they differ."""
        return {}

    def _reldn_annotations(self, name: str) -> DetectionAnnotations:
        if name not in self._annotations:
            self._annotations[name] = read_detection_annotations(self._file(name))
        return self._annotations[name]

    def _reldn_graphs(self, relations: str, detections: str, all_boxes: bool) -> list[SceneGraph]:
        """Read a side of RelDN's JSON files; with all annotated boxes as nodes, or those of relations alone."""
        annotations = self._reldn_annotations(detections)
        if annotations.names != self.object_names:
            raise DataError(f"{self.root / detections}: its categories differ from the data set's; {RELDN_REMEDY}")
        sizes = annotations.sizes_wh
        graphs = read_reldn_relations(self._file(relations), sizes, self.num_objects, self.num_predicates)
        return [with_all_boxes(g, annotations) for g in graphs] if all_boxes else graphs

    def _dataset(self, split: Split) -> RelationDataset:
        graphs, trained = self._split(split), split == "train"
        reader = None
        if self.images != "none":
            reader = self._reader(split)
            if self.image_cache is not None:
                reader = reader.with_cache([g.image for g in graphs], self.image_cache, self.num_workers)
        return RelationDataset(
            graphs,
            self._sizes(split),
            seed=self.seed,
            flip=self.flip if trained else "none",
            column_offset=self.column_offset,
            one_predicate_per_pair=self.one_predicate_per_pair and trained,
            clip=self.clip_train and trained,
            reader=reader,
            detections=self._boxes(split),
        )

    def _reader(self, split: Split) -> ImageReader:
        return ImageReader(self._image_folders(split), self.images, self.image_sides, self.frame, self.remedy)

    def _loader(self, dataset: Dataset[Any], collate: Any, **order: Any) -> DataLoader[Any]:
        if "batch_sampler" in order:
            order["batch_sampler"] = EpochsCounted(order["batch_sampler"])
        return super()._loader(dataset, collate, **order)

    def _frames(self, split: Split) -> Sequence[tuple[float, float] | None]:
        """Return width and height in pixels of the frame of each image's boxes; None where nobody knows them."""
        return [graph.size_wh for graph in self._split(split)]

    def _sizes(self, split: Split) -> list[tuple[float, float]]:
        """Return the width and height in pixels that the model gets with each image."""
        frames = [frame for frame in self._frames(split) if frame is not None]
        assert len(frames) == len(self._split(split))
        return frames

    @abstractmethod
    def _image_folders(self, split: Split) -> tuple[Path, ...]:
        """Return the folders that a split's images may lie in, the likeliest first."""

    @abstractmethod
    def _read_names(self) -> tuple[list[str], list[str]]:
        """Read the names of the object categories and of the predicates."""

    @abstractmethod
    def _read(self, split: Split) -> list[SceneGraph]:
        """Read a split's graphs."""


def _outside(graph: SceneGraph) -> int:
    """Count the annotated boxes that reach outside the image, past its edges."""
    if graph.size_wh is None:
        return 0
    low, high = graph.boxes_xyxy[:, :2], graph.boxes_xyxy[:, 2:]
    return int(((low < 0) | (high > np.array(graph.size_wh))).any(axis=1).sum())
