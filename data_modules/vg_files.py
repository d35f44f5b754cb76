"""Readers of Visual Genome as Xu et al. (2017) prepared it (VG150), and of the files around it.

Labels are 1-based in `VG-SGG.h5` and in the zero-shot triplets, 0-based in the npz; every record returned here is
0-based. Boxes are (x1, y1, x2, y2); official evaluators count their widths as x2 - x1 + 1.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from data_modules.errors import DataError
from data_modules.graph_rows import graphs_from_rows
from data_modules.json_files import read_json
from data_modules.scene_graph import SceneGraph

CORRUPTED = (1592, 1722, 4616, 4617)  # images that VG-SGG.h5 leaves out of image_data.json's order
BOX_SCALE = 1024  # longer side in pixels of the frame that `boxes_1024` refers to
H5_REMEDY = "fetch VG-SGG.h5 of Xu et al. (2017) again; it, VG-SGG-dicts.json and image_data.json belong together"
JSON_REMEDY = "fetch it again from visualgenome.org, or from the release of neural-motifs"
NPZ_REMEDY = "unpack the converted VG150 test truth again"
IMAGE_REMEDY = (
    "extract images.zip and images2.zip of Visual Genome into VG_100K and VG_100K_2, "
    "and if sizes differ, take the image_data.json that neural-motifs names"
)

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ScenesTable:
    """All images of `VG-SGG.h5` as long tables, see `graph_rows.slice_graphs`.

    Attributes:
        boxes_xyxy: float32 `[N, 4]`, pixels of the frame whose longer side is 1024.
        labels: int64 `[N]`, 0-based.
        box_ranges: int64 `[I, 2]`, first row of each image and row after its last.
        relations: int64 `[M, 3]`, (subject, 0-based predicate, object), nodes counted from their image's first.
        relation_ranges: int64 `[I, 2]`, likewise.
        split: int64 `[I]`, 0 for training and 2 for test images.
    """

    boxes_xyxy: NDArray[np.float32]
    labels: Ints
    box_ranges: Ints
    relations: Ints
    relation_ranges: Ints
    split: Ints


def read_image_data(path: Path, skip_corrupted: bool = True) -> dict[int, tuple[int, int]]:
    """Read `image_data.json`: width and height in pixels by image id, in the order of the file.

    Args:
        path: The file.
        skip_corrupted: Leave out the four images that `VG-SGG.h5` leaves out.

    Raises:
        DataError: The file is missing or isn't JSON, a field is missing or not a whole number, or an id occurs twice.
    """
    content = read_json(path, JSON_REMEDY)
    if not isinstance(content, list):
        raise DataError(f"{path}: expected a list of images; {JSON_REMEDY}")
    sizes: dict[int, tuple[int, int]] = {}
    for index, entry in enumerate(content):
        values: list[Any] = [
            entry.get(key) if isinstance(entry, dict) else None for key in ("image_id", "width", "height")
        ]
        if not all(type(v) is int and v > 0 for v in values):
            found = f"found image_id, width, height = {values}"
            raise DataError(f"{path}: entry {index}: expected whole numbers above 0, {found}; {JSON_REMEDY}")
        image, width, height = values
        if image in sizes:
            raise DataError(f"{path}: entry {index}: image_id {image} occurs twice; {JSON_REMEDY}")
        sizes[image] = (width, height)
    return {i: size for i, size in sizes.items() if not (skip_corrupted and i in CORRUPTED)}


def read_vg150_names(path: Path) -> tuple[list[str], list[str]]:
    """Read the names of objects and predicates from `VG-SGG-dicts.json`, each in the order of its numbers 1, 2, ...

    Raises:
        DataError: The file is missing or isn't JSON, the numbers have gaps, or the file's two directions, from names to
            numbers and from numbers to names, contradict each other.
    """
    content = read_json(path, JSON_REMEDY)
    names = []
    for key, reverse in (("label_to_idx", "idx_to_label"), ("predicate_to_idx", "idx_to_predicate")):
        found = content.get(key) if isinstance(content, dict) else None
        entries: dict[str, Any] = found if isinstance(found, dict) else {}
        numbers = sorted(map(str, entries.values()))
        if not numbers or numbers != sorted(map(str, range(1, len(numbers) + 1))):
            raise DataError(f"{path}: {key}: expected names numbered from 1 without gaps; {JSON_REMEDY}")
        names.append(sorted(entries, key=lambda name: int(entries[name])))
        numbered = {str(number): name for number, name in enumerate(names[-1], 1)}
        if content.get(reverse, numbered) != numbered:
            raise DataError(f"{path}: {reverse}: contradicts {key}; {JSON_REMEDY}")
    return names[0], names[1]


def read_scenes(path: Path, num_images: int, num_objects: int, num_predicates: int) -> ScenesTable:
    """Read `VG-SGG.h5`.

    Boxes are stored as (centre x, centre y, width, height). As neural-motifs computes it in its int32 array, x1 is the
    centre minus half the width cut off towards 0, and x2 = x1 + width; boxes re-released as floats are cut off first.

    Raises:
        DataError: The file is missing or damaged, lacks a data set or holds one of another type or shape, doesn't hold
            `num_images` images, or has labels, ranges or box indices outside what they may be.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; {H5_REMEDY}")
    try:
        with h5py.File(path, "r") as file:
            data = {name: _numbers(file, name, width, path) for name, width in _H5_WIDTHS.items()}
    except (OSError, RuntimeError, KeyError) as error:
        raise DataError(f"{path}: not a readable HDF5 file ({error}); {H5_REMEDY}") from error
    if len(data["split"]) != num_images:
        found = f"split holds {len(data['split'])} images, image_data.json {num_images} without the four corrupted ones"
        raise DataError(f"{path}: {found}; {H5_REMEDY}")
    if len(data["boxes_1024"]) != len(data["labels"]):
        found = f"boxes_1024 holds {len(data['boxes_1024'])} rows, labels {len(data['labels'])}"
        raise DataError(f"{path}: {found}; {H5_REMEDY}")
    if len(data["relationships"]) != len(data["predicates"]):
        found = f"relationships holds {len(data['relationships'])} rows, predicates {len(data['predicates'])}"
        raise DataError(f"{path}: {found}; {H5_REMEDY}")
    _within(data["labels"], 1, num_objects, "labels", path)
    _within(data["predicates"], 1, num_predicates, "predicates", path)
    _within(data["split"], 0, 2, "split", path)
    _within(data["boxes_1024"][:, :2], 0, BOX_SCALE, "boxes_1024 (centres)", path)
    _within(data["boxes_1024"][:, 2:], 1, 2 * BOX_SCALE, "boxes_1024 (widths and heights)", path)
    boxes = data["boxes_1024"]
    box_ranges = _ranges(data, "box", len(boxes), path)
    relation_ranges = _ranges(data, "rel", len(data["predicates"]), path)
    corners = np.trunc(boxes[:, :2] - boxes[:, 2:] / 2)
    # Rows of relations that no image names keep image 0 here; no graph is cut from them.
    owner = np.zeros(len(data["predicates"]), dtype=np.int64)
    rows, images = _expand(relation_ranges)
    owner[rows] = images
    local = data["relationships"] - box_ranges[owner, :1]
    wrong = (local < 0) | (local >= np.diff(box_ranges[owner], axis=1))
    bad = rows[wrong[rows].any(axis=1)]
    if bad.size:
        pair, image = data["relationships"][bad[0]].tolist(), owner[bad[0]]
        expected = f"boxes of image {image} are {box_ranges[image, 0]} to {box_ranges[image, 1] - 1}"
        raise DataError(f"{path}: relationships: row {bad[0]}: {expected}, found {pair}; {H5_REMEDY}")
    return ScenesTable(
        boxes_xyxy=np.concatenate([corners, corners + boxes[:, 2:]], axis=1).astype(np.float32),
        labels=data["labels"][:, 0] - 1,
        box_ranges=box_ranges,
        relations=np.stack([local[:, 0], data["predicates"][:, 0] - 1, local[:, 1]], axis=1),
        relation_ranges=relation_ranges,
        split=data["split"][:, 0],
    )


