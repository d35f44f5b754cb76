"""COCO detection with the 2014 division into 35k ("valminusminival") and 5k ("minival") as a LightningDataModule."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from data_modules.coco_files import COCO_REMEDY, Instances, read_instances
from data_modules.detection import DetectionDataModule, DetectionExample, Split
from data_modules.errors import DataError
from data_modules.image_loading import Pixels, check_choice, describe_file

OFFICIAL_IMAGES = {"valminusminival2014": 35_504, "minival2014": 5_000, "train2014": 82_783}
SOURCES = ("val2014", "train2014", "val2017", "train2017")  # where images of an id list are looked for


class COCODataModule(DetectionDataModule):
    """COCO: trained on the 35k part of val2014 (or train2014, or both), scored on minival.

    Each part is read from `annotations/instances_<part>.json`. Where the files of minival2014 and valminusminival2014
    are missing, they are put together from `<part>_ids.txt` (one image id a line) and the instances of 2014 or 2017;
    without such a list minival is val2017, and the 35k part what val2014 holds beyond it. Images are found under the
    2014 and the 2017 names.

    Args:
        root: Folder with `annotations/`, and the images in `val2014/` (and `train2014/`), or `val2017/`, `train2017/`.
        batch_size: Images a batch.
        seed: Seed of the order of training images.
        train_split: The part or parts trained on.
        flip: Double the training images by mirrored ones.
        short_side: Short side of resized images in pixels.
        long_side: Greatest long side of resized images in pixels.
        pixels: Pixel scale of the network.
        keep_empty_train: Train on images without a training target too (they hold nothing, or crowds only).
        drop_flat_boxes: See `read_instances`.
        image_cache: Folder of the cache of decoded and resized images; None decodes the files in every epoch.
        num_workers: Loader processes, and threads that fill the cache.
    """

    def __init__(
        self,
        root: str | Path,
        batch_size: int,
        seed: int,
        train_split: Literal["valminusminival2014", "train2014", "trainval35k"] = "valminusminival2014",
        flip: bool = True,
        short_side: int = 600,
        long_side: int = 1000,
        pixels: Pixels = "torchvision",
        keep_empty_train: bool = False,
        drop_flat_boxes: bool = False,
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
            COCO_REMEDY,
        )
        check_choice("train_split", train_split, ("valminusminival2014", "train2014", "trainval35k"))
        self.train_split, self.drop_flat_boxes = train_split, drop_flat_boxes
        self._parts = ("train2014", "valminusminival2014") if train_split == "trainval35k" else (train_split,)
        self._instances: dict[str, Instances] = {}
        self._lists: dict[str, Path] = {}

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the categories (80 in the release) in the order of their ids; a name's position is its label."""
        self._split("test")
        return next(iter(self._instances.values())).names

    def provenance(self) -> dict[str, Any]:
        """Describe the data for a run's record.

        Returns:
            `files` (all annotation files and lists read), `counts` of the sides read so far and of boxes without area
            that were left out, and `official`: whether there are as many categories and images as in the release.
        """
        counts = self.counts()
        expected = {"test": OFFICIAL_IMAGES["minival2014"], "train": sum(OFFICIAL_IMAGES[p] for p in self._parts)}
        official = all(counts[f"{split}_images"] == expected[split] for split in self.splits)
        counts["flat_boxes_left_out"] = sum(found.flat_boxes for found in self._instances.values())
        paths = [*(self._path(name) for name in self._instances), *self._lists.values()]
        return {
            "dataset": "COCO",
            "official": official and len(self.class_names) == 80,
            "files": [describe_file(str(path.relative_to(self.root)), path) for path in paths],
            "counts": counts,
        }

    def _path(self, part: str) -> Path:
        return self.root / "annotations" / f"instances_{part}.json"

    def _file(self, part: str) -> Instances:
        if part not in self._instances:
            found = read_instances(self._path(part), self.drop_flat_boxes)
            for other, known in self._instances.items():
                if known.names != found.names:
                    raise DataError(f"{self._path(part)}: other categories than {self._path(other)}; {COCO_REMEDY}")
            self._instances[part] = found
        return self._instances[part]

    def _part(self, part: str) -> dict[int, DetectionExample]:
        if self._path(part).is_file() or part == "train2014":
            return self._file(part).examples
        wanted = self._listed(part)
        found: dict[int, DetectionExample] = {}
        for source in SOURCES:
            if len(found) < len(wanted) and self._path(source).is_file():
                examples = self._file(source).examples
                found |= {number: examples[number] for number in wanted if number in examples}
        if len(found) < len(wanted):
            missing = next(number for number in wanted if number not in found)
            gap = f"image {missing} and {len(wanted) - len(found) - 1} others of it are in no instances_20xx.json"
            raise DataError(f"{self._lists.get(part, self._path(part))}: {gap}; {COCO_REMEDY}")
        return {number: found[number] for number in wanted}

    def _listed(self, part: str) -> list[int]:
        """Return the ids of a part that has no annotation file of its own."""
        path = self.root / "annotations" / f"{part}_ids.txt"
        if path.is_file():
            self._lists[part] = path
            words = path.read_text(encoding="utf-8", errors="replace").split()
            if (
                not words
                or len(set(words)) != len(words)
                or not all(word.isascii() and word.isdigit() for word in words)
            ):
                raise DataError(f"{path}: expected distinct image ids, one a line; {COCO_REMEDY}")
            return [int(word) for word in words]
        if part == "minival2014" and self._path("val2017").is_file():
            return list(self._file("val2017").examples)
        if part == "valminusminival2014" and self._path("val2014").is_file():
            minival = self._part("minival2014")
            return [number for number in self._file("val2014").examples if number not in minival]
        options = f"nor {path.name}, nor the instances of val2014 and val2017 to tell the part from"
        raise DataError(f"{self._path(part)}: no such file, {options}; {COCO_REMEDY}")

    def _read(self, split: Split) -> list[DetectionExample]:
        if split == "test":
            return self._with_images(self._part("minival2014"))
        scored = {int(e.image) for e in self._split("test")}
        examples: dict[int, DetectionExample] = {}
        for part in self._parts:
            own = self._part(part)
            both = sorted(own.keys() & (scored | examples.keys()))
            if both:
                found = f"{len(both)} images are in another part too, {both[0]} first"
                raise DataError(f"{self._path(part)}: {found}: no image may be trained on and scored; {COCO_REMEDY}")
            examples |= own
        return self._with_images(examples)

    def _with_images(self, examples: dict[int, DetectionExample]) -> list[DetectionExample]:
        """Give each record the path of its image, or say which are missing."""
        folders = [self.root / source for source in SOURCES]
        present = {folder: {p.name for p in folder.iterdir()} if folder.is_dir() else set() for folder in folders}
        found = []
        for number, example in examples.items():
            for folder in folders:
                prefix = f"COCO_{folder.name}_" if folder.name.endswith("2014") else ""
                names = (example.path.name, f"{prefix}{number:012d}.jpg")
                name = next((name for name in names if name in present[folder]), None)
                if name:
                    found.append(replace(example, path=folder / name))
                    break
        if len(found) < len(examples):
            kept = {e.image for e in found}
            first = next(e for e in examples.values() if e.image not in kept)
            missing = f"image {first.path.name} and {len(examples) - len(found) - 1} others"
            raise DataError(f"{self.root}: no {missing} in any of {', '.join(SOURCES)}; {COCO_REMEDY}")
        return found
