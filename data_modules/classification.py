"""What data sets of labelled images share: splits, and a DataModule that augments by example, epoch and seed."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

from data_modules.image_loading import ImageDataModule, join_images
from data_modules.image_sources import ArrayImages, ImageSource
from data_modules.resident import ImageBatch, Preprocessing, ResidentLoader, augmentation_draws
from data_modules.sampling import ResumableBatchSampler, steps_done

SplitName = Literal["train", "val", "test"]
Loader = DataLoader[Any] | ResidentLoader


@dataclass(frozen=True, slots=True)
class Split:
    """The images of one split.

    Attributes:
        images: The images that the split is taken from.
        rows: Which of them, int64 `[N]`.
        labels: Their 0-based classes, int64 `[N]`; noisy ones where training labels are.
    """

    images: ImageSource
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]


def hold_out(
    size: int, held_out: int, seeds: Sequence[int], labels: NDArray[np.int64] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw which of `size` examples are held out, from a generator of their own.

    Args:
        size: Number of examples.
        held_out: How many are held out.
        seeds: What alone decides the draw, not negative.
        labels: Classes int64 `[size]`, to hold out the same fraction of each as nearly as whole numbers allow; None
            draws without regard to classes.

    Returns:
        Ascending positions int64 of the kept and of the held-out examples.

    Raises:
        ValueError: Nothing would be kept, or `held_out` is negative.
    """
    _check_held_out(size, held_out)
    rng = np.random.default_rng(list(seeds))
    order = rng.permutation(size)
    if labels is not None:
        # Sort by the place that an example has within its class, as a fraction of the class: the first ones of this
        # order take the same fraction of every class.
        place = np.empty(size)
        for label in np.unique(labels):
            own = order[labels[order] == label]
            place[own] = (np.arange(len(own)) + 0.5) / len(own)
        order = order[np.argsort(place[order], kind="stable")]
    chosen = np.zeros(size, dtype=bool)
    chosen[order[:held_out]] = True
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def hold_out_smooth_topk(size: int, held_out: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Hold out the examples that the code of Berrada et al. (2018) does, in its order, whatever the run's seed.

    It draws all indices without replacement from NumPy's legacy generator with seed 1234, permutes them again, and
    takes first the training and then the validation part.

    Returns:
        Positions int64 of the kept and of the held-out examples.

    Raises:
        ValueError: Nothing would be kept, or `held_out` is negative.
    """
    _check_held_out(size, held_out)
    legacy = np.random.RandomState(1234)
    order = legacy.permutation(legacy.choice(size, size=size, replace=False))
    return order[: size - held_out], order[size - held_out :]


def _check_held_out(size: int, held_out: int) -> None:
    if not 0 <= held_out < size:
        raise ValueError(f"val_images={held_out}: there are {size} training images")


class ClassificationDataModule(ImageDataModule):
    """Labelled images in three splits; only training images are augmented.

    The augmentation of an example depends on `seed`, the epoch and the example, and on nothing else: batches are the
    same with and without `resident`, with any number of workers, and after a run was resumed.

    Args:
        batch_size: Images a batch, in every split.
        seed: Seed of the order of training images and of their augmentation.
        preprocessing: How images are augmented and scaled.
        augment: Augment training images; otherwise they are prepared as for evaluation.
        resident: Keep all images as uint8 on the device of the trainer (on the CPU without one) and prepare the
            batches there. All images must have one size.
        num_workers: Loader processes; none are started where `resident`.
    """

    def __init__(
        self,
        batch_size: int,
        seed: int,
        preprocessing: Preprocessing,
        augment: bool,
        resident: bool,
        num_workers: int,
    ) -> None:
        super().__init__(batch_size, seed, num_workers)
        self.preprocessing, self.augment, self.resident = preprocessing, augment, resident
        self._splits: dict[SplitName, Split] = {}
        self._class_names: list[str] = []
        self._on_device: list[tuple[ImageSource, Tensor]] = []

    @abstractmethod
    def _read(self) -> tuple[dict[SplitName, Split], list[str]]:
        """Read all files; return the splits and the classes' names."""

    @abstractmethod
    def provenance(self) -> dict[str, Any]:
        """Describe the data for a run's record."""

    def setup(self, stage: str | None = None) -> None:
        """Read all files, whatever the stage; a second call does nothing.

        Raises:
            DataError: A file is missing, damaged or doesn't fit the others.
        """
        if not self._splits:
            self._splits, self._class_names = self._read()

    def teardown(self, stage: str | None = None) -> None:
        """Free the device's memory."""
        self._on_device.clear()

    @property
    def class_names(self) -> list[str]:
        """Names of the classes; a name's position is its label."""
        self.setup()
        return self._class_names

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def split(self, name: SplitName) -> Split:
        """Return which images a split has, and their labels."""
        self.setup()
        return self._splits[name]

    def train_dataloader(self) -> Loader:
        """Shuffled training batches from `start_step` on."""
        split, trainer = self.split("train"), self.trainer
        start_step = steps_done(trainer) if self.start_step is None else self.start_step
        batches = ResumableBatchSampler(
            len(split.rows),
            self.batch_size,
            self.seed,
            start_step=start_step,
            limit=trainer.limit_train_batches if trainer else 1.0,
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
        )
        if start_step:  # Lightning can't know that this loader goes on where the checkpoint ended
            warnings.filterwarnings("ignore", ".*your dataloader is not resumable")
        if self.resident:
            return self._resident_loader(split, batches)
        examples = _Examples(split, self.preprocessing, self.seed if self.augment else None)
        return self._loader(examples, _whole, batch_sampler=_EpochBatches(batches))

    def val_dataloader(self) -> Loader | list[Any]:
        """Batches of the held-out training images in their order; no loader where none are held out."""
        return self._eval_loader("val") if len(self.split("val").rows) else []

    def test_dataloader(self) -> Loader:
        """Batches of the test images in their order, all of them in every process."""
        return self._eval_loader("test")

    def _eval_loader(self, name: SplitName) -> Loader:
        split = self.split(name)
        if self.resident:
            return self._resident_loader(split, None)
        return self._test_loader(_Examples(split, self.preprocessing, None), _whole)

    def _resident_loader(self, split: Split, batches: ResumableBatchSampler | None) -> ResidentLoader:
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        return ResidentLoader(
            self._resident_images(split.images, device),
            torch.from_numpy(split.rows),
            torch.from_numpy(split.labels),
            self.preprocessing,
            batches,
            self.batch_size,
            self.seed if self.augment else None,
        )

    def _resident_images(self, source: ImageSource, device: torch.device) -> Tensor:
        for known, images in self._on_device:  # training and validation images are of one source
            if known is source and images.device == device:
                return images
        images = source.images.to(device) if isinstance(source, ArrayImages) else _decode_all(source, device)
        self._on_device.append((source, images))
        return images

    def _count(self, name: SplitName) -> int:
        return len(self.split(name).rows)


def _decode_all(source: ImageSource, device: torch.device) -> Tensor:
    images: Tensor | None = None
    step = 512
    for start in tqdm(range(0, len(source), step), desc=f"images to {device}", delay=3):
        part = source.read(range(start, min(start + step, len(source))))
        if not isinstance(part, Tensor):
            raise ValueError("resident=True needs images of one size")
        if images is None:
            images = torch.empty(len(source), *part.shape[1:], dtype=torch.uint8, device=device)
        images[start : start + len(part)] = part.to(device)
    assert images is not None  # no reader accepts an empty data set
    return images


class _EpochBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, position): worker processes outlive epochs and can't know otherwise which one it is."""

    def __init__(self, batches: ResumableBatchSampler) -> None:
        # Under another name than `sampler`: Lightning would call its set_epoch with the trainer's count of epochs.
        self._batches = batches

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch = self._batches.epoch
        for batch in self._batches:
            yield [(epoch, position) for position in batch]

    def __len__(self) -> int:
        return len(self._batches)


