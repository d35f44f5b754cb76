"""PASCAL VOC detection (2007, or 2007 and 2012 for training) as a LightningDataModule."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

from data_modules.detection import DetectionDataModule, DetectionExample, Split
from data_modules.errors import DataError
from data_modules.image_loading import Pixels, check_choice, describe_file
from data_modules.voc_files import VOC_CLASSES, VOC_REMEDY, read_annotation, read_ids

# Images, and objects that aren't difficult, as the VOC2007 and VOC2012 pages state them.
OFFICIAL_COUNTS = {
    "VOC2007/train": (2501, 6301),
    "VOC2007/val": (2510, 6307),
    "VOC2007/trainval": (5011, 12608),
    "VOC2007/test": (4952, 12032),
    "VOC2012/trainval": (11540, 27450),
}


class VOCDetectionDataModule(DetectionDataModule):
    """VOC2007 trainval for training and test for scoring, read from the devkit's own files.

    Args:
        root: Folder with `VOCdevkit/`.
        batch_size: Images a batch.
        seed: Seed of the order of training images.
        train_split: VOC2007 trainval, or train, if val is scored.
        eval_split: VOC2007 test, or val.
        years: Train on VOC2007 alone, or add VOC2012 trainval.
        flip: Double the training images by mirrored ones, as Faster R-CNN does.
        short_side: Short side of resized images in pixels.
        long_side: Greatest long side of resized images in pixels.
        pixels: Pixel scale of the network.
        keep_empty_train: Train on images without a training target too (all their objects are difficult).
        image_cache: Folder of the cache of decoded and resized images; None decodes the files in every epoch.
        num_workers: Loader processes, and threads that fill the cache.

    Raises:
        ValueError: An argument is unknown, or val is to be scored while it is trained on.
    """

    def __init__(
        self,
        root: str | Path,
        batch_size: int,
        seed: int,
        train_split: Literal["trainval", "train"] = "trainval",
        eval_split: Literal["test", "val"] = "test",
        years: Literal["07", "07+12"] = "07",
        flip: bool = True,
        short_side: int = 600,
        long_side: int = 1000,
        pixels: Pixels = "torchvision",
        keep_empty_train: bool = False,
        image_cache: str | Path | None = None,
        num_workers: int = 0,
    ) -> None:
        super().__init__(
            root,
            batch_size,
            seed,
            flip,
            short_side,
            long_side,
            pixels,
            keep_empty_train,
            image_cache,
            num_workers,
            VOC_REMEDY,
        )
        check_choice("train_split", train_split, ("trainval", "train"))
        check_choice("eval_split", eval_split, ("test", "val"))
        check_choice("years", years, ("07", "07+12"))
        if eval_split == "val" and train_split == "trainval":
            raise ValueError("eval_split='val' would score images that are trained on: use train_split='train'")
        if eval_split == "val" and years == "07+12":
            raise ValueError("eval_split='val' with years='07+12': VOC2012 trainval goes with VOC2007 trainval only")
        self.train_split, self.eval_split, self.years = train_split, eval_split, years
        self._checksums: dict[str, dict[str, Any]] = {}
        self._totals: dict[str, tuple[int, int]] = {}

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of VOC's 20 classes; a name's position is its label."""
        return VOC_CLASSES

    def provenance(self) -> dict[str, Any]:
        """Describe the data for a run's record.

        Returns:
            `files` (the id lists, and each split's annotations as one file: all XML in the list's order) and `counts`
            of the sides read so far, and `official`: whether images and objects are as many as the VOC pages state, for
            the devkit comes without checksums of its files.
        """
        counts = self.counts()
        files = []
        official = True
        for split in self.splits:
            for name, path in self._lists(split).items():
                files += [describe_file(f"{name}.txt", path), self._checksums[name]]
                official &= self._totals[name] == OFFICIAL_COUNTS[name]
        return {"dataset": "VOC detection", "official": official, "files": files, "counts": counts}

    def _lists(self, split: str) -> dict[str, Path]:
        names = [f"VOC2007/{self.eval_split}"] if split == "test" else [f"VOC2007/{self.train_split}"]
        if split == "train" and self.years == "07+12":
            names.append("VOC2012/trainval")
        folders = {name: self.root / "VOCdevkit" / Path(name).parent for name in names}
        return {name: year / "ImageSets" / "Main" / f"{Path(name).name}.txt" for name, year in folders.items()}

    def _read(self, split: Split) -> list[DetectionExample]:
        ids = {name: read_ids(path) for name, path in self._lists(split).items()}
        other: Split = "test" if split == "train" else "train"
        for path in self._lists(other).values():
            other_ids = set(read_ids(path)) if path.is_file() else set()
            for name, images in ids.items():
                both = sorted(other_ids.intersection(images))
                if both:
                    found = f"{len(both)} images of {name}.txt are in it too, {both[0]!r} first"
                    raise DataError(f"{path}: {found}: no image may be trained on and scored; {VOC_REMEDY}")
        return [example for name, images in ids.items() for example in self._annotations(name, images)]

    def _annotations(self, name: str, images: list[str]) -> list[DetectionExample]:
        year = self.root / "VOCdevkit" / Path(name).parent
        present = {path.name for path in (year / "JPEGImages").glob("*.jpg")}
        missing = [image for image in images if f"{image}.jpg" not in present]
        if missing:
            path = year / "JPEGImages" / f"{missing[0]}.jpg"
            raise DataError(f"{path}: no such image, nor {len(missing) - 1} others of {name}.txt; {VOC_REMEDY}")
        examples, checksum, size = [], hashlib.sha256(), 0
        for image in images:
            example, content = read_annotation(year, image)
            examples.append(example)
            checksum.update(content)
            size += len(content)
        self._totals[name] = (len(examples), sum(int((~e.difficult).sum()) for e in examples))
        self._checksums[name] = {
            "name": f"{name}: Annotations/*.xml",
            "bytes": size,
            "sha256": checksum.hexdigest(),
        }
        return examples