def read_test_truth(path: Path, num_objects: int, num_predicates: int) -> list[SceneGraph]:
    """Read `vg150_test_gt.npz`, the VG150 test truth in original pixels; only boxes that take part in relations.

    Raises:
        DataError: The file is missing or damaged, lacks an array or holds one that doesn't fit the others.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; {NPZ_REMEDY}")
    try:
        with np.load(path, allow_pickle=False) as file:
            data = {name: np.asarray(file[name]) for name in ("image_id", "hw", "offset", "spo_labels", "so_boxes")}
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: not a readable VG150 test truth ({error}); {NPZ_REMEDY}") from error
    images, rows = len(data["image_id"]), len(data["spo_labels"])
    shapes = {"hw": (images, 2), "offset": (images + 1,), "spo_labels": (rows, 3), "so_boxes": (rows, 8)}
    for name, shape in shapes.items():
        if data[name].shape != shape or data[name].dtype.kind not in "iuf":
            raise DataError(
                f"{path}: {name}: expected numbers {shape}, found {data[name].dtype} {data[name].shape}; {NPZ_REMEDY}"
            )
    bad = np.flatnonzero(~(data["hw"] >= 1).all(axis=1))
    if bad.size:
        raise DataError(f"{path}: hw: row {bad[0]}: {data['hw'][bad[0]].tolist()} is no size; {NPZ_REMEDY}")
    if data["image_id"].shape != (images,) or len(np.unique(data["image_id"])) < images:
        raise DataError(f"{path}: image_id: expected {images} different numbers; {NPZ_REMEDY}")
    offset, triplets, boxes = data["offset"].astype(np.int64), data["spo_labels"].astype(np.int64), data["so_boxes"]
    if offset[0] != 0 or offset[-1] != rows or (np.diff(offset) < 0).any():
        raise DataError(f"{path}: offset: expected to rise from 0 to {rows}; {NPZ_REMEDY}")
    limits = np.array([num_objects, num_predicates, num_objects])
    bad = np.flatnonzero(((triplets < 0) | (triplets >= limits)).any(axis=1))
    if bad.size:
        expected = f"labels below {limits.tolist()}, found {triplets[bad[0]].tolist()}"
        raise DataError(f"{path}: spo_labels: row {bad[0]}: expected {expected}; {NPZ_REMEDY}")
    corners = boxes.reshape(-1, 2, 2, 2)
    bad = np.flatnonzero(~(np.isfinite(boxes).all(axis=1) & (corners[:, :, 0] <= corners[:, :, 1]).all(axis=(1, 2))))
    if bad.size:
        raise DataError(f"{path}: so_boxes: row {bad[0]}: inverted box in {boxes[bad[0]].tolist()}; {NPZ_REMEDY}")
    sizes = [(width, height) for height, width in data["hw"].tolist()]
    names = [f"{image}.jpg" for image in data["image_id"].tolist()]
    owner = np.repeat(np.arange(images), np.diff(offset))
    boxes = boxes.astype(np.float32)
    return graphs_from_rows(names, sizes, owner, boxes[:, :4], boxes[:, 4:], triplets)


def read_zero_shot(path: Path, num_objects: int, num_predicates: int) -> Ints:
    """Read `zeroshot_triplet.pytorch`: the triplets that never occur in training.

    The file holds 1-based (subject, object, predicate). Nothing but tensors is ever unpickled.

    Returns:
        int64 `[Z, 3]`, 0-based (subject category, predicate, object category).

    Raises:
        DataError: The file is missing, damaged, holds anything but numbers `[Z, 3]`, or has labels out of range.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; {NPZ_REMEDY}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes make the unpickler raise nearly anything
        # Not torch's message: it advises to read pickles without that safety.
        raise DataError(f"{path}: not a readable tensor file ({type(error).__name__}); {NPZ_REMEDY}") from error
    if (
        not isinstance(content, torch.Tensor)
        or content.ndim != 2
        or content.shape[1] != 3
        or content.is_floating_point()
    ):
        is_tensor = isinstance(content, torch.Tensor)
        found = f"{content.dtype} {list(content.shape)}" if is_tensor else type(content).__name__
        raise DataError(f"{path}: expected whole numbers [Z, 3], found {found}; {NPZ_REMEDY}")
    triplets = content.numpy().astype(np.int64)[:, [0, 2, 1]] - 1
    bad = np.flatnonzero(((triplets < 0) | (triplets >= [num_objects, num_predicates, num_objects])).any(axis=1))
    if bad.size:
        raise DataError(f"{path}: row {bad[0]}: {content[bad[0]].tolist()} is out of range; {NPZ_REMEDY}")
    return triplets


