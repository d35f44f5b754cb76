"""One form for the batches that a detector is trained on, of detection and of relation data sets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from data_modules.scene_graph import ImageRelationBatch, RelationBatch
from lit_modules.layers.backbones import pad_images, to_edges

LAST_PIXEL = (0.0, 0.0, 1.0, 1.0)


class AnnotatedImage(Protocol):
    """What this module reads of a detection data set's annotation, in the annotated image's pixels."""

    @property
    def image(self) -> str:
        """Name."""

    @property
    def areas(self) -> Any:
        """Square pixels of each object, by which COCO's size ranges go."""


class DetectionBatchLike(Protocol):
    """What this module reads of a batch of a detection data set; boxes are edges in the resized images."""

    @property
    def images(self) -> Iterable[Tensor]:
        """Float images `[3, h, w]`."""

    @property
    def boxes_xyxy(self) -> Tensor:
        """`[N, 4]`."""

    @property
    def labels(self) -> Tensor:
        """Int64 `[N]`, 0-based."""

    @property
    def ignored(self) -> Tensor:
        """Bool `[N]`, objects that are no targets."""

    @property
    def image_index(self) -> Tensor:
        """Int64 `[N]`, ascending."""

    @property
    def scales_xy(self) -> Tensor:
        """`[B, 2]`, resized over annotated width and height."""

    @property
    def examples(self) -> Sequence[AnnotatedImage]:
        """The B annotations."""


@dataclass(frozen=True)
class DetectorInput:
    """A batch as the detector takes it, whichever data set it is from.

    Attributes:
        images: float `[B, 3, H, W]`, padded right and below.
        sizes_hw: Heights and widths without padding.
        scales_xy: float32 `[B, 2]`, pixels of the network's input over annotated ones.
        edges_xyxy: float32 `[N, 4]`, annotated boxes, edges in pixels of the network's input.
        labels: int64 `[N]`, 0-based categories.
        ignored: bool `[N]`, objects that are no targets: neither found nor missed counts.
        areas: float32 `[N]`, square pixels of the annotated frame.
        image_index: int64 `[N]`, ascending.
        last_pixel: `[4]`, what annotated boxes lack to be edges: the last pixel's width, or nothing.
        names: The images' names.
    """

    images: Tensor
    sizes_hw: list[tuple[int, int]]
    scales_xy: Tensor
    edges_xyxy: Tensor
    labels: Tensor
    ignored: Tensor
    areas: Tensor
    image_index: Tensor
    last_pixel: Tensor
    names: tuple[str, ...]

    @classmethod
    def of(cls, batch: RelationBatch | DetectionBatchLike, one_label_per_box: bool = False) -> DetectorInput:
        """Take over a batch of either kind.

        Args:
            batch: From a detection data set, or from a relation data set with `images`.
            one_label_per_box: Of several annotated objects with the same box, keep the first, as RelDN's conversion of
                VRD does.

        Raises:
            ValueError: It has no images, or unscaled ones.
        """
        if isinstance(batch, RelationBatch) and not isinstance(batch, ImageRelationBatch):
            raise ValueError("the batch has no images: give the DataModule a pixel scale as `images`, not none")
        images, sizes_hw = pad_images(batch.images)
        if not images.is_floating_point():
            raise ValueError(f"the images are {images.dtype}: give the DataModule the pixel scale of the network")
        if isinstance(batch, ImageRelationBatch):
            names = tuple(graph.image for graph in batch.graphs)
            scales_xy = batch.sizes_wh.new_tensor([(w, h) for h, w in sizes_hw]) / batch.sizes_wh
            edges = to_edges(batch.boxes_xyxy, scales_xy[batch.image_index])
            ignored = torch.zeros_like(batch.labels, dtype=torch.bool)
            last = edges.new_tensor(LAST_PIXEL)
            areas = (batch.boxes_xyxy[:, 2:] - batch.boxes_xyxy[:, :2] + 1).prod(dim=1)
        else:
            names = tuple(example.image for example in batch.examples)
            scales_xy, edges, ignored, last = batch.scales_xy, batch.boxes_xyxy, batch.ignored, torch.zeros(4)
            areas = torch.cat([torch.as_tensor(example.areas) for example in batch.examples]).to(edges)
        given = cls(
            images, sizes_hw, scales_xy, edges, batch.labels, ignored, areas, batch.image_index, last.to(edges), names
        )
        return given.first_labels() if one_label_per_box else given

    def first_labels(self) -> DetectorInput:
        """Keep the first of the objects of an image that have the same box."""
        rows = torch.cat([self.image_index[:, None].to(self.edges_xyxy), self.edges_xyxy], dim=1)
        _, group = rows.unique(dim=0, return_inverse=True)
        number = torch.arange(len(rows), device=rows.device)
        first = number.new_full((len(rows),), len(rows)).scatter_reduce(0, group, number, "amin")
        kept = number[first[group] == number]
        columns = ("edges_xyxy", "labels", "ignored", "areas", "image_index")
        return replace(self, **{name: getattr(self, name)[kept] for name in columns})

    def targets(self, num_classes: int) -> list[dict[str, Tensor]]:
        """Return each image's boxes to train on, with labels from 1 on.

        Raises:
            ValueError: A box has no area, or a label is no category.
        """
        wrong = (self.edges_xyxy[:, 2:] <= self.edges_xyxy[:, :2]).any(dim=1)
        wrong = wrong | ~self.edges_xyxy.isfinite().all(dim=1) | (self.labels < 0) | (self.labels >= num_classes)
        if wrong.any():
            row = int(torch.nonzero(wrong)[0])
            box, label = self.edges_xyxy[row].tolist(), int(self.labels[row])
            found = f"box {box} with label {label} (there are {num_classes} categories)"
            raise ValueError(f"image {self.names[int(self.image_index[row])]!r}: {found} can't be trained on")
        targets = []
        for i, (height, width) in enumerate(self.sizes_hw):
            rows = torch.nonzero((self.image_index == i) & ~self.ignored).flatten()
            size = self.edges_xyxy.new_tensor([width, height])
            targets.append({"boxes": self.edges_xyxy[rows], "labels": self.labels[rows] + 1, "size_wh": size})
        return targets

    def annotated(self, edges_xyxy: Tensor, image_index: Tensor) -> Tensor:
        """Return boxes `[N, 4]` in the annotations' frame and convention, of edges in the network's input."""
        return (edges_xyxy - self.last_pixel) / self.scales_xy[image_index].repeat(1, 2)
