"""A small generated world of VOC2012 segmentation and SBD, which share images, in the layout of both releases."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from scipy.io import savemat
from scipy.sparse import csc_array

from data_modules.synthetic.manifest import write_world
from data_modules.synthetic.shapes import ShapeKnobs, ShapeScene, make_scenes, world_manifest
from data_modules.synthetic.voc import write_annotations, write_images, write_label_maps, write_list

VERSION = 1  # part of the manifest: raise it when the same parameters give other files


def write_sbd_world(
    root: str | Path,
    seed: int = 0,
    train_images: int = 30,
    val_images: int = 30,
    test_images: int = 6,
    sbd_images: int = 90,
    labels: Literal["mat", "png", "both"] = "mat",
    size_wh: tuple[int, int] = (200, 160),
    knobs: ShapeKnobs | None = None,
) -> Path:
    """Write `VOCdevkit/VOC2012` and SBD's labels under `root`; return that.

    As in the releases, SBD annotates two thirds of VOC's training and val images too, and its own train and val lists
    mix them with the rest. A complete world of the same parameters is kept as it is. The same parameters give the same
    bytes (of images with the same Pillow, of MATLAB files with the same SciPy).

    Args:
        root: The world's folder.
        seed: Seed of everything in it.
        train_images: Images of VOC2012's `train.txt`.
        val_images: Images of VOC2012's `val.txt`.
        test_images: Images of VOC2012's `test.txt`, which have no labels.
        sbd_images: Images that SBD alone annotates.
        labels: SBD's labels as `benchmark_RELEASE/dataset`, as the PNG folder `SegmentationClassAug`, or both.
        size_wh: Usual width and height in pixels.
        knobs: How hard the scenes are.

    Raises:
        DataError: `root` exists and holds anything else.
        ValueError: A number is out of range.
    """
    counts = {"train": train_images, "val": val_images, "test": test_images, "sbd": sbd_images}
    if min(counts.values()) < 1 or seed < 0 or min(size_wh) < 64 or labels not in ("mat", "png", "both"):
        raise ValueError("a world has an image or more a part, sides of 64 pixels or more, a seed >= 0, and labels")
    knobs = knobs or ShapeKnobs()
    manifest = world_manifest("synthetic/sbd", VERSION, seed, knobs, size_wh=size_wh, labels=labels, **counts)

    def write(folder: Path) -> None:
        rng = np.random.default_rng([seed, 9])
        numbers = np.split(rng.permutation(sum(counts.values())) + 1, np.cumsum(list(counts.values()))[:-1])
        ids = {part: [f"2008_{n:06d}" for n in sorted(own)] for part, own in zip(counts, numbers, strict=True)}
        scenes: dict[str, ShapeScene] = {}
        for stream, (part, names) in enumerate(ids.items()):
            rendered = make_scenes(np.random.default_rng([seed, stream]), counts[part], size_wh, knobs)
            scenes |= dict(zip(names, rendered, strict=True))
        year = folder / "VOCdevkit" / "VOC2012"
        write_images(year / "JPEGImages", list(scenes), list(scenes.values()))
        trainval = sorted(ids["train"] + ids["val"])
        chosen = [scenes[name] for name in trainval]
        write_label_maps(year / "SegmentationClass", trainval, chosen)
        write_annotations(year, trainval, chosen)
        write_list(year, "Segmentation", train=ids["train"], val=ids["val"], trainval=trainval, test=ids["test"])
        shared = [name for part in ("train", "val") for i, name in enumerate(ids[part]) if i % 3]
        annotated = rng.permutation(sorted(ids["sbd"] + shared)).tolist()
        if labels != "png":
            _write_release(folder / "benchmark_RELEASE" / "dataset", annotated, scenes)
        if labels != "mat":
            write_list(year, "Segmentation", train_aug=sorted(ids["sbd"] + ids["train"]))
            aug = year / "SegmentationClassAug"
            aug.mkdir()
            for name in sorted(ids["sbd"] + trainval):  # VOC's own labels where it has them
                label_map = scenes[name].label_map(void=name in set(trainval))
                Image.fromarray(label_map).save(aug / f"{name}.png")

    return write_world(root, manifest, write)


def _write_release(folder: Path, names: Sequence[str], scenes: dict[str, ShapeScene]) -> None:
    write_images(folder / "img", names, [scenes[name] for name in names])
    (folder / "cls").mkdir()
    for name in names:
        _write_cls(folder / "cls" / f"{name}.mat", scenes[name].label_map(void=False))
    first_val = len(names) * 3 // 4
    for split, own in (("train", names[:first_val]), ("val", names[first_val:])):
        (folder / f"{split}.txt").write_text("".join(f"{name}\n" for name in own))


def _write_cls(path: Path, label_map: np.ndarray[tuple[int, int], np.dtype[np.uint8]]) -> None:
    """Write SBD's struct `GTcls`: label map, a sparse boundary map a class, and the classes there are."""
    present = np.unique(label_map[label_map > 0])
    boundaries = np.empty((20, 1), dtype=object)
    boundaries.fill(csc_array(np.zeros(label_map.shape, dtype=np.uint8)))
    for label in present:
        mask = label_map == label
        inner = mask.copy()
        inner[1:] &= mask[:-1]
        inner[:, 1:] &= mask[:, :-1]
        boundaries[label - 1, 0] = csc_array((mask & ~inner).astype(np.uint8))
    content = {"Segmentation": label_map, "CategoriesPresent": present[:, None], "Boundaries": boundaries}
    savemat(path, {"GTcls": content}, do_compression=True)
    # The first 116 bytes are free text, into which scipy writes the time: the same world must give the same bytes.
    with path.open("r+b") as file:
        file.write(b"MATLAB 5.0 MAT-file".ljust(116))
