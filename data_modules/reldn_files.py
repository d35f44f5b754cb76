"""Readers of the JSON files that RelDN's code reads, the same for Visual Genome, VRD and Open Images.

Boxes are in pixels of the image: [ymin, ymax, xmin, xmax] in relations, [x, y, width, height] in detections, where the
last column and row belong to the box. For VRD they are counted from 1 as in the release, otherwise from 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from data_modules.errors import DataError
from data_modules.graph_rows import graphs_from_rows
from data_modules.json_files import is_box, is_number, read_json
from data_modules.scene_graph import SceneGraph

RELDN_REMEDY = "fetch RelDN's annotations again, or for VRD convert them again with its tools"


@dataclass(frozen=True, slots=True)
class DetectionAnnotations:
    """What `detections_{train,val}.json` says, in the order of the image ids, as RelDN's code goes through them.

    Attributes:
        names: Class names by label, in the order of the category ids.
        image_names: File names by image id.
        labels_of: Labels by category id.
        sizes_wh: Widths and heights in pixels by file name.
        boxes_xyxy: float32 `[n, 4]` by file name: all annotated boxes, pixels, the last column and row included.
        labels: int64 `[n]` by file name, 0-based.
        flat_boxes: Number of boxes of at most one column or row, which are left out, as RelDN's code does.
    """

    names: list[str]
    image_names: dict[int, str]
    labels_of: dict[int, int]
    sizes_wh: dict[str, tuple[int, int]]
    boxes_xyxy: dict[str, NDArray[np.float32]]
    labels: dict[str, NDArray[np.int64]]
    flat_boxes: int


def read_detection_annotations(path: Path) -> DetectionAnnotations:
    """Read `detections_{train,val}.json`: annotated boxes in COCO's format.

    Raises:
        DataError: The file is missing, isn't JSON, lacks a field, repeats an id or a name, or an annotation names an
            unknown image or category or has a box of no finite numbers or a negative width or height. The message names
            entry and field.
    """
    content = read_json(path, RELDN_REMEDY)
    categories, images, annotations = (_entries(path, content, key) for key in ("categories", "images", "annotations"))
    if not categories:
        raise DataError(f"{path}: categories: expected at least one; {RELDN_REMEDY}")
    names = sorted(
        zip(_unique(path, categories, "categories", "id"), _unique(path, categories, "categories", "name"), strict=True)
    )
    columns = [_unique(path, images, "images", "id"), _unique(path, images, "images", "file_name")]
    columns += [_whole(path, images, "images", side, least=1) for side in ("width", "height")]
    rows = sorted(zip(*columns, strict=True))
    known = {"image_id": [row[0] for row in rows], "category_id": [number for number, _ in names]}
    places = {key: _places(path, annotations, key, ids) for key, ids in known.items()}
    boxes = _boxes(path, annotations)
    order = np.argsort(places["image_id"], kind="stable")
    order = order[(boxes[order, 2:] > 1).all(axis=1)]
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:] - 1], axis=1)[order].astype(np.float32)
    ends = np.searchsorted(places["image_id"][order], np.arange(len(rows)), side="right").tolist()
    parts = [slice(first, end) for first, end in zip([0, *ends], ends, strict=False)]
    files = [name for _, name, _, _ in rows]
    labels = places["category_id"][order]
    return DetectionAnnotations(
        names=[name for _, name in names],
        image_names={number: name for number, name, _, _ in rows},
        labels_of={number: label for label, (number, _) in enumerate(names)},
        sizes_wh={name: (width, height) for _, name, width, height in rows},
        boxes_xyxy={name: corners[part] for name, part in zip(files, parts, strict=True)},
        labels={name: labels[part] for name, part in zip(files, parts, strict=True)},
        flat_boxes=len(boxes) - len(order),
    )


def with_all_boxes(graph: SceneGraph, annotations: DetectionAnnotations) -> SceneGraph:
    """Add the annotated boxes that take part in no relation as further nodes.

    A box is a node already if one of its category lies within a pixel of it: the two files may round differently.
    """
    boxes, labels = annotations.boxes_xyxy[graph.image], annotations.labels[graph.image]
    near = np.abs(boxes[:, None] - graph.boxes_xyxy).max(axis=2, initial=0) <= 1
    new = ~(near & (labels[:, None] == graph.labels)).any(axis=1)
    return replace(
        graph,
        boxes_xyxy=np.concatenate([graph.boxes_xyxy, boxes[new]]),
        labels=np.concatenate([graph.labels, labels[new]]),
    )


def read_reldn_relations(
    path: Path, sizes_wh: dict[str, tuple[int, int]], num_objects: int, num_predicates: int
) -> list[SceneGraph]:
    """Read `rel_annotations_*.json`, `rel_only_annotations_*.json` or `new_annotations_*.json`.

    Args:
        path: The file: relations by image file name, labels from 0.
        sizes_wh: Widths and heights in pixels by file name, whose order the graphs get; may hold more images.
        num_objects: Number of object categories.
        num_predicates: Number of predicates.

    Raises:
        DataError: The file is missing or isn't JSON, an image has no size, or a field is missing, of another type or
            out of range, or a box is inverted or begins outside the image. The message names image, relation and field.
    """
    content = read_json(path, RELDN_REMEDY)
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected a dictionary from image names to relations; {RELDN_REMEDY}")
    unknown = next((image for image in content if image not in sizes_wh), None)
    if unknown is not None:
        raise DataError(f"{path}: image {unknown!r}: the detections JSON doesn't list it; {RELDN_REMEDY}")
    images = [image for image in sizes_wh if image in content]
    rows, where = [], []
    for number, image in enumerate(images):
        if not isinstance(content[image], list):
            raise DataError(f"{path}: image {image!r}: expected a list of relations; {RELDN_REMEDY}")
        for index, relation in enumerate(content[image]):
            rows.append((number, *_row(relation, f"{path}: image {image!r}, relation {index}")))
            where.append((image, index))
    table = np.array(rows, dtype=np.float64).reshape(-1, 12)
    triplets, boxes = table[:, 1:4], table[:, 4:].reshape(-1, 2, 4)
    limits = np.array([num_objects, num_predicates, num_objects])
    wrong = (triplets < 0) | (triplets >= limits)
    for place, field in enumerate(("subject.category", "predicate", "object.category")):
        bad = np.flatnonzero(wrong[:, place])
        if bad.size:
            found = f"expected 0 to {limits[place] - 1}, found {triplets[bad[0], place]:.0f}"
            raise DataError(f"{path}: image {_at(where[bad[0]])}, {field}: {found}; {RELDN_REMEDY}")
    ymin, ymax, xmin, xmax = (boxes[:, :, i] for i in range(4))
    row_image = table[:, 0].astype(np.int64)
    sizes = np.array([sizes_wh[image] for image in images], dtype=np.float64).reshape(-1, 2)[row_image]
    right = (ymin >= 0) & (ymin <= ymax) & (xmin >= 0) & (xmin <= xmax) & np.isfinite(boxes).all(axis=2)
    right &= (xmin <= sizes[:, :1]) & (ymin <= sizes[:, 1:])
    for end, field in enumerate(("subject", "object")):
        bad = np.flatnonzero(~right[:, end])
        if bad.size:
            size = sizes[bad[0]].astype(int).tolist()
            expected = f"0 <= ymin <= ymax and 0 <= xmin <= xmax, begun within the image of {size}"
            found = f"expected {expected}, found [ymin, ymax, xmin, xmax] = {boxes[bad[0], end].tolist()}"
            raise DataError(f"{path}: image {_at(where[bad[0]])}, {field}.bbox: {found}; {RELDN_REMEDY}")
    corners = np.stack([xmin, ymin, xmax, ymax], axis=2).astype(np.float32)
    known = [sizes_wh[image] for image in images]
    return graphs_from_rows(images, known, row_image, corners[:, 0], corners[:, 1], triplets.astype(np.int64))


def read_vrd_file_names(path: Path) -> dict[str, str]:
    """Read `{train,val}_fname_mapping.json` of RelDN's VRD: the release's annotated names by RelDN's file names.

    RelDN's tool numbers the images from 1 in the order of their file names, and names them by 12 digits. The release
    annotates the one GIF under a name that ends in `.jpg`.

    Raises:
        DataError: The file is missing, isn't JSON, or doesn't give each name a number of its own.
    """
    content = read_json(path, RELDN_REMEDY)
    entries = content.items() if isinstance(content, dict) else ()
    numbers = [number for _, number in entries]
    if not numbers or not all(type(n) is int and n > 0 for n in numbers) or len(set(numbers)) < len(numbers):
        raise DataError(f"{path}: expected a different whole number above 0 for each image name; {RELDN_REMEDY}")
    return {
        f"{number:012d}.jpg": str(Path(name).with_suffix(".jpg")) if name.endswith(".gif") else name
        for name, number in entries
    }


def _row(relation: Any, where: str) -> tuple[Any, ...]:
    def number(value: Any, field: str) -> Any:
        if type(value) is not int or not is_number(value):
            raise DataError(f"{where}, {field}: expected a whole number, found {value!r}; {RELDN_REMEDY}")
        return value

    def part(field: str) -> tuple[Any, list[Any]]:
        entry = relation.get(field) if isinstance(relation, dict) else None
        entry = entry if isinstance(entry, dict) else {}
        box = entry.get("bbox")
        if not isinstance(box, list) or not is_box(box):
            found = f"expected [ymin, ymax, xmin, xmax], found {box!r}"
            raise DataError(f"{where}, {field}.bbox: {found}; {RELDN_REMEDY}")
        return number(entry.get("category"), f"{field}.category"), box

    (subject, subject_box), (other, other_box) = part("subject"), part("object")
    return subject, number(relation.get("predicate"), "predicate"), other, *subject_box, *other_box


def _at(where: tuple[str, int]) -> str:
    return f"{where[0]!r}, relation {where[1]}"


def _entries(path: Path, content: Any, key: str) -> list[dict[str, Any]]:
    found = content.get(key) if isinstance(content, dict) else None
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise DataError(f"{path}: {key}: expected a list of objects; {RELDN_REMEDY}")
    return found


def _column(path: Path, entries: list[dict[str, Any]], name: str, key: str, kind: type) -> list[Any]:
    values = [entry.get(key) for entry in entries]
    bad = next((i for i, value in enumerate(values) if type(value) is not kind), None)
    if bad is not None:
        expected = "a whole number" if kind is int else "a text"
        raise DataError(f"{path}: {name}[{bad}].{key}: expected {expected}, found {values[bad]!r}; {RELDN_REMEDY}")
    return values


def _unique(path: Path, entries: list[dict[str, Any]], name: str, key: str) -> list[Any]:
    values = _column(path, entries, name, key, int if key == "id" else str)
    if len(set(values)) < len(values):
        repeated = pd.Series(values, dtype=object).duplicated().to_numpy().argmax()
        raise DataError(f"{path}: {name}[{repeated}].{key}: {values[repeated]!r} occurs twice; {RELDN_REMEDY}")
    return values


def _whole(path: Path, entries: list[dict[str, Any]], name: str, key: str, least: int) -> list[int]:
    values: list[int] = _column(path, entries, name, key, int)
    bad = next((i for i, value in enumerate(values) if value < least), None)
    if bad is not None:
        found = f"expected at least {least}, found {values[bad]}"
        raise DataError(f"{path}: {name}[{bad}].{key}: {found}; {RELDN_REMEDY}")
    return values


def _places(path: Path, annotations: list[dict[str, Any]], key: str, ids: Sequence[int]) -> NDArray[np.int64]:
    """Return the position in `ids` of each annotation's id, int64 `[annotations]`."""
    values = _column(path, annotations, "annotations", key, int)
    place = {number: i for i, number in enumerate(ids)}
    found = np.array([place.get(value, -1) for value in values], dtype=np.int64)
    bad = np.flatnonzero(found < 0)
    if bad.size:
        raise DataError(f"{path}: annotations[{bad[0]}].{key}: {values[bad[0]]} is unknown; {RELDN_REMEDY}")
    return found


def _boxes(path: Path, annotations: list[dict[str, Any]]) -> NDArray[np.float64]:
    """Return all x, y, width and height, float64 `[annotations, 4]`."""
    boxes = [entry.get("bbox") for entry in annotations]
    bad = next((i for i, box in enumerate(boxes) if not is_box(box)), None)
    if bad is None:
        table = np.array(boxes, dtype=np.float64).reshape(-1, 4)
        wrong = np.flatnonzero(~(np.isfinite(table).all(axis=1) & (table[:, 2:] >= 0).all(axis=1)))
        if not wrong.size:
            return table
        bad = int(wrong[0])
    expected = "expected [x, y, width, height], neither negative"
    raise DataError(f"{path}: annotations[{bad}].bbox: {expected}, found {boxes[bad]}; {RELDN_REMEDY}")