class _Examples(Dataset[Any]):
    """Whole batches of one split: of (epoch, position) keys, or of positions for evaluation."""

    def __init__(self, split: Split, preprocessing: Preprocessing, seed: int | None) -> None:
        self.split, self.preprocessing, self.seed = split, preprocessing, seed
        self._drawn: tuple[int, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.split.rows)

    def __getitem__(self, key: int | tuple[int, int]) -> ImageBatch[Any]:
        return self.__getitems__([key])

    def __getitems__(self, keys: Sequence[int | tuple[int, int]]) -> ImageBatch[Any]:
        positions = [key if isinstance(key, int) else key[1] for key in keys]
        draws = None
        if self.seed is not None and not isinstance(keys[0], int):
            draws = self._draws(self.seed, keys[0][0])[positions]
        rows = self.split.rows[positions]
        read = self.split.images.read(rows.tolist())
        labels, index = torch.from_numpy(self.split.labels[positions]), torch.from_numpy(rows)
        if isinstance(read, Tensor):
            return ImageBatch(self.preprocessing.many(read, draws), labels, index)
        own = [None] * len(read) if draws is None else list(draws)
        prepared = [self.preprocessing.one(image, draw) for image, draw in zip(read, own, strict=True)]
        images = join_images(prepared, self.preprocessing.scale)
        return ImageBatch(images if self.preprocessing.crop is None else images.stacked(), labels, index)

    def _draws(self, seed: int, epoch: int) -> Tensor:
        if self._drawn is None or self._drawn[0] != epoch:
            self._drawn = epoch, augmentation_draws(len(self), seed, epoch)
        return self._drawn[1]


def _whole(batch: ImageBatch[Any]) -> ImageBatch[Any]:
    return batch