_H5_WIDTHS = {"boxes_1024": 4, "labels": 1, "predicates": 1, "relationships": 2, "split": 1} | {
    f"img_to_{end}_{kind}": 1 for end in ("first", "last") for kind in ("box", "rel")
}


def _numbers(file: h5py.File, name: str, width: int, path: Path) -> Ints:
    """Read a data set as int64 `[rows, width]`; one of width 1 may be 1-d, and a float one is cut off towards 0."""
    if not isinstance(file.get(name), h5py.Dataset):
        raise DataError(f"{path}: holds no data set {name!r}; {H5_REMEDY}")
    values = file[name][()]
    if width == 1 and isinstance(values, np.ndarray) and values.ndim == 1:
        values = values[:, None]
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "iuf" or values.shape[1:] != (width,):
        found = f"{file[name].dtype} {file[name].shape}"
        raise DataError(f"{path}: {name}: expected {width} numeric columns, found {found}; {H5_REMEDY}")
    if values.dtype.kind == "f":
        whole = np.trunc(values)
        bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
        if not bad.size and not name.startswith("boxes"):
            bad = np.flatnonzero((whole != values).any(axis=1))
        if bad.size:
            raise DataError(f"{path}: {name}: row {bad[0]}: {values[bad[0]].tolist()} isn't whole; {H5_REMEDY}")
        values = whole
    return np.asarray(values, dtype=np.int64)


