"""Reader of COCO's annotation files, `instances_*.json`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from data_modules.detection import DetectionExample
from data_modules.errors import DataError
from data_modules.voc_files import clipped_box

COCO_REMEDY = "extract annotations_trainval2014.zip and the images again, or compare the checksum of the split lists"
EDGE_TOLERANCE = 2.0  # pixels that a box may reach outside its image, which is where it is cut off
# The release itself has a box of height 0 in each of these images (cocodataset/cocoapi issue 355): it is left out.
FLAT_BOX_IMAGES = frozenset({200365, 550395})


@dataclass(frozen=True, slots=True)
class Instances:
    """One `instances_*.json`.

    Attributes:
        names: Category names in the order of their ids; a name's position is its label.
        examples: Images by id, in the order of the file. A path has the file's name, but no folder.
        flat_boxes: Number of boxes without area that were left out.
    """

    names: tuple[str, ...]
    examples: dict[int, DetectionExample]
    flat_boxes: int


def read_instances(path: Path, drop_flat_boxes: bool = False) -> Instances:
    """Read an `instances_*.json`. Category ids have gaps (1 to 90): labels are their positions.

    Boxes are x, y, w, h from the image's upper left corner; they become edges (see `DetectionExample`).

    Args:
        path: The file.
        drop_flat_boxes: Leave out and count all boxes without area, beyond the two that the release is known to have.

    Raises:
        DataError: The file is missing or isn't JSON, a field is missing or of another type, an id occurs twice, an
            image or category is unknown, or a box has no area or is outside its image. The message names the entry.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; {COCO_REMEDY}")
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:  # also what undecodable bytes raise
        raise DataError(f"{path}: not valid JSON ({error}); {COCO_REMEDY}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected a dictionary with images, annotations and categories; {COCO_REMEDY}")
    categories = _by_id(content, "categories", path)
    labels = {number: label for label, number in enumerate(sorted(categories))}
    names = tuple(_field(categories[number], "name", str, path, f"category {number}") for number in labels)
    images = _by_id(content, "images", path)
    sizes, files = {}, {}
    for number, image in images.items():
        where = f"image {number}"
        sizes[number] = tuple(_field(image, side, int, path, where) for side in ("width", "height"))
        files[number] = _field(image, "file_name", str, path, where)
    rows: dict[int, list[tuple[float, ...]]] = {number: [] for number in images}
    flat = 0
    for number, entry in _by_id(content, "annotations", path).items():
        where = f"annotation {number}"
        image_id, category = (_field(entry, key, int, path, where) for key in ("image_id", "category_id"))
        if image_id not in rows:
            _fail(path, where, "image_id", f"there is no image {image_id}")
        if category not in labels:
            _fail(path, where, "category_id", f"there is no category {category}")
        box = entry.get("bbox")
        if not isinstance(box, list) or len(box) != 4 or not all(_is_number(v) for v in box):
            _fail(path, where, "bbox", f"expected [x, y, width, height], found {box!r}")
        if min(box[2:]) <= 0:
            if min(box[2:]) < 0 or not (drop_flat_boxes or image_id in FLAT_BOX_IMAGES):
                hint = "drop_flat_boxes leaves boxes of width or height 0 out"
                _fail(path, where, "bbox", f"[x, y, width, height] = {box} has no area ({hint})")
            flat += 1
            continue
        crowd, area = entry.get("iscrowd", 0), entry.get("area", box[2] * box[3])
        if type(crowd) is not int or crowd not in (0, 1) or not _is_number(area):
            _fail(path, where, "iscrowd, area", f"expected 0 or 1, and a number, found {crowd!r} and {area!r}")
        edges = clipped_box((box[0], box[1], box[0] + box[2], box[1] + box[3]), sizes[image_id], EDGE_TOLERANCE)
        if edges is None or edges[0] >= edges[2] or edges[1] >= edges[3]:
            _fail(path, where, "bbox", f"{box} reaches outside image {image_id} of {sizes[image_id]}")
        rows[image_id].append((*edges, labels[category], area, crowd))
    examples = {}
    for number, objects in rows.items():
        table = np.array(objects, dtype=np.float64).reshape(-1, 7)
        examples[number] = DetectionExample(
            image=str(number),
            path=Path(files[number]),
            size_wh=sizes[number],
            boxes_xyxy=table[:, :4].astype(np.float32),
            labels=table[:, 4].astype(np.int64),
            areas=table[:, 5].astype(np.float32),
            difficult=np.zeros(len(table), dtype=np.bool_),
            crowd=table[:, 6] == 1,
        )
    return Instances(names, examples, flat)


def _by_id(content: Mapping[str, Any], key: str, path: Path) -> dict[int, dict[str, Any]]:
    entries = content.get(key)
    if not isinstance(entries, list) or not all(isinstance(e, dict) and type(e.get("id")) is int for e in entries):
        raise DataError(f"{path}: {key}: expected a list of entries with an id each; {COCO_REMEDY}")
    result = {entry["id"]: entry for entry in entries}
    if len(result) != len(entries):
        seen: set[int] = set()
        twice = next(e["id"] for e in entries if e["id"] in seen or seen.add(e["id"]))  # type: ignore[func-returns-value]
        raise DataError(f"{path}: {key}: {len(entries) - len(result)} ids occur twice, {twice} first; {COCO_REMEDY}")
    return result


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _field(entry: Mapping[str, Any], key: str, kind: type, path: Path, where: str) -> Any:
    value = entry.get(key)
    if type(value) is not kind:
        _fail(path, where, key, f"expected {kind.__name__}, found {value!r}")
    return value


def _fail(path: Path, where: str, field: str, what: str) -> NoReturn:
    raise DataError(f"{path}: {where}, {field}: {what}; {COCO_REMEDY}")
