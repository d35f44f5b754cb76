"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009) as a LightningDataModule, with clean or noisy training labels."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from data_modules.cifar_files import OFFICIAL_MD5, REMEDY, CifarPart, read_class_names, read_part
from data_modules.classification import (
    ClassificationDataModule,
    Split,
    SplitName,
    hold_out,
    hold_out_smooth_topk,
)
from data_modules.errors import DataError
from data_modules.image_loading import PIXEL_SCALES, PixelScale, check_choice
from data_modules.image_sources import ArrayImages
from data_modules.label_noise import (
    LabelNoise,
    NoiseGroups,
    add_noise,
    coarse_groups,
    consecutive_groups,
    load_noisy_labels,
    save_noisy_labels,
)
from data_modules.resident import Preprocessing

Normalisation = Literal["smooth_topk", "dataset", "imagenet"]


def _scale(mean: tuple[float, float, float], std: tuple[float, float, float]) -> PixelScale:
    (r, g, b), (rs, gs, bs) = mean, std
    return PixelScale((255 * r, 255 * g, 255 * b), (255 * rs, 255 * gs, 255 * bs))


# Channel means and standard deviations over all pixels of the training images, as fractions of 255. Those of CIFAR-100
# are measured on its 50,000 training images, those of CIFAR-10 are the ones in general use.
DATASET_SCALES = {
    10: _scale((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    100: _scale((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}
# In the code of Berrada et al. (2018), which the LML paper extends: CIFAR-10's statistics, used for CIFAR-100.
SMOOTH_TOPK_SCALE = PixelScale((125.3, 123.0, 113.9), (63.0, 62.1, 66.7))


class CIFARDataModule(ClassificationDataModule):
    """CIFAR-10 or CIFAR-100: part of the 50,000 training images is held out for validation, 10,000 are for testing.

    Validation and test labels are always clean.

    Args:
        root: Folder with `cifar-10-batches-py/` or `cifar-100-python/`.
        batch_size: Images a batch.
        seed: Seed of the order of training images and of their augmentation.
        dataset: Which of the two: 10 or 100 classes. (Generated worlds may have other numbers of classes.)
        val_images: How many training images are held out.
        split: Held-out images are drawn by `split_seed`, or are those of the code of Berrada et al. (2018).
        split_seed: Seed of the seeded split, shared by all runs.
        resplit_per_run: Let the seeded split depend on `seed` too.
        stratified: Let the seeded split hold out the same fraction of every class.
        noise: Probability of drawing a training label anew within its group, a fraction (CIFAR-100 only).
        noise_groups: See `LabelNoise`.
        noise_seed: Seed of the label noise, apart from the run's.
        noisy_labels: A file of `save_noisy_labels` to take the noisy labels from; it must be of this very noise.
        augment: Crop training images at random after padding them by 4 pixels, and mirror every second.
        normalisation: Constants of Berrada et al., of the data set, or of ImageNet.
        resident: Keep all images on the trainer's device and prepare the batches there.
        num_workers: Loader processes.
    """

    def __init__(
        self,
        root: str | Path,
        batch_size: int,
        seed: int,
        dataset: Literal[10, 100] = 10,
        val_images: int = 5000,
        split: Literal["seeded", "smooth_topk"] = "seeded",
        split_seed: int = 0,
        resplit_per_run: bool = False,
        stratified: bool = False,
        noise: float = 0.0,
        noise_groups: NoiseGroups = "official_consecutive",
        noise_seed: int = 0,
        noisy_labels: str | Path | None = None,
        augment: bool = True,
        normalisation: Normalisation = "dataset",
        resident: bool = False,
        num_workers: int = 0,
    ) -> None:
        if dataset not in DATASET_SCALES:
            raise ValueError(f"dataset={dataset!r}: expected 10 or 100")
        check_choice("split", split, ("seeded", "smooth_topk"))
        check_choice("normalisation", normalisation, ("smooth_topk", "dataset", "imagenet"))
        if split == "smooth_topk" and (resplit_per_run or stratified):
            raise ValueError("split='smooth_topk' is one fixed split: it is neither drawn per run nor stratified")
        if dataset == 10 and (noise or noisy_labels):
            raise ValueError("label noise is drawn within groups of classes, which CIFAR-10 hasn't: use dataset=100")
        scales = {"smooth_topk": SMOOTH_TOPK_SCALE, "dataset": DATASET_SCALES[dataset]}
        scale = scales.get(normalisation, PIXEL_SCALES["torchvision"])
        super().__init__(batch_size, seed, Preprocessing(scale, crop=32, pad=4), augment, resident, num_workers)
        self.root, self.dataset, self.val_images = Path(root), dataset, val_images
        self.split_rule, self.split_seed = split, split_seed
        self.resplit_per_run, self.stratified = resplit_per_run, stratified
        self.noise, self.noisy_labels = LabelNoise(noise, noise_groups, noise_seed), noisy_labels
        self._files: dict[str, Path] = {}
        self._coarse_names: list[str] = []

    @property
    def coarse_names(self) -> list[str]:
        """Names of CIFAR-100's coarse classes; empty for CIFAR-10."""
        self.setup()
        return self._coarse_names

    @property
    def coarse_of(self) -> NDArray[np.int64]:
        """The coarse class of each fine class of CIFAR-100, int64; empty for CIFAR-10."""
        self.setup()
        return self._coarse_of

    @property
    def clean_labels(self) -> NDArray[np.int64]:
        """Clean labels of the images that are trained on, int64, in the order of `split("train")`."""
        rows = self.split("train").rows
        return self._clean[rows]

    def save_noisy_labels(self, path: str | Path) -> None:
        """Save the noisy labels of the whole training file, for `noisy_labels` and for other programs."""
        self.setup()
        save_noisy_labels(path, self._noisy, self._clean, self.noise)

    def provenance(self) -> dict[str, Any]:
        """Describe the data for a run's record: every file read with its checksum, the split, and the noise.

        Returns:
            `files` (name, bytes and sha256 of each), `official` (whether all of them are the archive's own), the
            number of images of each split, and the fraction of training labels that noise changed.
        """
        self.setup()
        files, official = [], True
        for name, path in self._files.items():
            content = path.read_bytes()
            files.append({"name": name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()})
            official &= hashlib.md5(content, usedforsecurity=False).hexdigest() == OFFICIAL_MD5[name]
        noise = {"probability": self.noise.probability, "groups": self.noise.groups, "seed": self.noise.seed}
        changed = self.split("train").labels != self.clean_labels
        return {
            "dataset": f"CIFAR-{self.dataset}",
            "files": files,
            "official": official,
            "classes": self.num_classes,
            "train_images": self._count("train"),
            "val_images": self._count("val"),
            "test_images": self._count("test"),
            "noise": noise | {"changed_fraction": float(changed.mean())},
        }

    def _read(self) -> tuple[dict[SplitName, Split], list[str]]:
        train, test, names = self._read_10() if self.dataset == 10 else self._read_100()
        self._clean = self._noisy = train.labels
        if self.noisy_labels is not None:
            self._noisy = load_noisy_labels(self.noisy_labels, train.labels, self.noise)
        elif self.noise.probability:
            self._noisy = add_noise(train.labels, self._noise_groups(len(names)), self.noise)
        kept, held_out = self._split(train.labels)
        images = ArrayImages(torch.from_numpy(train.images))
        splits: dict[SplitName, Split] = {
            "train": Split(images, kept, self._noisy[kept]),
            "val": Split(images, held_out, train.labels[held_out]),
            "test": Split(ArrayImages(torch.from_numpy(test.images)), np.arange(len(test.images)), test.labels),
        }
        return splits, names

    def _read_10(self) -> tuple[CifarPart, CifarPart, list[str]]:
        names = read_class_names(self._file("cifar-10-batches-py/batches.meta"), b"label_names")
        files = [self._file(f"cifar-10-batches-py/data_batch_{i}") for i in range(1, 6)]
        parts = [read_part(path, len(names)) for path in files]
        images, labels = np.concatenate([p.images for p in parts]), np.concatenate([p.labels for p in parts])
        self._coarse_of = np.zeros(0, dtype=np.int64)
        test = read_part(self._file("cifar-10-batches-py/test_batch"), len(names))
        return CifarPart(images, labels, None), test, names

    def _read_100(self) -> tuple[CifarPart, CifarPart, list[str]]:
        meta = self._file("cifar-100-python/meta")
        names, self._coarse_names = (
            read_class_names(meta, key) for key in (b"fine_label_names", b"coarse_label_names")
        )
        paths = [self._file(f"cifar-100-python/{split}") for split in ("train", "test")]
        train, test = (read_part(path, len(names), len(self._coarse_names)) for path in paths)
        assert train.coarse_labels is not None
        if len(set(train.labels.tolist())) < len(names):
            raise DataError(f"{paths[0]}: key b'fine_labels': a class has no image; {REMEDY}")
        self._coarse_of = np.zeros(len(names), dtype=np.int64)
        self._coarse_of[train.labels] = train.coarse_labels
        for path, part in zip(paths, (train, test), strict=True):
            if (self._coarse_of[part.labels] != part.coarse_labels).any():
                raise DataError(f"{path}: key b'coarse_labels': a fine class has two coarse ones; {REMEDY}")
        return train, test, names

    def _noise_groups(self, num_classes: int) -> NDArray[np.int64]:
        if self.noise.groups == "coarse":
            return coarse_groups(self._coarse_of)
        return consecutive_groups(num_classes)

    def _split(self, labels: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        if self.split_rule == "smooth_topk":
            return hold_out_smooth_topk(len(labels), self.val_images)
        seeds = [self.split_seed, self.seed] if self.resplit_per_run else [self.split_seed]
        return hold_out(len(labels), self.val_images, seeds, labels if self.stratified else None)

    def _file(self, name: str) -> Path:
        self._files[name] = self.root / name
        return self._files[name]
