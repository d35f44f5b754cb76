"""Annotated graphs as a relation model gets them, with pixels where asked: examples, batches and their order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from data_modules.collation import RelationExample, collate
from data_modules.errors import DataError
from data_modules.image_loading import Pixels, join_images, scale_pixels
from data_modules.image_sources import FileImages, Resize, SizedImages, cached
from data_modules.sampling import ResumableBatchSampler
from data_modules.scene_graph import Detections, ImageRelationBatch, RelationBatch, SceneGraph

Flip = Literal["none", "double", "random"]
Images = Literal["none", "uint8"] | Pixels


@dataclass(frozen=True)
class ImageReader:
    """How images are found, resized and scaled.

    Attributes:
        folders: Where images may lie, tried in this order.
        pixels: "uint8" for RGB as it is, or a network's pixel scale.
        sides: Short side after resizing, unless the long one would exceed the second number; None keeps the size.
        frame: Longer side of the annotated frame in pixels, where that isn't the image's own; 0 where the frame says
            nothing about the image.
        remedy: What to do about a missing or damaged image; ends error messages.
        cache: Resized images of a cache, and the place of each name in it; None decodes the files.
    """

    folders: tuple[Path, ...]
    pixels: Images
    sides: tuple[int, int] | None
    frame: int | None
    remedy: str
    cache: tuple[SizedImages, dict[str, int]] | None = None

    def with_cache(self, names: Sequence[str], folder: str | Path, num_workers: int) -> ImageReader:
        """Return a reader of these images that decodes them only once, into a cache under `folder`.

        Raises:
            DataError: An image is missing or damaged, or the cache can't be written.
        """
        distinct = list(dict.fromkeys(names))
        images = cached(self._files(distinct), folder, num_workers)
        return replace(self, cache=(images, {name: row for row, name in enumerate(distinct)}))

    def read(self, name: str, size_wh: tuple[float, float], mirrored: bool) -> Tensor:
        """Return an image `[3, h, w]`.

        Raises:
            DataError: The image is missing, damaged or of another size than the annotations say.
        """
        images, row = (self._files([name]), 0) if self.cache is None else (self.cache[0], self.cache[1][name])
        image, (width, height) = images.read_sized(row)
        expected = (width, height) if self.frame is None else in_frame((width, height), self.frame)
        if self.frame != 0 and expected != size_wh:
            found = f"{width} x {height} pixels don't fit the annotated size {size_wh}"
            raise DataError(f"{self._path(name)}: {found}; {self.remedy}")
        if mirrored:
            image = image.flip(2)  # after resizing, which would round the mirrored image differently
        scaled = image if self.pixels in ("none", "uint8") else scale_pixels(image, self.pixels)  # type: ignore[arg-type]
        return scaled.as_subclass(Tensor)

    def _files(self, names: Sequence[str]) -> FileImages:
        paths = tuple(str(self._path(name)) for name in names)
        resize = None if self.sides is None else Resize(*self.sides)
        return FileImages(Path(), paths, self.remedy, resize, decoder="torchvision")

    def _path(self, name: str) -> Path:
        candidates = [folder / name for folder in self.folders]
        return next((path for path in candidates if path.is_file()), candidates[0])


def in_frame(size_wh: tuple[int, int], frame: int) -> tuple[int, int]:
    """Return width and height in pixels of an image resized so that its longer side is `frame`."""
    scale = frame / max(*size_wh, 1)
    return round(size_wh[0] * scale), round(size_wh[1] * scale)


RelationItem = tuple[RelationExample, Tensor | None]


class RelationDataset(Dataset[RelationItem]):
    """Annotated images as a relation model gets them.

    An index counts on from epoch to epoch: `epoch * len + i` is image i in that epoch. What is drawn for it (the
    predicate of a pair, a mirrored image) depends on (seed, epoch, i) alone, not on the process or the order.

    Args:
        graphs: Annotated graphs.
        sizes_wh: Their widths and heights in pixels.
        seed: Seed of the draws.
        flip: "double" appends every image mirrored left to right, "random" mirrors half of them.
        column_offset: See `RelationExample.flipped`.
        one_predicate_per_pair: Of several relations of one (subject, object), keep a random one.
        clip: Cut the boxes that the model gets at the image's borders.
        reader: Reads the images, or None.
        detections: The boxes that the model gets, one record a graph, without relations among them; None gives it the
            graphs' nodes and relations.
    """

    def __init__(
        self,
        graphs: Sequence[SceneGraph],
        sizes_wh: Sequence[tuple[float, float]],
        seed: int = 0,
        flip: Flip = "none",
        column_offset: float = 0.0,
        one_predicate_per_pair: bool = False,
        clip: bool = False,
        reader: ImageReader | None = None,
        detections: Sequence[Detections] | None = None,
    ) -> None:
        self.graphs, self.sizes_wh, self.seed, self.detections = graphs, sizes_wh, seed, detections
        self.flip, self.column_offset, self.clip = flip, column_offset, clip
        self.one_predicate_per_pair, self.reader = one_predicate_per_pair, reader

    def __len__(self) -> int:
        return len(self.graphs) * (2 if self.flip == "double" else 1)

    def __getitem__(self, index: int) -> RelationItem:
        """Return one image's example, and its pixels if there is a reader."""
        epoch, number = divmod(index, len(self))
        mirrored, image = divmod(number, len(self.graphs))
        rng = np.random.default_rng([self.seed, epoch, number])
        flips = bool(mirrored) or (self.flip == "random" and rng.random() < 0.5)
        graph, size = self.graphs[image], self.sizes_wh[image]
        if self.detections is None:
            boxes = annotated_boxes(graph)
            relations = _one_per_pair(graph.relations, rng) if self.one_predicate_per_pair else graph.relations
        else:
            boxes, relations = self.detections[image], np.zeros((0, 3), dtype=np.int64)
        if self.clip:
            limits = np.array(size * 2, dtype=np.float32)
            boxes = replace(boxes, boxes_xyxy=np.clip(boxes.boxes_xyxy, 0, limits))
        example = RelationExample(graph, boxes, size, relations)
        pixels = self.reader.read(graph.image, size, flips) if self.reader else None
        return example.flipped(self.column_offset) if flips else example, pixels


def annotated_boxes(graph: SceneGraph) -> Detections:
    """Return the annotated nodes as boxes with score 1."""
    return Detections(graph.boxes_xyxy, graph.labels, np.ones(len(graph.labels)))


def collate_items(items: Sequence[RelationItem]) -> RelationBatch:
    """Join images without padding; with pixels if the items have them."""
    batch = collate([example for example, _ in items])
    images = [image for _, image in items if image is not None]
    if not images:
        return batch
    return ImageRelationBatch(**{f.name: getattr(batch, f.name) for f in fields(batch)}, images=join_images(images))


class EpochsCounted(Sampler[list[int]]):
    """The batches of a sampler, whose indices count on from epoch to epoch (see `RelationDataset`)."""

    def __init__(self, batches: ResumableBatchSampler) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[list[int]]:
        first = self.batches.epoch * self.batches.size
        for batch in self.batches:
            yield [first + index for index in batch]

    def __len__(self) -> int:
        return len(self.batches)


def _one_per_pair(relations: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Keep a random relation of every (subject, object), each with equal chance, duplicates counted."""
    order = rng.permutation(len(relations))
    _, first = np.unique(relations[order][:, ::2], axis=0, return_index=True)
    return relations[np.sort(order[first])]