def _within(values: Ints, low: int, high: int, name: str, path: Path) -> None:
    bad = np.flatnonzero(((values < low) | (values > high)).any(axis=1))
    if bad.size:
        found = values[bad[0]].tolist()
        raise DataError(f"{path}: {name}: row {bad[0]}: expected {low} to {high}, found {found}; {H5_REMEDY}")


def _ranges(data: dict[str, Ints], kind: str, rows: int, path: Path) -> Ints:
    """Turn first and last row (included; -1 for none) of every image into first row and row after the last."""
    first, last = (data[f"img_to_{end}_{kind}"][:, 0] for end in ("first", "last"))
    images = len(data["split"])
    for end, values in (("first", first), ("last", last)):
        if len(values) != images:
            found = f"holds {len(values)} images, split {images}"
            raise DataError(f"{path}: img_to_{end}_{kind} {found}; {H5_REMEDY}")
    none = (first == -1) & (last == -1)
    bad = np.flatnonzero(~none & ~((first >= 0) & (first <= last) & (last < rows)))
    if bad.size:
        found = f"rows {first[bad[0]]} to {last[bad[0]]} of {rows}"
        raise DataError(f"{path}: img_to_first_{kind}, img_to_last_{kind}: image {bad[0]}: {found}; {H5_REMEDY}")
    return np.where(none[:, None], 0, np.stack([first, last + 1], axis=1))


def _expand(ranges: Ints) -> tuple[Ints, Ints]:
    """Return every row of all ranges, and the number of the range that each belongs to."""
    counts = np.diff(ranges, axis=1)[:, 0]
    owner = np.repeat(np.arange(len(ranges)), counts)
    before = np.cumsum(counts) - counts
    return np.arange(len(owner)) + np.repeat(ranges[:, 0] - before, counts), owner
