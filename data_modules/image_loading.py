"""What every DataModule of whole images needs: decoding, pixel scales, batches without padding, and loaders."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.io import ImageReadMode, decode_image

from data_modules.errors import DataError
from data_modules.sampling import ResumableBatchSampler, steps_done

Pixels = Literal["unit", "torchvision", "relnet", "caffenet"]


@dataclass(frozen=True, slots=True)
class PixelScale:
    """How a network wants its pixels: (value from 0 to 255 - mean) / std, channel by channel in the network's order."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    bgr: bool = False


PIXEL_SCALES: dict[Pixels, PixelScale] = {
    "unit": PixelScale((0.0, 0.0, 0.0), (255.0, 255.0, 255.0)),
    # ImageNet statistics of the weights that torchvision distributes.
    "torchvision": PixelScale((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
    # Channel means in the configuration that Relation Networks released.
    "relnet": PixelScale((103.06, 115.90, 123.15), (1.0, 1.0, 1.0), bgr=True),
    # Channel means of imagenet_mean.binaryproto, which Caffe distributes with CaffeNet.
    "caffenet": PixelScale((104.00699, 116.66877, 122.67892), (1.0, 1.0, 1.0), bgr=True),
}


def scale_pixels(image: Tensor, pixels: Pixels) -> Tensor:
    """Turn RGB uint8 `[3, H, W]` into the float32 `[3, H, W]` that a network wants (see `PIXEL_SCALES`)."""
    scale = PIXEL_SCALES[pixels]
    ordered = image.flip(0) if scale.bgr else image
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (scale.mean, scale.std))
    # In place on the copy that the conversion makes: pixels are walked over once less.
    return ordered.to(torch.float32, memory_format=torch.contiguous_format, copy=True).sub_(mean).div_(std)


def decode_rgb(path: Path, remedy: str) -> tv_tensors.Image:
    """Decode an image file as RGB uint8 `[3, H, W]`; greyscale ones get three equal channels.

    An orientation that a camera noted is ignored, because annotations refer to the pixels as they are stored.

    Raises:
        DataError: The file is missing, truncated or no image; `remedy` ends the message.
    """
    try:
        return tv_tensors.Image(decode_image(str(path), mode=ImageReadMode.RGB))
    except (RuntimeError, ValueError) as error:
        if not path.is_file():
            raise DataError(f"{path}: no such image; {remedy}") from error
        raise DataError(f"{path}: truncated or damaged image ({error}); {remedy}") from error


def header_size(path: Path, remedy: str) -> tuple[int, int]:
    """Return an image's width and height in pixels, from its header alone.

    Raises:
        DataError: The file is missing or no image; `remedy` ends the message.
    """
    try:
        with Image.open(path) as image:
            return image.size
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such image; {remedy}") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path}: not a readable image ({error}); {remedy}") from error


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


class ImageDataModule(pl.LightningDataModule):
    """A LightningDataModule whose training order is resumable and depends on its seed alone.

    Args:
        batch_size: Images a batch.
        seed: Seed of the order of training images.
        num_workers: Loader processes.

    Attributes:
        start_step: Training batches done before, over all epochs; None asks the attached trainer, which knows it from
            its checkpoint.
    """

    def __init__(self, batch_size: int, seed: int, num_workers: int) -> None:
        super().__init__()
        self.batch_size, self.seed, self.num_workers = batch_size, seed, num_workers
        self.start_step: int | None = None

    def _train_loader(self, dataset: Dataset[Any], size: int, collate: Callable[[Any], Any]) -> DataLoader[Any]:
        """Shuffled batches of a data set of `size` items, from `start_step` on."""
        trainer = self.trainer
        start_step = steps_done(trainer) if self.start_step is None else self.start_step
        sampler = ResumableBatchSampler(
            size,
            self.batch_size,
            self.seed,
            start_step=start_step,
            limit=trainer.limit_train_batches if trainer else 1.0,
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
        )
        if start_step:  # Lightning can't know that this loader goes on where the checkpoint ended
            warnings.filterwarnings("ignore", ".*your dataloader is not resumable")
        return self._loader(dataset, collate, batch_sampler=sampler)

    def _test_loader(self, dataset: Dataset[Any], collate: Callable[[Any], Any]) -> DataLoader[Any]:
        """Batches in the order of the data set, all of them in every process."""
        return self._loader(dataset, collate, batch_size=self.batch_size)

    def _loader(self, dataset: Dataset[Any], collate: Callable[[Any], Any], **order: Any) -> DataLoader[Any]:
        return DataLoader(
            dataset,
            collate_fn=collate,
            # Its own generator, so that making an iterator doesn't advance the global random state.
            generator=torch.Generator().manual_seed(self.seed),
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            **order,
        )


def check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    """Raise a ValueError unless `value` is allowed for the argument `name`."""
    if value not in allowed:
        raise ValueError(f"{name}={value!r}: expected one of {tuple(allowed)}")


def describe_file(name: str, path: Path) -> dict[str, Any]:
    """Return a file's `name`, `bytes` and `sha256` for a run's record."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    return {"name": name, "bytes": path.stat().st_size, "sha256": digest.hexdigest()}
