"""Tiny ImageNet (Stanford CS231n, 200 classes of 64 x 64 pixels) as a LightningDataModule."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from data_modules.classification import ClassificationDataModule, Split, SplitName, hold_out
from data_modules.errors import DataError
from data_modules.image_loading import PIXEL_SCALES, PixelScale, check_choice, describe_file
from data_modules.image_sources import CachedImages, FileImages, build_cache
from data_modules.resident import Preprocessing

ARCHIVE_MD5 = "90528d7ca1a48142e341f4ef8d21d0de"  # of tiny-imagenet-200.zip, 248,100,043 bytes
OFFICIAL_COUNTS = (200, 100_000, 10_000)  # classes, images in train/, images in val/
# Per-channel statistics of the training images as public code quotes them; not measured here.
DATASET_SCALE = PixelScale((122.451, 114.2655, 101.3625), (70.635, 68.6205, 71.9355))
FOLDER = "tiny-imagenet-200"
REMEDY = "extract tiny-imagenet-200.zip again"
SIZE_WH = (64, 64)


class TinyImageNetDataModule(ClassificationDataModule):
    """Tiny ImageNet: part of `train/` is held out for validation, and the labelled `val/` is for testing.

    The archive's own `test/` has no labels and is never read. Of a class, the images are those that its box file
    lists. `val/` may also be sorted into folders by class, as many copies are.

    Args:
        root: Folder with `tiny-imagenet-200/`.
        batch_size: Images a batch.
        seed: Seed of the order of training images and of their augmentation.
        val_images: How many of the training images are held out.
        split_seed: Seed of the split, shared by all runs.
        resplit_per_run: Let the split depend on `seed` too.
        stratified: Hold out the same fraction of every class.
        augment: Mirror every second training image; they are never cropped.
        normalisation: Constants of ImageNet or of the data set.
        cache_dir: Folder of the cache of decoded images; None decodes the files in every epoch.
        resident: Keep all images on the trainer's device and prepare the batches there.
        num_workers: Loader processes, and threads that fill the cache.
    """

    def __init__(
        self,
        root: str | Path,
        batch_size: int,
        seed: int,
        val_images: int = 10_000,
        split_seed: int = 0,
        resplit_per_run: bool = False,
        stratified: bool = False,
        augment: bool = True,
        normalisation: Literal["imagenet", "dataset"] = "imagenet",
        cache_dir: str | Path | None = None,
        resident: bool = False,
        num_workers: int = 0,
    ) -> None:
        check_choice("normalisation", normalisation, ("imagenet", "dataset"))
        scale = DATASET_SCALE if normalisation == "dataset" else PIXEL_SCALES["torchvision"]
        super().__init__(batch_size, seed, Preprocessing(scale), augment, resident, num_workers)
        self.root, self.val_images, self.split_seed = Path(root) / FOLDER, val_images, split_seed
        self.resplit_per_run, self.stratified, self.cache_dir = resplit_per_run, stratified, cache_dir
        self._wnids: list[str] = []

    @property
    def wnids(self) -> list[str]:
        """WordNet ids of the classes, in the order of `wnids.txt`; an id's position is its label."""
        self.setup()
        return self._wnids

    def provenance(self) -> dict[str, Any]:
        """Describe the data for a run's record: the files that list the images, and how many there are.

        Returns:
            `files` (name, bytes and sha256 of each list), the number of images of each split, and `official`: whether
            the numbers of classes and images are the archive's. Its `ARCHIVE_MD5` can't be checked any more.
        """
        self.setup()
        names = [n for n in ("wnids.txt", "words.txt", "val/val_annotations.txt") if (self.root / n).is_file()]
        counts = self.num_classes, self._count("train") + self._count("val"), self._count("test")
        return {
            "dataset": "Tiny ImageNet",
            "files": [describe_file(f"{FOLDER}/{name}", self.root / name) for name in names],
            "official": counts == OFFICIAL_COUNTS,
            "classes": self.num_classes,
            "train_images": self._count("train"),
            "val_images": self._count("val"),
            "test_images": self._count("test"),
        }

    def _read(self) -> tuple[dict[SplitName, Split], list[str]]:
        self._wnids = read_wnids(self.root)
        words = read_words(self.root, self._wnids)
        files, labels = list_train(self.root, self._wnids)
        test_files, test_labels = list_val(self.root, self._wnids)
        seeds = [self.split_seed, self.seed] if self.resplit_per_run else [self.split_seed]
        kept, held_out = hold_out(len(labels), self.val_images, seeds, labels if self.stratified else None)
        train, test = self._images(files), self._images(test_files)
        splits: dict[SplitName, Split] = {
            "train": Split(train, kept, labels[kept]),
            "val": Split(train, held_out, labels[held_out]),
            "test": Split(test, np.arange(len(test_labels)), test_labels),
        }
        return splits, words

    def _images(self, names: Sequence[str]) -> FileImages | CachedImages:
        source = FileImages(self.root, tuple(names), REMEDY, size_wh=SIZE_WH)
        return source if self.cache_dir is None else build_cache(source, self.cache_dir, max(1, self.num_workers))


