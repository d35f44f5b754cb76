"""Readers of the PASCAL VOC devkit: id lists, XML annotations and label maps; and the writer of label maps.

A devkit holds a folder a year: `VOCdevkit/VOC2007`, `VOCdevkit/VOC2012`. Its XML boxes are counted from 1, and their
last row and column belong to them: they become edge coordinates (see `DetectionExample`) by subtracting 1 from x1, y1.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import NoReturn
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_modules.detection import DetectionExample
from data_modules.errors import DataError

VOC_CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
VOID = 255  # in label maps: borders between objects, and difficult objects
NUM_LABELS = 1 + len(VOC_CLASSES)  # in label maps: 0 is the background
EDGE_TOLERANCE = 1.0  # pixels that a box may reach outside its image, which is where it is cut off
VOC_REMEDY = (
    "extract the devkit's archive again (VOCtrainval and, where needed, VOCtest) so that VOCdevkit/VOC20xx exists"
)

_LABEL_OF = {name: label for label, name in enumerate(VOC_CLASSES)}


def read_ids(path: Path, remedy: str = VOC_REMEDY) -> list[str]:
    """Read a list of image ids, one a line; a second column is an error, as in lists of a single class.

    Raises:
        DataError: The file is missing or empty, a line holds anything but one id, or an id occurs twice.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; {remedy}")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    ids = [line.strip() for line in lines if line.strip()]
    for number, line in enumerate(ids):
        if not re.fullmatch(r"[\w-]+", line, re.ASCII):
            raise DataError(f"{path}: entry {number}: expected one image id a line, found {line[:60]!r}; {remedy}")
    if not ids:
        raise DataError(f"{path}: holds no image ids; {remedy}")
    if len(set(ids)) != len(ids):
        twice = next(i for number, i in enumerate(ids) if i in ids[:number])
        raise DataError(f"{path}: {len(ids) - len(set(ids))} ids occur twice, {twice!r} first; {remedy}")
    return ids


def read_annotation(year: Path, image: str) -> tuple[DetectionExample, bytes]:
    """Read one image's `Annotations/<image>.xml`, and return the file's bytes too, for a checksum.

    The parts of an object (VOC2012 annotates heads, hands and feet) are no objects. A missing `difficult` means 0.

    Args:
        year: The devkit's folder of a year.
        image: The image's id.

    Raises:
        DataError: The file is missing or broken, a class is unknown, or a box is missing, inverted or outside the
            image. The message names file, object and field.
    """
    path = year / "Annotations" / f"{image}.xml"
    if not path.is_file():
        raise DataError(f"{path}: no such file; {VOC_REMEDY}")
    content = path.read_bytes()
    try:
        root = ElementTree.fromstring(content)
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # also what a wrong encoding raises
        raise DataError(f"{path}: broken XML ({error}); {VOC_REMEDY}") from error
    sides = [_number(root.find(f"size/{side}"), path, f"size/{side}") for side in ("width", "height")]
    if not all(side >= 1 and side == int(side) for side in sides):
        raise DataError(f"{path}: size: expected a width and a height in pixels, found {sides}; {VOC_REMEDY}")
    width, height = map(int, sides)
    boxes, labels, difficult = [], [], []
    for index, entry in enumerate(root.findall("object")):
        where = f"object {index}"
        name = (entry.findtext("name") or "").strip()
        if name not in _LABEL_OF:
            _fail(path, f"{where}, name", f"unknown class {name!r}, expected one of VOC's 20")
        flag = (entry.findtext("difficult") or "0").strip()
        if flag not in ("0", "1"):
            _fail(path, f"{where}, difficult", f"expected 0 or 1, found {flag!r}")
        corners = [
            _number(entry.find(f"bndbox/{field}"), path, f"{where}, bndbox/{field}")
            for field in ("xmin", "ymin", "xmax", "ymax")
        ]
        boxes.append(_edges(corners, (width, height), path, f"{where}, bndbox"))
        labels.append(_LABEL_OF[name])
        difficult.append(flag == "1")
    edges = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    example = DetectionExample(
        image=image,
        path=year / "JPEGImages" / f"{image}.jpg",
        size_wh=(width, height),
        boxes_xyxy=edges,
        labels=np.array(labels, dtype=np.int64),
        areas=(edges[:, 2] - edges[:, 0]) * (edges[:, 3] - edges[:, 1]),
        difficult=np.array(difficult, dtype=np.bool_),
        crowd=np.zeros(len(labels), dtype=np.bool_),
    )
    return example, content


