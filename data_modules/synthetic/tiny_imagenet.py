"""A small generated world in the layout of `tiny-imagenet-200.zip`, file by file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_modules.synthetic.manifest import write_world
from data_modules.synthetic.textures import class_names, family_of, kind_of, render

VERSION = 2  # part of the manifest: raise it when the same parameters give other files
SIZE = 64
GREY_EVERY = 50  # the archive has greyscale images too


def write_tiny_imagenet_world(
    root: str | Path,
    seed: int = 0,
    num_classes: int = 20,
    train_per_class: int = 50,
    val_per_class: int = 10,
    kind_contrast: float = 0.6,
    noise: float = 18.0,
) -> Path:
    """Write the world under `root` and return that; a complete one of the same parameters is kept as it is.

    Labels follow the order of `wnids.txt`, which isn't the alphabetical one; `words.txt` names more ids than there are
    classes; one image in fifty is greyscale; `test/` has images without labels. The same parameters give the same
    bytes with the same Pillow.

    Args:
        root: The world's folder; `tiny-imagenet-200/` appears in it.
        seed: Decides ids, pixels and order.
        num_classes: Number of classes (200 in the archive).
        train_per_class: Training images of each class (500 in the archive).
        val_per_class: Images in `val/`, and in `test/`, for each class (50 in the archive).
        kind_contrast: How different the classes of one family look, see `render`.
        noise: Standard deviation of pixel noise in grey levels.

    Raises:
        DataError: `root` exists and holds anything else.
        ValueError: A number is not positive.
    """
    if min(num_classes, train_per_class, val_per_class) < 1 or seed < 0:
        raise ValueError("a world has 1 or more classes, an image of each in every split, and a seed >= 0")
    manifest: dict[str, Any] = {"generator": "synthetic/tiny_imagenet", "version": VERSION, "seed": seed}
    manifest |= {"num_classes": num_classes, "train_per_class": train_per_class, "val_per_class": val_per_class}
    looks: dict[str, Any] = {"kind_contrast": kind_contrast, "noise": noise}

    def write(folder: Path) -> None:
        rng = np.random.default_rng([seed, 0])
        own = folder / "tiny-imagenet-200"
        own.mkdir(parents=True)
        numbers = rng.choice(10**7, size=num_classes + 5, replace=False)
        ids = [f"n{number:08d}" for number in numbers]
        wnids = ids[:num_classes]
        (own / "wnids.txt").write_text("\n".join(wnids))  # the archive's file ends without a line break too
        words = dict(zip(ids, [*class_names(num_classes), *(f"unused {i}" for i in range(5))], strict=True))
        (own / "words.txt").write_text("".join(f"{i}\t{words[i].replace('_', ' ')}, {i}\n" for i in sorted(ids)))
        families, kinds = family_of(num_classes), kind_of(num_classes)
        for label, wnid in enumerate(wnids):
            pixels = _render(label, train_per_class, families, kinds, [seed, 1, label], looks)
            images = own / "train" / wnid / "images"
            names = [f"{wnid}_{i}.JPEG" for i in range(train_per_class)]
            boxes = [f"{name}\t{_box(rng)}" for name in names]
            _save(images, names, pixels)
            (images.parent / f"{wnid}_boxes.txt").write_text("\n".join(boxes) + "\n")
        for stream, split in enumerate(("val", "test"), 2):
            labels = rng.permutation(np.repeat(np.arange(num_classes), val_per_class))
            names = [f"{split}_{i}.JPEG" for i in range(len(labels))]
            pixels = render(families[labels], kinds[labels], SIZE, np.random.default_rng([seed, stream]), **looks)
            _save(own / split / "images", names, pixels)
            if split == "val":
                rows = [f"{n}\t{wnids[label]}\t{_box(rng)}" for n, label in zip(names, labels, strict=True)]
                (own / "val" / "val_annotations.txt").write_text("\n".join(rows) + "\n")

    return write_world(root, manifest | looks, write)


def _render(
    label: int,
    count: int,
    families: NDArray[np.int64],
    kinds: NDArray[np.int64],
    seeds: list[int],
    looks: dict[str, Any],
) -> NDArray[np.uint8]:
    labels = np.full(count, label)
    return render(families[labels], kinds[labels], SIZE, np.random.default_rng(seeds), **looks)


def _box(rng: np.random.Generator) -> str:
    x1, y1 = rng.integers(0, 16, 2)
    x2, y2 = rng.integers(48, 64, 2)
    return f"{x1}\t{y1}\t{x2}\t{y2}"


def _save(folder: Path, names: list[str], pixels: NDArray[np.uint8]) -> None:
    folder.mkdir(parents=True)
    for i, (name, values) in enumerate(zip(names, pixels, strict=True)):
        image = Image.fromarray(values)
        (image.convert("L") if i % GREY_EVERY == 7 else image).save(folder / name, format="JPEG", quality=90)
