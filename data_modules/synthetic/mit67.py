"""A small generated world in the layout of MIT67: `Images/<category>/` and the two lists."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_modules.synthetic.manifest import write_world
from data_modules.synthetic.textures import class_names, family_of, kind_of, render

VERSION = 2  # part of the manifest: raise it when the same parameters give other files


def write_mit67_world(
    root: str | Path,
    seed: int = 0,
    num_classes: int = 10,
    train_per_class: int = 16,
    test_per_class: int = 4,
    short_side: int = 120,
    kind_contrast: float = 0.6,
    noise: float = 18.0,
) -> Path:
    """Write the world under `root` and return that; a complete one of the same parameters is kept as it is.

    As in the data set, the lists are in no order and end without a line break, `Images/` holds images that neither
    lists, some names have spaces, and some files called `.jpg` are PNGs, GIFs, greyscale or CMYK. The same parameters
    give the same bytes with the same Pillow.

    Args:
        root: The world's folder.
        seed: Decides sizes, pixels and the order of the lists.
        num_classes: Number of categories (67 in the data set).
        train_per_class: Training images of each (about 80 in the data set).
        test_per_class: Test images of each (about 20 in the data set).
        short_side: The shorter side of the smallest images, in pixels; others are up to half as large again.
        kind_contrast: How different the classes of one family look, see `render`.
        noise: Standard deviation of pixel noise in grey levels.

    Raises:
        DataError: `root` exists and holds anything else.
        ValueError: A number is not positive, or images would be smaller than 8 pixels.
    """
    if min(num_classes, train_per_class, test_per_class) < 1 or seed < 0 or short_side < 8:
        raise ValueError("a world has 1 or more classes and images of each in both lists, of 8 pixels, and a seed >= 0")
    manifest: dict[str, Any] = {"generator": "synthetic/mit67", "version": VERSION, "seed": seed}
    manifest |= {"num_classes": num_classes, "train_per_class": train_per_class, "test_per_class": test_per_class}
    looks: dict[str, Any] = {"kind_contrast": kind_contrast, "noise": noise}

    def write(folder: Path) -> None:
        names = class_names(num_classes)
        train, test = [], []
        for label, category in enumerate(names):
            count = train_per_class + test_per_class + 1
            listed = [f"{category}/{_file_name(i, category)}" for i in range(count)]
            rng = np.random.default_rng([seed, 0, label])
            family, kind = family_of(num_classes)[label], kind_of(num_classes)[label]
            _write_category(folder / "Images", listed, (family, kind), short_side, rng, looks)
            train += listed[:train_per_class]
            test += listed[train_per_class:-1]
        order = np.random.default_rng([seed, 1])
        for name, listed in (("TrainImages.txt", train), ("TestImages.txt", test)):
            (folder / name).write_text("\n".join(listed[i] for i in order.permutation(len(listed))))

    return write_world(root, manifest | {"short_side": short_side} | looks, write)


def _file_name(i: int, category: str) -> str:
    return f"{category.split('_')[0]} {i}_flickr.jpg" if i % 7 == 3 else f"{category}_{i:04d}_google.jpg"


def _write_category(
    folder: Path,
    names: list[str],
    look: tuple[int, int],
    short_side: int,
    rng: np.random.Generator,
    looks: dict[str, Any],
) -> None:
    largest = short_side + short_side // 2
    families, kinds = (np.full(len(names), value) for value in look)
    pixels = render(families, kinds, largest, rng, **looks)
    (folder / names[0]).parent.mkdir(parents=True)
    for i, (name, values) in enumerate(zip(names, pixels, strict=True)):
        _save(folder / name, i, _cut(values, short_side, rng))


def _cut(pixels: NDArray[np.uint8], short_side: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Cut an upright or lying rectangle out of the middle of a square picture."""
    largest = len(pixels)
    other = int(rng.integers(short_side, largest + 1))
    height, width = (short_side, other) if rng.random() < 0.7 else (other, short_side)
    top, left = (largest - height) // 2, (largest - width) // 2
    return pixels[top : top + height, left : left + width]


def _save(path: Path, i: int, pixels: NDArray[np.uint8]) -> None:
    image = Image.fromarray(pixels)
    if i % 8 == 1:
        image.save(path, format="PNG")
    elif i % 8 == 2:
        image.quantize(64).save(path, format="GIF")
    else:
        mode = {4: "L", 5: "CMYK"}.get(i % 8, "RGB")
        image.convert(mode).save(path, format="JPEG", quality=90)