def read_wnids(root: Path) -> list[str]:
    """Read the classes' WordNet ids; an id's line is its label.

    Raises:
        DataError: The file is missing or empty, or an id is repeated or no folder name.
    """
    path = root / "wnids.txt"
    wnids = [row[0] for row in _rows(path, 1)]
    if len(set(wnids)) != len(wnids):
        raise DataError(f"{path}: {len(wnids) - len(set(wnids))} ids occur twice; {REMEDY}")
    for wnid in wnids:
        if not wnid.isalnum():
            raise DataError(f"{path}: {wnid!r} is no WordNet id; {REMEDY}")
    return wnids


def read_words(root: Path, wnids: Sequence[str]) -> list[str]:
    """Return the names of the classes, which `words.txt` has among those of all WordNet ids.

    Raises:
        DataError: The file is missing, or an id isn't in it.
    """
    path = root / "words.txt"
    words: dict[str, str] = dict(_rows(path, 2))
    for wnid in wnids:
        if wnid not in words:
            raise DataError(f"{path}: has no line for {wnid}; {REMEDY}")
    return [words[wnid] for wnid in wnids]


def list_train(root: Path, wnids: Sequence[str]) -> tuple[list[str], NDArray[np.int64]]:
    """List the training images by class, in the order of each class's `<wnid>_boxes.txt`.

    Returns:
        Paths relative to `root`, and labels int64.

    Raises:
        DataError: A box file is missing, or its images and those in the folder aren't the same.
    """
    names, labels = [], []
    for label, wnid in enumerate(wnids):
        path = root / "train" / wnid / f"{wnid}_boxes.txt"
        own = [row[0] for row in _rows(path, 5)]
        _check_folder(path, own, path.parent / "images")
        names += [f"train/{wnid}/images/{name}" for name in own]
        labels += [label] * len(own)
    return names, np.array(labels, dtype=np.int64)


def list_val(root: Path, wnids: Sequence[str]) -> tuple[list[str], NDArray[np.int64]]:
    """List the images of `val/`, in the order of `val_annotations.txt`, or by class where they are sorted so.

    Returns:
        Paths relative to `root`, and labels int64.

    Raises:
        DataError: A file or folder is missing, a class is unknown, or list and folder don't hold the same images.
    """
    if not (root / "val" / "images").is_dir():
        return _list_sorted_val(root, wnids)
    path = root / "val" / "val_annotations.txt"
    rows = _rows(path, 6)
    _check_folder(path, [row[0] for row in rows], root / "val" / "images")
    label_of = {wnid: label for label, wnid in enumerate(wnids)}
    for name, wnid, *_ in rows:
        if wnid not in label_of:
            raise DataError(f"{path}: image {name}: {wnid!r} isn't in wnids.txt; {REMEDY}")
    return [f"val/images/{row[0]}" for row in rows], np.array([label_of[row[1]] for row in rows], dtype=np.int64)


def _list_sorted_val(root: Path, wnids: Sequence[str]) -> tuple[list[str], NDArray[np.int64]]:
    names, labels = [], []
    for label, wnid in enumerate(wnids):
        folder = root / "val" / wnid
        folder = folder / "images" if (folder / "images").is_dir() else folder
        own = sorted(_images_in(folder), key=lambda name: (len(name), name))  # val_2 before val_10
        if not own:
            raise DataError(f"{folder}: holds no .JPEG, and there is no val/images; {REMEDY}")
        names += [(folder / name).relative_to(root).as_posix() for name in own]
        labels += [label] * len(own)
    return names, np.array(labels, dtype=np.int64)


def _rows(path: Path, columns: int) -> list[list[str]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; {REMEDY}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a readable text file ({error}); {REMEDY}") from error
    rows = []
    for number, line in enumerate(lines, 1):
        row = line.rstrip().split("\t")
        if line.strip() and len(row) != columns:
            raise DataError(f"{path}: line {number}: expected {columns} columns, found {row}; {REMEDY}")
        rows += [row] if line.strip() else []
    if not rows:
        raise DataError(f"{path}: is empty; {REMEDY}")
    return rows


def _images_in(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir() if p.suffix == ".JPEG"} if folder.is_dir() else set()


def _check_folder(path: Path, listed: Sequence[str], folder: Path) -> None:
    if len(set(listed)) != len(listed):
        raise DataError(f"{path}: lists {len(listed) - len(set(listed))} images twice; {REMEDY}")
    found = _images_in(folder)
    for what, names in (("lacks", set(listed) - found), ("holds, unlisted,", found - set(listed))):
        if names:
            raise DataError(f"{path}: {folder} {what} {len(names)} images, e.g. {min(names)}; {REMEDY}")
