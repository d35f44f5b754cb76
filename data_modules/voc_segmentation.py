"""PASCAL VOC2012 segmentation, with the labels that SBD adds, as a LightningDataModule."""

from __future__ import annotations

import warnings
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch.utils.data import DataLoader

from data_modules.detection import Split
from data_modules.errors import DataError
from data_modules.image_loading import PIXEL_SCALES, ImageDataModule, Pixels, check_choice, describe_file
from data_modules.image_sources import FileImages, Warp, cached
from data_modules.sbd_files import SBD_REMEDY, read_sbd_ids
from data_modules.segmentation import SegmentationBatch, SegmentationDataset, SegmentationExample, collate_segmentation
from data_modules.voc_files import VOC_CLASSES, VOC_REMEDY, read_ids

# SHA-256, observed on the official id lists.
OFFICIAL_SHA256 = {
    "train.txt": "aa623bd2c8ce4443a8aaae51c524c0eb165e8e44caf6aa9e3ad33d7b75a3ef20",
    "val.txt": "cdc1326d12f69ce5153aa5da04a4d8783e146868d42d19f82f44e74b97ac907d",
    "test.txt": "5e8fe0c14b2e6633fb2e3a0f5db65fb6b8f5217b574478bb21127a48fd33010f",
}
UNION_IMAGES = 12_031  # of VOC's train and val lists and SBD
NO_VAL_IMAGES = 10_582  # of these, without VOC's 1,449 val images


