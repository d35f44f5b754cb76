"""What every DataModule of whole images needs: decoding, pixel scales, batches without padding, and loaders."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info
from torchvision import tv_tensors
from torchvision.io import ImageReadMode, decode_image

from data_modules.errors import DataError
from data_modules.sampling import ResumableBatchSampler, steps_done
from data_modules.scene_graph import RaggedImages

Pixels = Literal["unit", "torchvision", "detectron", "relnet", "caffenet"]


@dataclass(frozen=True, slots=True)
class PixelScale:
    """How a network wants its pixels: (value from 0 to 255 - mean) / std, channel by channel in the network's order."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    bgr: bool = False


_ROWS = 64

PIXEL_SCALES: dict[Pixels, PixelScale] = {
    "unit": PixelScale((0.0, 0.0, 0.0), (255.0, 255.0, 255.0)),
    # ImageNet statistics of the weights that torchvision distributes.
    "torchvision": PixelScale((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
    # Channel means of Detectron and, before it, of the Caffe releases of Faster R-CNN.
    "detectron": PixelScale((102.9801, 115.9465, 122.7717), (1.0, 1.0, 1.0), bgr=True),
    # Channel means in the configuration that Relation Networks released.
    "relnet": PixelScale((103.06, 115.90, 123.15), (1.0, 1.0, 1.0), bgr=True),
    # Channel means of imagenet_mean.binaryproto, which Caffe distributes with CaffeNet.
    "caffenet": PixelScale((104.00699, 116.66877, 122.67892), (1.0, 1.0, 1.0), bgr=True),
}


def scale_pixels(image: Tensor, pixels: Pixels | PixelScale, out: Tensor | None = None) -> Tensor:
    """Turn RGB uint8 `[3, H, W]` into the float32 `[3, H, W]` that a network wants.

    Args:
        image: The image.
        pixels: The pixel scale, or its name in `PIXEL_SCALES`.
        out: Where to write, float32 `[3, H, W]`; None allocates it.
    """
    scale = pixels if isinstance(pixels, PixelScale) else PIXEL_SCALES[pixels]
    image = image.as_subclass(Tensor).contiguous()
    scaled = torch.empty(image.shape, dtype=torch.float32) if out is None else out
    for channel, (mean, std) in enumerate(zip(scale.mean, scale.std, strict=True)):
        plane = image[2 - channel if scale.bgr else channel]
        # A strip of rows stays in the processor's cache through all three steps: more than twice as fast.
        for source, target in zip(plane.split(_ROWS), scaled[channel].split(_ROWS), strict=True):
            target.copy_(source).sub_(mean).div_(std)
    return scaled


def join_images(images: Sequence[Tensor], pixels: Pixels | PixelScale | None = None) -> RaggedImages:
    """Join images of one dtype, scaled where `pixels` says how (then they are RGB uint8 `[3, H, W]`).

    In a worker process they are written where the batch will be sent from, which saves a copy.
    """
    sizes = [image.numel() for image in images]
    values = _batch_buffer(sum(sizes), torch.float32 if pixels else images[0].dtype)
    for image, part in zip(images, values.split(sizes), strict=True):
        if pixels:
            scale_pixels(image, pixels, out=part.view(image.shape))
        else:
            part.view(image.shape).copy_(image)
    return RaggedImages(values, tuple(tuple(image.shape) for image in images))


def _batch_buffer(size: int, dtype: torch.dtype) -> Tensor:
    """Return a new tensor `[size]`; of a worker process, in memory that it shares with the main process."""
    buffer = torch.empty(0, dtype=dtype)
    if get_worker_info() is None:
        return buffer.resize_(size)
    storage = torch.UntypedStorage._new_shared(size * dtype.itemsize)  # as PyTorch's own collation does
    return buffer.set_(storage, 0, (size,))  # type: ignore[call-overload, no-any-return]


def decode_rgb(path: Path, remedy: str) -> tv_tensors.Image:
    """Decode an image file as RGB uint8 `[3, H, W]`; greyscale ones get three equal channels, of a GIF the first frame.

    An orientation that a camera noted is ignored, because annotations refer to the pixels as they are stored.

    Raises:
        DataError: The file is missing, truncated or no image; `remedy` ends the message.
    """
    try:
        image = decode_image(str(path), mode=ImageReadMode.RGB)
    except (RuntimeError, ValueError) as error:
        if not path.is_file():
            raise DataError(f"{path}: no such image; {remedy}") from error
        raise DataError(f"{path}: truncated or damaged image ({error}); {remedy}") from error
    if image.dtype == torch.uint16:  # PNGs may have 16 bits a channel
        image = (image.to(torch.int32) // 256).to(torch.uint8)
    return tv_tensors.Image(image[0] if image.ndim == 4 else image)


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
