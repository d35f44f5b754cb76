"""Plain records of scene graphs, shared by every relation data set, model and metric."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, slots=True)
class SceneGraph:
    """The annotated graph of one image.

    Attributes:
        image: File name as the annotations spell it.
        size_wh: Width and height in pixels, or None where no image file was read.
        boxes_xyxy: float32 `[N, 4]`, one row a node, pixel coordinates whose last row and column belong to the box.
        labels: int64 `[N]`, 0-based object categories.
        relations: int64 `[M, 3]`, rows (subject node, predicate, object node); exact duplicates are kept.
    """

    image: str
    size_wh: tuple[int, int] | None
    boxes_xyxy: NDArray[np.float32]
    labels: NDArray[np.int64]
    relations: NDArray[np.int64]

    @property
    def triplets(self) -> NDArray[np.int64]:
        """int64 `[M, 3]`: (subject category, predicate, object category) of every relation."""
        subject, predicate, obj = self.relations.T
        return np.stack([self.labels[subject], predicate, self.labels[obj]], axis=1)


@dataclass(frozen=True, slots=True)
class Detections:
    """Detected objects of one image.

    Attributes:
        boxes_xyxy: float32 `[D, 4]`, pixels, same convention as `SceneGraph.boxes_xyxy`.
        labels: int64 `[D]`, 0-based object categories.
        scores: float64 `[D]`, confidences in [0, 1].
    """

    boxes_xyxy: NDArray[np.float32]
    labels: NDArray[np.int64]
    scores: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class PairPredictions:
    """The best triplets of every candidate pair of one image.

    Attributes:
        subject_boxes_xyxy: float32 `[P, 4]`, pixels.
        object_boxes_xyxy: float32 `[P, 4]`, pixels.
        triplets: int64 `[P, K, 3]`, 0-based (subject category, predicate, object category), best first within a pair.
        scores: float64 `[P, K]`, descending along K. Any monotone scale (probability or log); -inf marks an empty slot.
    """

    subject_boxes_xyxy: NDArray[np.float32]
    object_boxes_xyxy: NDArray[np.float32]
    triplets: NDArray[np.int64]
    scores: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class RaggedImages:
    """Images or label maps of different sizes, one after another in one flat tensor: one transfer and no padding.

    Attributes:
        values: `[sum of all sizes]`, every image's elements in row-major order.
        shapes: The shape of each image, `[C, H, W]` or `[H, W]`.
    """

    values: Tensor
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, images: Sequence[Tensor]) -> RaggedImages:
        """Join images of one dtype."""
        plain = [image.as_subclass(Tensor).flatten() for image in images]
        return cls(torch.cat(plain), tuple(tuple(image.shape) for image in images))

    def __len__(self) -> int:
        return len(self.shapes)

    def __iter__(self) -> Iterator[Tensor]:
        parts = self.values.split([int(np.prod(shape)) for shape in self.shapes])
        return (part.view(shape) for part, shape in zip(parts, self.shapes, strict=True))

    def __getitem__(self, index: int) -> Tensor:
        return list(self)[index]

    def stacked(self) -> Tensor:
        """Return all images as one view, `[B, C, H, W]` or `[B, H, W]`.

        Raises:
            ValueError: They differ in size.
        """
        if len(set(self.shapes)) != 1:
            raise ValueError(
                f"images of {len(set(self.shapes))} sizes can't be stacked: {sorted(set(self.shapes))[:3]}"
            )
        return self.values.view(len(self.shapes), *self.shapes[0])

    def to(self, *args: Any, **kwargs: Any) -> RaggedImages:
        """Return them moved as `torch.Tensor.to` moves them."""
        return replace(self, values=self.values.to(*args, **kwargs))

    def pin_memory(self) -> RaggedImages:
        """Return them in page-locked memory, from which copies to a GPU are fast."""
        return replace(self, values=self.values.pin_memory())


@dataclass(frozen=True, slots=True)
class RelationBatch:
    """Several images, their boxes concatenated without padding.

    Attributes:
        boxes_xyxy: float32 `[N, 4]`, boxes of all images one after another, pixels.
        labels: int64 `[N]`, 0-based object categories.
        scores: float64 `[N]`, detection confidences; 1 for annotated boxes.
        image_index: int64 `[N]`, ascending, the image (0 to B-1) of each box.
        sizes_wh: float32 `[B, 2]`, image widths and heights in pixels.
        relations: int64 `[M, 3]`, (subject box, predicate, object box) with indices into the batch's boxes.
        graphs: The B annotated graphs, for the metrics.
    """

    boxes_xyxy: Tensor
    labels: Tensor
    scores: Tensor
    image_index: Tensor
    sizes_wh: Tensor
    relations: Tensor
    graphs: tuple[SceneGraph, ...]

    def to(self, *args: Any, **kwargs: Any) -> RelationBatch:
        """Return the batch with its tensors moved as `torch.Tensor.to` moves them."""
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {k: v.to(*args, **kwargs) for k, v in values.items() if isinstance(v, Tensor)}
        return replace(self, **moved)

    def pin_memory(self) -> RelationBatch:
        """Return the batch with its tensors in page-locked memory, from which copies to a GPU are fast."""
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        pinned: dict[str, Any] = {k: v.pin_memory() for k, v in values.items() if isinstance(v, Tensor)}
        return replace(self, **pinned)


@dataclass(frozen=True, slots=True)
class ImageRelationBatch(RelationBatch):
    """A relation batch with its pixels.

    Attributes:
        images: B images `[3, h, w]`, uint8 RGB or scaled for a network. Boxes are those of the annotated frame:
            multiply them by (w, h) / `sizes_wh` to find them in the image.
    """

    images: RaggedImages

    def to(self, *args: Any, **kwargs: Any) -> ImageRelationBatch:
        """Return the batch with its tensors moved as `torch.Tensor.to` moves them."""
        moved = RelationBatch.to(self, *args, **kwargs)  # super() doesn't work in a dataclass with slots
        assert isinstance(moved, ImageRelationBatch)
        return replace(moved, images=self.images.to(*args, **kwargs))

    def pin_memory(self) -> ImageRelationBatch:
        """Return the batch with its tensors and pixels in page-locked memory."""
        pinned = RelationBatch.pin_memory(self)
        assert isinstance(pinned, ImageRelationBatch)
        return replace(pinned, images=self.images.pin_memory())
