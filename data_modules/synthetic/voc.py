"""Small generated worlds in the layout of the VOC devkits, file by file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from data_modules.synthetic.manifest import write_world
from data_modules.synthetic.shapes import ShapeKnobs, ShapeScene, make_scenes, world_manifest
from data_modules.voc_files import VOC_CLASSES, write_label_map

VERSION = 1  # part of the manifest: raise it when the same parameters give other files
PERSON = VOC_CLASSES.index("person")


def write_voc_world(
    root: str | Path,
    seed: int = 0,
    train_images: int = 60,
    val_images: int = 20,
    test_images: int = 40,
    voc2012_images: int = 0,
    size_wh: tuple[int, int] = (200, 160),
    knobs: ShapeKnobs | None = None,
) -> Path:
    """Write `VOCdevkit/VOC2007` under `root`, and VOC2012 trainval if wanted; return `root`.

    A complete world of the same parameters is kept as it is. The same parameters give the same bytes (of images with
    the same Pillow).

    Args:
        root: The world's folder.
        seed: Seed of everything in it.
        train_images: Images of `train.txt`; trainval has those of val too.
        val_images: Images of `val.txt`.
        test_images: Images of `test.txt`.
        voc2012_images: Images of VOC2012's `trainval.txt`.
        size_wh: Usual width and height in pixels.
        knobs: How hard the scenes are.

    Raises:
        DataError: `root` exists and holds anything else.
        ValueError: A number is out of range.
    """
    if min(train_images, val_images, test_images) < 1 or min(seed, voc2012_images) < 0 or min(size_wh) < 64:
        raise ValueError("a world has an image or more a split, sides of 64 pixels or more, and a seed >= 0")
    knobs = knobs or ShapeKnobs()
    sizes = {"train": train_images, "val": val_images, "test": test_images}
    manifest = world_manifest(
        "synthetic/voc", VERSION, seed, knobs, size_wh=size_wh, voc2012_images=voc2012_images, **sizes
    )

    def write(folder: Path) -> None:
        # As in VOC2007, the numbers of all splits are mixed.
        numbers = np.random.default_rng([seed, 9]).permutation(sum(sizes.values())) + 1
        ids = np.split(numbers, np.cumsum(list(sizes.values()))[:-1])
        lists = {split: [f"{n:06d}" for n in sorted(part)] for split, part in zip(sizes, ids, strict=True)}
        year = folder / "VOCdevkit" / "VOC2007"
        for stream, images in enumerate(lists.values()):
            scenes = make_scenes(np.random.default_rng([seed, stream]), len(images), size_wh, knobs)
            write_images(year / "JPEGImages", images, scenes)
            write_annotations(year, images, scenes)
        write_list(year, "Main", trainval=sorted(lists["train"] + lists["val"]), **lists)
        if voc2012_images:
            images = [f"2008_{n:06d}" for n in range(1, voc2012_images + 1)]
            scenes = make_scenes(np.random.default_rng([seed, 3]), voc2012_images, size_wh, knobs)
            year = folder / "VOCdevkit" / "VOC2012"
            write_images(year / "JPEGImages", images, scenes)
            write_annotations(year, images, scenes)
            write_list(year, "Main", trainval=images)

    return write_world(root, manifest, write)


def write_list(year: Path, kind: str, **lists: Sequence[str]) -> None:
    """Write `ImageSets/<kind>/<name>.txt`, one id a line, for every named list."""
    folder = year / "ImageSets" / kind
    folder.mkdir(parents=True, exist_ok=True)
    for name, images in lists.items():
        (folder / f"{name}.txt").write_text("".join(f"{image}\n" for image in images))


def write_images(folder: Path, names: Sequence[str], scenes: Sequence[ShapeScene]) -> None:
    """Write each scene as `<name>.jpg`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, scene in zip(names, scenes, strict=True):
        Image.fromarray(scene.image).save(folder / f"{name}.jpg", quality=90)


def write_label_maps(folder: Path, names: Sequence[str], scenes: Sequence[ShapeScene]) -> None:
    """Write each scene's class ids as `<name>.png` with VOC's palette and 255 at the borders."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, scene in zip(names, scenes, strict=True):
        write_label_map(folder / f"{name}.png", scene.label_map(void=True))


def write_annotations(year: Path, names: Sequence[str], scenes: Sequence[ShapeScene]) -> None:
    """Write each scene's `Annotations/<name>.xml`; VOC2012 persons have parts with boxes of their own, as there."""
    folder = year / "Annotations"
    folder.mkdir(parents=True, exist_ok=True)
    for name, scene in zip(names, scenes, strict=True):
        height, width = scene.instances.shape
        lines = [
            "<annotation>",
            f"\t<folder>{year.name}</folder>",
            f"\t<filename>{name}.jpg</filename>",
            f"\t<source>\n\t\t<database>The {year.name} Database</database>",
            f"\t\t<annotation>PASCAL {year.name}</annotation>\n\t\t<image>flickr</image>\n\t</source>",
            f"\t<size>\n\t\t<width>{width}</width>\n\t\t<height>{height}</height>\n\t\t<depth>3</depth>\n\t</size>",
            "\t<segmented>0</segmented>",
        ]
        flags = zip(scene.labels, scene.boxes_xyxy.tolist(), scene.truncated, scene.difficult, strict=True)
        for label, box, truncated, difficult in flags:
            lines += [
                f"\t<object>\n\t\t<name>{VOC_CLASSES[label]}</name>\n\t\t<pose>Unspecified</pose>",
                f"\t\t<truncated>{truncated:d}</truncated>\n\t\t<difficult>{difficult:d}</difficult>",
                _bndbox(box),
            ]
            if label == PERSON and year.name == "VOC2012":
                x1, y1, x2, y2 = box
                lines.append(
                    f"\t\t<part>\n\t\t\t<name>head</name>\n{_bndbox([x1, y1, x2, (y1 + y2 + 1) // 2])}\n\t\t</part>"
                )
            lines.append("\t</object>")
        (folder / f"{name}.xml").write_text("\n".join([*lines, "</annotation>", ""]))


def _bndbox(box: list[int]) -> str:
    x1, y1, x2, y2 = box  # VOC counts from 1, and the last row and column belong to the box
    ends = {"xmin": x1 + 1, "ymin": y1 + 1, "xmax": x2, "ymax": y2}
    inner = "".join(f"\n\t\t\t<{field}>{value}</{field}>" for field, value in ends.items())
    return f"\t\t<bndbox>{inner}\n\t\t</bndbox>"
