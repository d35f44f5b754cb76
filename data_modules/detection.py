"""Records of images with annotated boxes, batches of them, and the DataModule that detection data sets share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from data_modules.errors import DataError
from data_modules.image_loading import (
    PIXEL_SCALES,
    ImageDataModule,
    Pixels,
    check_choice,
    join_images,
)
from data_modules.image_sources import FileImages, Resize, SizedImages, cached
from data_modules.scene_graph import RaggedImages

Split = Literal["train", "test"]


@dataclass(frozen=True, slots=True)
class DetectionExample:
    """One image and its annotated objects.

    Boxes are the coordinates of their edges, counted in pixels from the image's upper left corner: 0 <= x1 < x2 <= W.
    A box of width x2 - x1 covers as many pixel columns, so an IoU of these boxes without any "+1" is the VOC devkit's
    IoU of its 1-based inclusive boxes with "+1", and COCO's of its x, y, w, h.

    Attributes:
        image: The image's id as the data set spells it.
        path: The image file.
        size_wh: Width and height in pixels.
        boxes_xyxy: float32 `[N, 4]`, pixels.
        labels: int64 `[N]`, 0-based categories; there is no background.
        areas: float32 `[N]`, square pixels that COCO's size ranges go by: of the segment in COCO, of the box in VOC.
        difficult: bool `[N]`, VOC's flag: neither found nor missed counts.
        crowd: bool `[N]`, COCO's flag: the box holds a group, and any number of detections inside it don't count.
    """

    image: str
    path: Path
    size_wh: tuple[int, int]
    boxes_xyxy: NDArray[np.float32]
    labels: NDArray[np.int64]
    areas: NDArray[np.float32]
    difficult: NDArray[np.bool_]
    crowd: NDArray[np.bool_]

    @property
    def ignored(self) -> NDArray[np.bool_]:
        """Which objects are no training targets, bool `[N]`."""
        return self.difficult | self.crowd


@dataclass(frozen=True, slots=True)
class DetectionBatch:
    """Several images with their objects, concatenated without padding.

    Attributes:
        images: B images, float32 `[3, h, w]`, resized and scaled for the network.
        boxes_xyxy: float32 `[N, 4]`, all objects' boxes, in pixels of the resized images.
        labels: int64 `[N]`, 0-based categories.
        difficult: bool `[N]`, see `DetectionExample`.
        crowd: bool `[N]`, see `DetectionExample`.
        image_index: int64 `[N]`, ascending, the image (0 to B-1) of each object.
        scales_xy: float32 `[B, 2]`, resized width and height over annotated ones: divide predicted boxes by these.
        examples: The B annotations in the annotated image's pixels, mirrored where the image is.
    """

    images: RaggedImages
    boxes_xyxy: Tensor
    labels: Tensor
    difficult: Tensor
    crowd: Tensor
    image_index: Tensor
    scales_xy: Tensor
    examples: tuple[DetectionExample, ...]

    @property
    def ignored(self) -> Tensor:
        """Which objects are no training targets, bool `[N]`."""
        return self.difficult | self.crowd

    def to(self, *args: Any, **kwargs: Any) -> DetectionBatch:
        """Return the batch with its tensors moved as `torch.Tensor.to` moves them."""
        return self._changed("to", *args, **kwargs)

    def pin_memory(self) -> DetectionBatch:
        """Return the batch in page-locked memory."""
        return self._changed("pin_memory")

    def _changed(self, method: str, *args: Any, **kwargs: Any) -> DetectionBatch:
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "examples"}
        return replace(self, **{name: getattr(v, method)(*args, **kwargs) for name, v in values.items()})


@dataclass(frozen=True, slots=True)
class DetectionItem:
    """One image resized for the network: its annotations, pixels uint8 `[3, h, w]`, and boxes in these pixels."""

    example: DetectionExample
    image: Tensor
    boxes_xyxy: Tensor


class DetectionDataset(Dataset[DetectionItem]):
    """Annotated images as a network gets them.

    Args:
        examples: The annotations.
        images: Their images in the same order, resized for the network.
        flip: Append every image mirrored left to right.
        remedy: What to do about a damaged image; ends the error message.
    """

    def __init__(self, examples: Sequence[DetectionExample], images: SizedImages, flip: bool, remedy: str) -> None:
        self.examples, self.images, self.flip, self.remedy = examples, images, flip, remedy

    def __len__(self) -> int:
        return len(self.examples) * (1 + self.flip)

    def __getitem__(self, index: int) -> DetectionItem:
        """Read one image; an index past the examples is a mirrored one.

        Raises:
            DataError: The image is missing, damaged or of another size than its annotations say.
        """
        mirrored, number = divmod(index, len(self.examples))
        example = self.examples[number]
        width, height = example.size_wh
        image, size_wh = self.images.read_sized(number)
        if size_wh != (width, height):
            found = f"{size_wh[0]} x {size_wh[1]} pixels, its annotations say {width} x {height}"
            raise DataError(f"{example.path}: the image has {found}; {self.remedy}")
        boxes: Tensor = tv_tensors.BoundingBoxes(
            torch.from_numpy(example.boxes_xyxy), format="XYXY", canvas_size=(height, width)
        )
        if mirrored:
            # After resizing, which would round the mirrored image differently.
            image, boxes = image.flip(2), v2.functional.horizontal_flip(boxes)
            # A copy: from_numpy and numpy() share memory with the record that is kept.
            example = replace(example, boxes_xyxy=boxes.as_subclass(Tensor).numpy().copy())
        boxes = v2.functional.resize(boxes, list(image.shape[1:]))
        return DetectionItem(example, image.as_subclass(Tensor), boxes.as_subclass(Tensor))


def collate_detections(items: Sequence[DetectionItem], pixels: Pixels) -> DetectionBatch:
    """Join images of different sizes without padding, scaled as `pixels` names it."""
    examples = tuple(item.example for item in items)
    counts = [len(e.labels) for e in examples]
    sizes = torch.tensor([e.size_wh for e in examples], dtype=torch.float32)
    resized = torch.tensor([item.image.shape[:0:-1] for item in items], dtype=torch.float32)
    return DetectionBatch(
        images=join_images([item.image for item in items], pixels),
        boxes_xyxy=torch.cat([item.boxes_xyxy for item in items]),
        labels=torch.from_numpy(np.concatenate([e.labels for e in examples])),
        difficult=torch.from_numpy(np.concatenate([e.difficult for e in examples])),
        crowd=torch.from_numpy(np.concatenate([e.crowd for e in examples])),
        image_index=torch.from_numpy(np.repeat(np.arange(len(examples)), counts)),
        scales_xy=resized / sizes,
        examples=examples,
    )


class DetectionDataModule(ImageDataModule, ABC):
    """What the detection data sets share; a subclass reads the annotations of a split.

    Args:
        root: Folder of the data set.
        batch_size: Images a batch.
        seed: Seed of the order of training images.
        flip: Double the training images by mirrored ones.
        short_side: Short side of resized images in pixels.
        long_side: Greatest long side of resized images in pixels.
        pixels: Pixel scale of the network.
        keep_empty_train: Train on images without a training target too.
        image_cache: Folder of the cache of decoded and resized images; None decodes the files in every epoch.
        num_workers: Loader processes, and threads that fill the cache.
        remedy: What to do about damaged images; ends error messages.
    """

    def __init__(
        self,
        root: str | Path,
        batch_size: int,
        seed: int,
        flip: bool,
        short_side: int,
        long_side: int,
        pixels: Pixels,
        keep_empty_train: bool,
        image_cache: str | Path | None,
        num_workers: int,
        remedy: str,
    ) -> None:
        super().__init__(batch_size, seed, num_workers)
        check_choice("pixels", pixels, list(PIXEL_SCALES))
        if not 0 < short_side <= long_side:
            raise ValueError(f"short_side={short_side}, long_side={long_side}: expected 0 < short_side <= long_side")
        self.root, self.flip, self.pixels, self.remedy = Path(root), flip, pixels, remedy
        self.short_side, self.long_side, self.keep_empty_train = short_side, long_side, keep_empty_train
        self.image_cache = image_cache
        self._collate = partial(collate_detections, pixels=pixels)
        self._examples: dict[Split, list[DetectionExample]] = {}

    def setup(self, stage: str | None = None) -> None:
        """Read the annotations: of the training images for `fit`, of both splits for None, else of the scored images.

        A split is read once.

        Raises:
            DataError: A file is missing, damaged or doesn't fit the others, or an image is both trained on and scored.
        """
        if stage in ("fit", None):
            self._split("train")
        if stage != "fit":
            self._split("test")

    @property
    @abstractmethod
    def class_names(self) -> tuple[str, ...]:
        """Names of the categories; a name's position is its label."""

    @property
    def train_examples(self) -> list[DetectionExample]:
        """The annotated images trained on, without mirrored ones."""
        kept = self._split("train")
        return kept if self.keep_empty_train else [e for e in kept if not e.ignored.all()]

    @property
    def test_examples(self) -> list[DetectionExample]:
        """The annotated images that are scored."""
        return self._split("test")

    def train_dataloader(self) -> DataLoader[DetectionBatch]:
        """Shuffled training batches from `start_step` on."""
        dataset = self._dataset(self.train_examples, self.flip)
        return self._train_loader(dataset, len(dataset), self._collate)

    def test_dataloader(self) -> DataLoader[DetectionBatch]:
        """Batches of the scored images in their order, all of them in every process."""
        return self._test_loader(self._dataset(self.test_examples, flip=False), self._collate)

    def counts(self) -> dict[str, int]:
        """Count images, objects and those of them that are ignored, as they were read, on the sides of `splits`."""
        counts = {}
        for split in self.splits:
            examples = self._split(split)
            counts[f"{split}_images"] = len(examples)
            counts[f"{split}_objects"] = sum(len(e.labels) for e in examples)
            counts[f"{split}_ignored_objects"] = sum(int(e.ignored.sum()) for e in examples)
        return counts

    @property
    def splits(self) -> tuple[Split, ...]:
        """The sides that were read so far, training first; before any reading, both."""
        if not self._examples:
            self.setup()
        sides: tuple[Split, Split] = ("train", "test")
        return tuple(split for split in sides if split in self._examples)

    def _dataset(self, examples: list[DetectionExample], flip: bool) -> DetectionDataset:
        names = tuple(str(e.path.relative_to(self.root)) for e in examples)
        resize = Resize(self.short_side, self.long_side)
        files = FileImages(self.root, names, self.remedy, resize, decoder="torchvision")
        images = cached(files, self.image_cache, self.num_workers)
        return DetectionDataset(examples, images, flip, self.remedy)

    def _split(self, split: Split) -> list[DetectionExample]:
        if split not in self._examples:
            self._examples[split] = self._read(split)
        return self._examples[split]

    @abstractmethod
    def _read(self, split: Split) -> list[DetectionExample]:
        """Read a side's annotations."""