class VOCSegmentationDataModule(ImageDataModule):
    """VOC2012 segmentation, trained on VOC's own labels and SBD's, in folds where wanted.

    Labels are VOC's where VOC has the image, otherwise SBD's. No image is trained on and scored. Val images, those of
    `val_official.txt` included where `val.txt` is a part of it, are trained on in the pool `trainval_sbd` alone.

    Args:
        root: Folder with `VOCdevkit/VOC2012`, and `benchmark_RELEASE/dataset` or `VOC2012/SegmentationClassAug`.
        batch_size: Images a batch.
        seed: Seed of the order of training images.
        train_pool: VOC's train list; all labelled images but val (10,582); or val too, the paper's pool (12,031).
        eval_split: Images scored: the val list, the fold that is left out, or the test list, which has no labels.
        fold: Fold of the pool that isn't trained on; None trains on the whole pool.
        num_folds: Folds that the pool is divided into.
        fold_seed: Seed of the division, independent of `seed`.
        input_size: Side in pixels of the square that images are warped to; None keeps their size.
        flip: Double the training images by mirrored ones.
        pixels: Pixel scale of the network.
        sbd_labels: SBD's .mat files, the PNG folder, or the first of these that is there.
        image_cache: Folder of the cache of decoded and warped images; None decodes the files in every epoch.
        num_workers: Loader processes, and threads that fill the cache.

    Raises:
        ValueError: An argument is unknown, or val is to be scored while it is trained on.
    """

    def __init__(
        self,
        root: str | Path,
        batch_size: int,
        seed: int,
        train_pool: Literal["train", "no_val", "trainval_sbd"] = "no_val",
        eval_split: Literal["val", "fold", "test"] = "val",
        fold: int | None = None,
        num_folds: int = 10,
        fold_seed: int = 0,
        input_size: int | None = 227,
        flip: bool = True,
        pixels: Pixels = "caffenet",
        sbd_labels: Literal["auto", "mat", "png"] = "auto",
        image_cache: str | Path | None = None,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size, seed, num_workers)
        check_choice("train_pool", train_pool, ("train", "no_val", "trainval_sbd"))
        check_choice("eval_split", eval_split, ("val", "fold", "test"))
        check_choice("sbd_labels", sbd_labels, ("auto", "mat", "png"))
        check_choice("pixels", pixels, list(PIXEL_SCALES))
        if num_folds < 2 or (fold is not None and not 0 <= fold < num_folds):
            raise ValueError(f"fold={fold}, num_folds={num_folds}: expected two folds or more, counted from 0")
        if eval_split == "fold" and fold is None:
            raise ValueError("eval_split='fold' scores the fold that is left out: name it with fold=")
        if eval_split == "val" and train_pool == "trainval_sbd":
            raise ValueError("train_pool='trainval_sbd' holds val images: score each fold of it with eval_split='fold'")
        self.root, self.image_cache = Path(root), image_cache
        self.year = self.root / "VOCdevkit" / "VOC2012"
        self.sbd = self.root / "benchmark_RELEASE" / "dataset"
        self.train_pool, self.eval_split, self.sbd_labels = train_pool, eval_split, sbd_labels
        self.fold, self.num_folds, self.fold_seed = fold, num_folds, fold_seed
        self.input_size, self.flip, self.pixels = input_size, flip, pixels
        self._collate = partial(collate_segmentation, pixels=pixels)
        self._files: dict[str, Path] = {}
        self._pool_is_official = True
        self._examples: dict[Split, list[SegmentationExample]] = {}

    def setup(self, stage: str | None = None) -> None:
        """Read the lists and find the files: of the training images for `fit`, of both sides for None, else the scored.

        A side is read once.

        Raises:
            DataError: A list or file is missing, damaged or doesn't fit the others, or an image is both trained on and
                scored.
        """
        if stage in ("fit", None):
            self._side("train")
        if stage != "fit":
            self._side("test")

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the 21 labels, the background first; a name's position is its id in label maps."""
        return ("background", *VOC_CLASSES)

    @property
    def train_examples(self) -> list[SegmentationExample]:
        """The images trained on, without mirrored ones."""
        return self._side("train")

    @property
    def test_examples(self) -> list[SegmentationExample]:
        """The images that are scored."""
        return self._side("test")

    def train_dataloader(self) -> DataLoader[SegmentationBatch]:
        """Shuffled training batches from `start_step` on."""
        dataset = self._dataset(self.train_examples, self.flip)
        return self._train_loader(dataset, len(dataset), self._collate)

    def test_dataloader(self) -> DataLoader[SegmentationBatch]:
        """Batches of the scored images in their order, all of them in every process."""
        return self._test_loader(self._dataset(self.test_examples, flip=False), self._collate)

    def predict_dataloader(self) -> DataLoader[SegmentationBatch]:
        """The same as `test_dataloader`."""
        return self.test_dataloader()

    def provenance(self) -> dict[str, Any]:
        """Describe the data for a run's record.

        Returns:
            `files` (the id lists that were read, with checksums), `counts` (images of the sides read so far, and where
            their labels come from), `leaks_val` (whether val images are trained on), and `official`: whether VOC's
            lists are the release's own, and the pool as large as the releases make it.
        """
        if not self._examples:
            self.setup()
        files = [describe_file(name, path) for name, path in self._files.items()]
        known = [f["sha256"] == OFFICIAL_SHA256[f["name"]] for f in files if f["name"] in OFFICIAL_SHA256]
        counts: dict[str, int] = {}
        for side, examples in self._examples.items():
            counts[f"{side}_images"] = len(examples)
            sources = Counter(e.label_path.parent.name for e in examples if e.label_path)
            counts |= {f"{side}_labels_{source}": number for source, number in sorted(sources.items())}
        return {
            "dataset": "VOC2012 segmentation and SBD",
            "official": all(known) and self._pool_is_official,
            "files": files,
            "counts": counts,
            "leaks_val": "train" in self._examples and self.train_pool == "trainval_sbd",
        }

    def _dataset(self, examples: list[SegmentationExample], flip: bool) -> SegmentationDataset:
        names = tuple(str(e.path.relative_to(self.root)) for e in examples)
        warp = Warp((self.input_size, self.input_size)) if self.input_size else None
        files = FileImages(self.root, names, VOC_REMEDY, warp, decoder="torchvision")
        images = cached(files, self.image_cache, self.num_workers)
        return SegmentationDataset(examples, images, flip)

    def _side(self, side: Split) -> list[SegmentationExample]:
        if side not in self._examples:
            train, test = (self._train_ids() if side == "train" else []), self._test_ids()
            both = sorted(set(train) & set(test))
            if both:
                found = f"{len(both)} images that are scored are trained on too, {both[0]!r} first"
                raise DataError(f"{self.year / 'ImageSets' / 'Segmentation'}: {found}; {VOC_REMEDY}")
            labelled = side == "train" or self.eval_split != "test"
            self._examples[side] = self._find(train if side == "train" else test, labelled)
        return self._examples[side]

    def _list(self, name: str) -> list[str]:
        self._files[f"{name}.txt"] = self._path(name)
        return read_ids(self._path(name))

    def _path(self, name: str) -> Path:
        return self.year / "ImageSets" / "Segmentation" / f"{name}.txt"

    def _val_ids(self) -> set[str]:
        """Return all val images: `val.txt`, and the official list where the folder has only a part of the images."""
        scored = set(self._list("val"))
        if not self._path("val_official").is_file():
            return scored
        official = set(self._list("val_official"))
        if not scored <= official:
            extra = sorted(scored - official)
            found = f"{len(extra)} images aren't in val_official.txt, {extra[0]!r} first"
            raise DataError(f"{self._path('val')}: {found}; {VOC_REMEDY}")
        return official

    def _pool(self) -> list[str]:
        """Return the ids of the pool, sorted; the sizes of the two large pools are checked."""
        train, val = set(self._list("train")), self._val_ids()
        if train & val:
            both = sorted(train & val)
            raise DataError(f"{self._path('train')}: {len(both)} images are val's, {both[0]!r} first; {VOC_REMEDY}")
        if self.train_pool == "train":
            return sorted(train)
        if (self.sbd / "train.txt").is_file():
            self._files |= {f"SBD {split}.txt": self.sbd / f"{split}.txt" for split in ("train", "val")}
            union = train | val | set(read_sbd_ids(self.sbd))
        elif self._path("train_aug").is_file():
            union = train | val | set(self._list("train_aug"))
        else:
            raise DataError(f"{self.sbd / 'train.txt'}: no such file, nor {self._path('train_aug')}; {SBD_REMEDY}")
        self._pool_is_official = (len(union), len(union - val)) == (UNION_IMAGES, NO_VAL_IMAGES)
        if not self._pool_is_official:
            warnings.warn(
                f"VOC and SBD label {len(union)} images, {len(union - val)} without val; the releases label "
                f"{UNION_IMAGES} and {NO_VAL_IMAGES}",
                stacklevel=2,
            )
        return sorted(union if self.train_pool == "trainval_sbd" else union - val)

    def _fold_ids(self, pool: list[str]) -> set[str]:
        order = np.random.default_rng(self.fold_seed).permutation(len(pool))
        if self.fold is None:
            return set()
        return {pool[i] for i in np.array_split(order, self.num_folds)[self.fold]}

    def _train_ids(self) -> list[str]:
        pool = self._pool()
        left_out = self._fold_ids(pool)
        return [image for image in pool if image not in left_out]

    def _test_ids(self) -> list[str]:
        return sorted(self._fold_ids(self._pool())) if self.eval_split == "fold" else self._list(self.eval_split)

    def _find(self, images: list[str], labelled: bool) -> list[SegmentationExample]:
        """Find each image's file and labels.

        Raises:
            DataError: Files are missing; the message names the first and says how many others.
        """
        from_mat = self.sbd_labels == "mat" or (self.sbd_labels == "auto" and (self.sbd / "cls").is_dir())
        sbd_folder = self.sbd / "cls" if from_mat else self.year / "SegmentationClassAug"
        by_voc = self._val_ids() | set(self._list("train")) if labelled else set()
        present = {
            folder: {path.name for path in folder.iterdir()} if folder.is_dir() else set()
            for folder in (self.year / "JPEGImages", self.year / "SegmentationClass", self.sbd / "img", sbd_folder)
        }
        examples, missing = [], []
        for image in images:
            # SBD has copies of the images it labels, for those who hold VOC's segmentation images alone.
            in_voc = (
                f"{image}.jpg" in present[self.year / "JPEGImages"] or f"{image}.jpg" not in present[self.sbd / "img"]
            )
            path = (self.year / "JPEGImages" if in_voc else self.sbd / "img") / f"{image}.jpg"
            label_path = None
            if image in by_voc:
                label_path = self.year / "SegmentationClass" / f"{image}.png"
            elif labelled:
                label_path = sbd_folder / f"{image}{'.mat' if from_mat else '.png'}"
            missing += [wanted for wanted in (path, label_path) if wanted and wanted.name not in present[wanted.parent]]
            examples.append(SegmentationExample(image, path, label_path))
        if missing:
            remedy = VOC_REMEDY if missing[0].parent.parent == self.year else SBD_REMEDY
            raise DataError(f"{missing[0]}: no such file, nor {len(missing) - 1} others; {remedy}")
        return examples
