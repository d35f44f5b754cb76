"""MIT67, the indoor scenes of Quattoni and Torralba (CVPR 2009), as a LightningDataModule."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from data_modules.classification import ClassificationDataModule, Split, SplitName, hold_out
from data_modules.errors import DataError
from data_modules.image_loading import PIXEL_SCALES, Pixels, check_choice, describe_file
from data_modules.image_sources import CachedImages, FileImages, Resize, build_cache
from data_modules.resident import Preprocessing

# SHA-256 of the official lists, of 5,360 and 1,340 images.
OFFICIAL_SHA256 = {
    "TrainImages.txt": "7ec85f88735739d8159061e4bcf6a9765aab8606ab444605b3f8e0641be0260e",
    "TestImages.txt": "906c529a5a0918feec371de5b07a465ddb1f15ebaebc90a33cc321c371133bf1",
}
LIST_REMEDY = "fetch TrainImages.txt and TestImages.txt again from the data set's page"
IMAGE_REMEDY = "extract indoorCVPR_09.tar so that Images/<category>/ exists, and compare its checksum"
RESIZES = {"crop224": Resize(256), "short600": Resize(600, limit=1000)}


class MIT67DataModule(ClassificationDataModule):
    """MIT67: the lists decide which images train and which test; `Images/` holds many more.

    Batches hold one tensor of square crops, or images of different sizes without padding (`RaggedImages`). Many files
    aren't what their suffix says, some are greyscale or have a palette: the content decides, and all become RGB.

    Args:
        root: Folder with `Images/`, `TrainImages.txt` and `TestImages.txt`.
        batch_size: Images a batch.
        seed: Seed of the order of training images and of their augmentation.
        size: `short600` gives whole images whose shorter side has 600 pixels, but the longer one 1000 at most, as the
            affinity paper's detector wants them. `crop224` scales the shorter side to 256 pixels and crops 224 x 224:
            at random for training, else from the middle.
        pixels: How the network wants its pixels.
        val_images: How many training images are held out for validation; the paper holds out none.
        split_seed: Seed of that split, shared by all runs.
        augment: Mirror every second training image, and place crops at random.
        cache_dir: Folder of the cache of decoded and resized images; None decodes the files in every epoch.
        resident: Keep all images on the trainer's device; only if all have one size.
        num_workers: Loader processes, and threads that fill the cache.
    """

    def __init__(
        self,
        root: str | Path,
        batch_size: int,
        seed: int,
        size: Literal["short600", "crop224"] = "short600",
        pixels: Pixels = "torchvision",
        val_images: int = 0,
        split_seed: int = 0,
        augment: bool = True,
        cache_dir: str | Path | None = None,
        resident: bool = False,
        num_workers: int = 0,
    ) -> None:
        check_choice("size", size, tuple(RESIZES))
        check_choice("pixels", pixels, tuple(PIXEL_SCALES))
        preprocessing = Preprocessing(PIXEL_SCALES[pixels], crop=224 if size == "crop224" else None)
        super().__init__(batch_size, seed, preprocessing, augment, resident, num_workers)
        self.root, self.size, self.cache_dir = Path(root), size, cache_dir
        self.val_images, self.split_seed = val_images, split_seed

    def provenance(self) -> dict[str, Any]:
        """Describe the data for a run's record: both lists, and how many images of them there are.

        Returns:
            `files` (name, bytes and sha256 of each list), `official` (whether both are the data set's own), and the
            number of images of each split.
        """
        self.setup()
        files = [describe_file(name, self.root / name) for name in OFFICIAL_SHA256]
        return {
            "dataset": "MIT67",
            "files": files,
            "official": all(OFFICIAL_SHA256[file["name"]] == file["sha256"] for file in files),
            "classes": self.num_classes,
            "train_images": self._count("train"),
            "val_images": self._count("val"),
            "test_images": self._count("test"),
        }

    def _read(self) -> tuple[dict[SplitName, Split], list[str]]:
        (names, labels), (test_names, test_labels), classes = read_lists(self.root)
        kept, held_out = hold_out(len(labels), self.val_images, [self.split_seed])
        train, test = self._images(names), self._images(test_names)
        splits: dict[SplitName, Split] = {
            "train": Split(train, kept, labels[kept]),
            "val": Split(train, held_out, labels[held_out]),
            "test": Split(test, np.arange(len(test_labels)), test_labels),
        }
        return splits, classes

    def _images(self, names: Sequence[str]) -> FileImages | CachedImages:
        files = tuple(f"Images/{name}" for name in names)
        missing = [name for name in files if not (self.root / name).is_file()]
        if missing:
            found = f"lacks {len(missing)} of {len(files)} listed images, e.g. {missing[0]!r}"
            raise DataError(f"{self.root}: {found}; {IMAGE_REMEDY}")
        source = FileImages(self.root, files, IMAGE_REMEDY, RESIZES[self.size])
        return source if self.cache_dir is None else build_cache(source, self.cache_dir, max(1, self.num_workers))


def read_lists(
    root: Path,
) -> tuple[tuple[list[str], NDArray[np.int64]], tuple[list[str], NDArray[np.int64]], list[str]]:
    """Read both lists; the classes are the sorted categories of the training list.

    Returns:
        Names below `Images/` and int64 labels of the training images, the same of the test images, and the classes.

    Raises:
        DataError: A list is missing or empty, a line is no `category/file`, an image is listed twice, or a category
            of the test list has no training images.
    """
    train, test = (_read_list(root / name) for name in ("TrainImages.txt", "TestImages.txt"))
    twice = set(train) & set(test)
    if twice:
        raise DataError(f"{root / 'TestImages.txt'}: {min(twice)!r} is a training image too; {LIST_REMEDY}")
    classes = sorted({name.split("/")[0] for name in train})
    label_of = {name: label for label, name in enumerate(classes)}
    for name in test:
        if name.split("/")[0] not in label_of:
            raise DataError(
                f"{root / 'TestImages.txt'}: {name!r}: no training image is of this category; {LIST_REMEDY}"
            )
    labels = [np.array([label_of[n.split("/")[0]] for n in names], dtype=np.int64) for names in (train, test)]
    return (train, labels[0]), (test, labels[1]), classes


def _read_list(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; {LIST_REMEDY}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a readable text file ({error}); {LIST_REMEDY}") from error
    names = []
    for number, line in enumerate(lines, 1):
        name = line.strip()
        parts = name.split("/")
        if name and (len(parts) != 2 or not all(parts) or ".." in parts or "\\" in name):
            raise DataError(f"{path}: line {number}: expected category/file, found {name!r}; {LIST_REMEDY}")
        names += [name] if name else []
    if not names:
        raise DataError(f"{path}: lists no images; {LIST_REMEDY}")
    if len(set(names)) != len(names):
        raise DataError(f"{path}: lists {len(names) - len(set(names))} images twice; {LIST_REMEDY}")
    return names