def read_label_map(path: Path, remedy: str = VOC_REMEDY) -> NDArray[np.uint8]:
    """Read a label map, PNG with a palette or greyscale, as the ids that its pixels hold, never their colours.

    Returns:
        uint8 `[H, W]`, ids 0 to 20, or 255 (`VOID`).

    Raises:
        DataError: The file is missing, damaged or holds colours, or an id is illegal.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such label map; {remedy}")
    try:
        with Image.open(path) as image:
            mode, labels = image.mode, np.array(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path}: truncated or damaged label map ({error}); {remedy}") from error
    if mode not in ("P", "L"):
        raise DataError(f"{path}: a label map holds ids in a palette or greyscale PNG, found mode {mode!r}; {remedy}")
    return checked_labels(labels, path, remedy)


def checked_labels(labels: NDArray[np.uint8], path: Path, remedy: str) -> NDArray[np.uint8]:
    """Return the label map, uint8 `[H, W]`, if its ids are 0 to 20 or 255.

    Raises:
        DataError: An id is illegal; the message names it and a pixel.
    """
    is_illegal = (labels >= NUM_LABELS) & (labels != VOID)
    if is_illegal.any():
        illegal = np.unique(labels[is_illegal])
        row, column = np.argwhere(labels == illegal[0])[0]
        found = f"illegal ids {illegal[:5].tolist()}, first at row {row}, column {column}; expected 0 to 20 or 255"
        raise DataError(f"{path}: {found}; {remedy}")
    return labels


def write_label_map(path: Path, labels: NDArray[np.uint8]) -> None:
    """Write uint8 `[H, W]` as VOC's own label maps and submissions are: 8-bit PNG with VOC's palette."""
    image = Image.fromarray(labels)
    image.putpalette(voc_palette().tobytes())
    image.save(path)


def voc_palette() -> NDArray[np.uint8]:
    """Return VOC's colours, uint8 `[256, 3]`: the bits of an id, three at a time, become the high bits of R, G, B."""
    ids = np.arange(256)
    channels = [
        sum(((ids >> (3 * step + channel) & 1) << (7 - step) for step in range(8)), np.zeros(256, dtype=np.int64))
        for channel in range(3)
    ]
    return np.stack(channels, axis=1).astype(np.uint8)


def clipped_box(
    box_xyxy: tuple[float, float, float, float], size_wh: tuple[int, int], tolerance: float
) -> tuple[float, float, float, float] | None:
    """Cut a box of edge coordinates off where its image ends; None if it reaches more than `tolerance` pixels out."""
    x1, y1, x2, y2 = box_xyxy
    width, height = size_wh
    if min(x1, y1) < -tolerance or x2 > width + tolerance or y2 > height + tolerance:
        return None
    return max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))


def _edges(corners: list[float], size_wh: tuple[int, int], path: Path, where: str) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = corners
    if x1 > x2 or y1 > y2:
        _fail(path, where, f"inverted box xmin, ymin, xmax, ymax = {corners}")
    box = clipped_box((x1 - 1, y1 - 1, x2, y2), size_wh, EDGE_TOLERANCE)
    if box is None or box[0] >= box[2] or box[1] >= box[3]:
        _fail(path, where, f"xmin, ymin, xmax, ymax = {corners} reaches outside the image of {size_wh}")
    return box


def _number(element: ElementTree.Element | None, path: Path, where: str) -> float:
    text = "" if element is None else (element.text or "")
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        _fail(path, where, f"expected a number, found {text!r}")
    return value


def _fail(path: Path, where: str, what: str) -> NoReturn:
    raise DataError(f"{path}: {where}: {what}; {VOC_REMEDY}")
