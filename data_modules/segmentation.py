"""Records of images with label maps, and batches of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from data_modules.errors import DataError
from data_modules.image_loading import Pixels, join_images
from data_modules.image_sources import SizedImages
from data_modules.sbd_files import read_sbd_labels
from data_modules.scene_graph import RaggedImages
from data_modules.voc_files import VOC_REMEDY, read_label_map


@dataclass(frozen=True, slots=True)
class SegmentationExample:
    """One image: its id, its file, and the file of its labels (VOC's PNG, SBD's .mat or PNG; None where unlabelled)."""

    image: str
    path: Path
    label_path: Path | None


@dataclass(frozen=True, slots=True)
class SegmentationBatch:
    """Several images with their label maps.

    Attributes:
        images: B images, float32 `[3, h, w]`, scaled for the network; warped to one size, if so asked, where
            `images.stacked()` is `[B, 3, S, S]`.
        labels: B label maps in the annotated size, never resampled, uint8 `[H, W]`: 0 is the background, label + 1 a
            class, 255 void. None where the images have no labels.
        examples: The B records.
        mirrored: Which images, with their labels, are mirrored left to right.
    """

    images: RaggedImages
    labels: RaggedImages | None
    examples: tuple[SegmentationExample, ...]
    mirrored: tuple[bool, ...]

    def to(self, *args: Any, **kwargs: Any) -> SegmentationBatch:
        """Return the batch with its tensors moved as `torch.Tensor.to` moves them."""
        labels = self.labels.to(*args, **kwargs) if self.labels else None
        return replace(self, images=self.images.to(*args, **kwargs), labels=labels)

    def pin_memory(self) -> SegmentationBatch:
        """Return the batch in page-locked memory."""
        return replace(self, images=self.images.pin_memory(), labels=self.labels.pin_memory() if self.labels else None)


@dataclass(frozen=True, slots=True)
class SegmentationItem:
    """One image, uint8 `[3, h, w]`, and its label map, uint8 `[H, W]`."""

    example: SegmentationExample
    image: Tensor
    labels: Tensor | None
    mirrored: bool


class SegmentationDataset(Dataset[SegmentationItem]):
    """Images as a network gets them, and labels in their own size.

    Args:
        examples: The images' records.
        images: The images in the same order, warped for the network or as they are.
        flip: Append every image mirrored left to right.
    """

    def __init__(self, examples: Sequence[SegmentationExample], images: SizedImages, flip: bool) -> None:
        self.examples, self.images, self.flip = examples, images, flip

    def __len__(self) -> int:
        return len(self.examples) * (1 + self.flip)

    def __getitem__(self, index: int) -> SegmentationItem:
        """Read one image; an index past the examples is a mirrored one.

        Raises:
            DataError: A file is missing or damaged, the labels have another size than the image, or illegal ids.
        """
        mirrored, number = divmod(index, len(self.examples))
        example = self.examples[number]
        image, size_wh = self.images.read_sized(number)
        labels: Tensor | None = None
        if example.label_path:
            labels = torch.from_numpy(read_labels(example.label_path))
            if labels.shape[::-1] != size_wh:
                sizes = f"{labels.shape[1]} x {labels.shape[0]} pixels, its image {size_wh[0]} x {size_wh[1]}"
                raise DataError(f"{example.label_path}: the label map has {sizes}; {VOC_REMEDY}")
        if mirrored:
            # After resizing, which would round the mirrored image differently.
            image = image.flip(2)
            labels = None if labels is None else labels.flip(1)
        return SegmentationItem(example, image.as_subclass(Tensor), labels, bool(mirrored))


def read_labels(path: Path) -> NDArray[np.uint8]:
    """Read the label map, uint8 `[H, W]`, of a PNG or of SBD's MATLAB file."""
    return read_sbd_labels(path) if path.suffix == ".mat" else read_label_map(path)


def collate_segmentation(items: Sequence[SegmentationItem], pixels: Pixels) -> SegmentationBatch:
    """Join images, scaled as `pixels` names it, and label maps, both of different sizes, without padding."""
    labels = [item.labels for item in items if item.labels is not None]
    return SegmentationBatch(
        images=join_images([item.image for item in items], pixels),
        labels=RaggedImages.of(labels) if labels else None,
        examples=tuple(item.example for item in items),
        mirrored=tuple(item.mirrored for item in items),
    )
