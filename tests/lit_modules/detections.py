"""Batches with images for the tests of detectors, made without the suite's own readers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from data_modules.scene_graph import ImageRelationBatch, RaggedImages
from tests.lit_modules.batches import Image, make_batch


@dataclass(frozen=True)
class Annotation:
    """What a detector reads of a detection data set's annotation."""

    image: str
    areas: Tensor


@dataclass(frozen=True)
class EdgeBatch:
    """A batch of a detection data set."""

    images: RaggedImages
    boxes_xyxy: Tensor
    labels: Tensor
    ignored: Tensor
    image_index: Tensor
    scales_xy: Tensor
    examples: tuple[Annotation, ...]

    def to(self, *args: Any, **kwargs: Any) -> EdgeBatch:
        """Stay where it is: tests run on the CPU. Lightning leaves batches with this method whole."""
        return self


def with_images(*images: Image, scale: float = 1.0, seed: int = 0) -> ImageRelationBatch:
    """A relation batch whose images are `scale` times as large as the annotated frame; noise, with bright boxes."""
    batch = make_batch(*images)
    random = torch.Generator().manual_seed(seed)
    pixels = []
    for number, image in enumerate(images):
        width, height = (round(side * scale) for side in image.size)
        picture = torch.rand(3, height, width, generator=random) * 0.2
        for box, label in zip(image.boxes, image.labels, strict=True):
            x1, y1, x2, y2 = (round(c * scale) for c in (box[0], box[1], box[2] + 1, box[3] + 1))
            picture[label % 3, y1:y2, x1:x2] += 1 + number % 2
        pixels.append(picture)
    values = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return ImageRelationBatch(**values, images=RaggedImages.of(pixels))


def edge_batch(
    boxes: Sequence[Sequence[Sequence[float]]],
    labels: Sequence[Sequence[int]],
    ignored: Sequence[Sequence[bool]] | None = None,
    size_wh: tuple[int, int] = (96, 64),
    scale: float = 1.0,
) -> EdgeBatch:
    """A batch of a detection data set; boxes are edges in the resized images."""
    flags = ignored or [[False] * len(of_image) for of_image in labels]
    flat = torch.tensor([b for of_image in boxes for b in of_image]).float().reshape(-1, 4)
    annotated = [torch.tensor(of_image).float().reshape(-1, 4) / scale for of_image in boxes]
    areas = [(b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1]) for b in annotated]
    return EdgeBatch(
        RaggedImages.of([torch.rand(3, size_wh[1], size_wh[0]) for _ in boxes]),
        flat,
        torch.tensor([x for of_image in labels for x in of_image], dtype=torch.int64),
        torch.tensor([x for of_image in flags for x in of_image], dtype=torch.bool),
        torch.tensor([i for i, of_image in enumerate(labels) for _ in of_image], dtype=torch.int64),
        torch.full((len(boxes), 2), scale),
        tuple(Annotation(f"{i}.jpg", a) for i, a in enumerate(areas)),
    )
