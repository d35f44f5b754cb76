"""Readers of the VRD release: the official JSON, the MATLAB files of Lu et al. (2016) and the image folders.

All boxes of the release are pixel coordinates counted from 1 whose last row and column belong to the box, so that
1 <= x1 <= x2 <= W. JSON and MATLAB files agree in this and are used as they are. Labels are 0-based in the JSON and
1-based in the MATLAB files; every record returned here is 0-based.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.io import loadmat

from data_modules.errors import DataError
from data_modules.json_files import read_json, read_name_list
from data_modules.scene_graph import Detections, PairPredictions, SceneGraph

JSON_REMEDY = "re-extract json_dataset.zip and compare its checksum"
MAT_REMEDY = "fetch the file again from the release of Lu et al. (2016) and compare its checksum"
IMAGE_REMEDY = "extract sg_dataset.zip so that sg_dataset/sg_train_images and sg_dataset/sg_test_images exist"
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".gif")
FLICKR_LARGE = 1024.0  # longer side in pixels of Flickr's "large" files, whose names end in `_b`

Node = tuple[float, float, float, float, int]  # x1, y1, x2, y2, category


def read_names(path: Path) -> list[str]:
    """Read a name list (`objects.json`, `predicates.json`); a name's position is its label.

    Raises:
        DataError: The file is missing, isn't JSON, or isn't a list of distinct names.
    """
    return read_name_list(path, JSON_REMEDY)


def read_annotations(path: Path, num_objects: int, num_predicates: int) -> dict[str, SceneGraph]:
    """Read `annotations_{train,test}.json` into one graph an image, in the order of the file.

    The nodes of an image are the distinct (box, category) of its relations, in order of first appearance, a relation's
    subject before its object: a box under two categories is two nodes. Exact duplicates of relations are kept.

    Raises:
        DataError: The file is missing or isn't JSON, a field is missing or of another type, a label is outside the
            name lists, or a box is inverted or starts below 0. The message names image, relation and field.
    """
    content = read_json(path, JSON_REMEDY)
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected a dictionary from image names to relations; {JSON_REMEDY}")
    graphs = {}
    for image, relations in content.items():
        if not isinstance(relations, list):
            raise DataError(f"{path}: image {image!r}: expected a list of relations; {JSON_REMEDY}")
        rows = []
        for index, relation in enumerate(relations):
            where = (path, image, index)
            subject = _json_node(relation, "subject", num_objects, where)
            predicate = _json_label(relation, "predicate", "predicate", num_predicates, where)
            rows.append((subject, predicate, _json_node(relation, "object", num_objects, where)))
        graphs[image] = _graph(image, rows)
    return graphs


def read_image_order(path: Path) -> list[str]:
    """Read `imagePath.mat`: the image names in the order that the other MATLAB files follow."""
    return ["".join(cell.ravel()) for cell in _read_cells(path, ["imagePath"], None)[0]]


def read_lu_detections(path: Path, num_objects: int, num_images: int | None = None) -> list[Detections]:
    """Read `objectDetRCNN.mat`, the proposals that Lu et al. (2016) released, one record an image.

    Raises:
        DataError: The file is missing or damaged, doesn't hold `num_images` images, or has labels outside 1 to
            `num_objects`, scores outside [0, 1] or inverted boxes.
    """
    names = ["detection_bboxes", "detection_labels", "detection_confs"]
    result = []
    for index, cells in enumerate(zip(*_read_cells(path, names, num_images), strict=True)):
        where = f"{path}: image {index}"
        boxes = _rows(cells[0], 4, f"{where}: detection_bboxes")
        labels = _rows(cells[1], 1, f"{where}: detection_labels")[:, 0]
        scores = _rows(cells[2], 1, f"{where}: detection_confs")[:, 0]
        if not len(boxes) == len(labels) == len(scores):
            found = f"{len(boxes)} boxes, {len(labels)} labels and {len(scores)} confidences"
            raise DataError(f"{where}: {found}; {MAT_REMEDY}")
        _check_boxes(boxes, f"{where}: detection_bboxes")
        _check_range(labels, 1, num_objects, f"{where}: detection_labels")
        _check_range(scores, 0, 1, f"{where}: detection_confs")
        result.append(Detections(boxes.astype(np.float32), labels.astype(np.int64) - 1, scores))
    return result


def read_lu_predictions(path: Path, num_images: int | None = None) -> list[PairPredictions]:
    """Read `relationship_det_result.mat`, the relationships that Lu et al. (2016) detected, in the order of the file.

    Every row becomes a pair of its own with one triplet (K = 1). Scores are unbounded; higher is better.
    """
    names = ["rlp_labels_ours", "rlp_confs_ours", "sub_bboxes_ours", "obj_bboxes_ours"]
    result = []
    for index, cells in enumerate(zip(*_read_cells(path, names, num_images), strict=True)):
        widths = (3, 1, 4, 4)
        where = [f"{path}: image {index}: {name}" for name in names]
        labels, scores, subjects, objects = (_rows(c, w, at) for c, w, at in zip(cells, widths, where, strict=True))
        if not len(labels) == len(scores) == len(subjects) == len(objects):
            raise DataError(f"{path}: image {index}: the four variables differ in their rows; {MAT_REMEDY}")
        triplets = labels.astype(np.int64)[:, None, :] - 1
        result.append(PairPredictions(subjects.astype(np.float32), objects.astype(np.float32), triplets, scores))
    return result


def read_lu_ground_truth(path: Path, images: Sequence[str]) -> list[SceneGraph]:
    """Read `gt.mat` into the graphs of `images`, with nodes and relations as `read_annotations` makes them."""
    names = ["gt_tuple_label", "gt_sub_bboxes", "gt_obj_bboxes"]
    result = []
    for image, cells in zip(images, zip(*_read_cells(path, names, len(images)), strict=True), strict=True):
        labels, subjects, objects = (
            _rows(c, w, f"{path}: image {image!r}: {name}").tolist()
            for c, w, name in zip(cells, (3, 4, 4), names, strict=True)
        )
        rows = [
            ((*s_box, int(s) - 1), int(p) - 1, (*o_box, int(o) - 1))
            for (s, p, o), s_box, o_box in zip(labels, subjects, objects, strict=True)
        ]
        result.append(_graph(image, rows))
    return result


def with_image_size(graph: SceneGraph, size_wh: tuple[int, int], path: Path) -> SceneGraph:
    """Return the graph with its image's width and height in pixels; `path` is the file its boxes came from.

    Raises:
        DataError: A box reaches outside the image, x2 > W or y2 > H.
    """
    outside = set(np.flatnonzero(graph.boxes_xyxy[:, 2:] > np.array(size_wh)) // 2)
    for index, (subject, _, obj) in enumerate(graph.relations.tolist() if outside else ()):
        for field, node in (("subject", subject), ("object", obj)):
            if node in outside:
                found = f"box x1,y1,x2,y2 = {graph.boxes_xyxy[node].tolist()} reaches outside the image of {size_wh}"
                _fail((path, graph.image, index), field, f"{found}; was the image resized? Otherwise {JSON_REMEDY}")
    return replace(graph, size_wh=size_wh)


def find_image(folder: Path, name: str) -> Path:
    """Return the file of an annotated image: the name itself, else its stem under another image suffix.

    The release holds a GIF that the annotations call `.jpg`, and some of its files have PNG content.

    Raises:
        DataError: No such file.
    """
    wanted = folder / name
    candidates = [wanted, *(wanted.with_suffix(suffix) for suffix in IMAGE_SUFFIXES)]
    for path in candidates:
        if path.is_file():
            return path
    raise DataError(f"{wanted}: no such image, nor one of that stem with {', '.join(IMAGE_SUFFIXES)}; {IMAGE_REMEDY}")


def image_size(folder: Path, name: str) -> tuple[int, int]:
    """Return an image's width and height in pixels, from its header alone."""
    path = find_image(folder, name)
    try:
        with Image.open(path) as image:
            return image.size
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path}: not a readable image ({error}); {IMAGE_REMEDY}") from error


def estimate_size(image: str, boxes_xyxy: NDArray[np.float32]) -> tuple[float, float]:
    """Estimate an image's width and height in pixels from boxes in it: their extent from pixel 1.

    Names ending in `_b` are Flickr's "large" files, whose longer side has 1024 pixels: it is set to that. On 60 real
    test images with the proposals of Lu et al. the mean absolute error is 5.1 percent of the width, 5.2 of the height.
    """
    width, height = boxes_xyxy[:, 2:].max(axis=0, initial=1.0).tolist()
    if Path(image).stem.endswith("_b"):
        return FLICKR_LARGE if width >= height else width, FLICKR_LARGE if height >= width else height
    return width, height


def open_image(folder: Path, name: str) -> Image.Image:
    """Read an image as RGB; of a GIF the first frame. The content decides the format, not the suffix.

    An orientation that a camera noted is ignored, because the boxes refer to the pixels as they are stored.

    Raises:
        DataError: The file is missing, truncated or no image.
    """
    path = find_image(folder, name)
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path}: truncated or damaged image ({error}); {IMAGE_REMEDY}") from error


def _graph(image: str, rows: Iterable[tuple[Node, int, Node]]) -> SceneGraph:
    nodes: dict[Node, int] = {}
    relations = []
    for subject, predicate, obj in rows:
        first = nodes.setdefault(subject, len(nodes))
        relations.append((first, predicate, nodes.setdefault(obj, len(nodes))))
    boxes = np.array([node[:4] for node in nodes], dtype=np.float32).reshape(-1, 4)
    labels = np.array([node[4] for node in nodes], dtype=np.int64)
    return SceneGraph(image, None, boxes, labels, np.array(relations, dtype=np.int64).reshape(-1, 3))


def _fail(where: tuple[Path, str, int], field: str, what: str) -> NoReturn:
    path, image, index = where
    raise DataError(f"{path}: image {image!r}, relation {index}, {field}: {what}")


def _json_label(entry: Any, key: str, field: str, count: int, where: tuple[Path, str, int]) -> int:
    label = entry.get(key) if isinstance(entry, dict) else None
    if type(label) is not int or not 0 <= label < count:
        _fail(where, field, f"expected a label from 0 to {count - 1}, found {label!r}; {JSON_REMEDY}")
    return label


def _json_node(relation: Any, field: str, num_objects: int, where: tuple[Path, str, int]) -> Node:
    entry = relation.get(field) if isinstance(relation, dict) else None
    label = _json_label(entry, "category", f"{field}.category", num_objects, where)
    assert isinstance(entry, dict)  # otherwise it had no category
    box = entry.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(type(v) in (int, float) for v in box):
        _fail(where, f"{field}.bbox", f"expected [ymin, ymax, xmin, xmax], found {box!r}; {JSON_REMEDY}")
    y1, y2, x1, x2 = box
    if not (0 <= y1 <= y2 < math.inf and 0 <= x1 <= x2 < math.inf):
        expected = "0 <= ymin <= ymax and 0 <= xmin <= xmax"
        _fail(where, f"{field}.bbox", f"expected {expected}, found [ymin, ymax, xmin, xmax] = {box}; {JSON_REMEDY}")
    return x1, y1, x2, y2, label


def _read_cells(path: Path, names: list[str], num_images: int | None) -> list[list[NDArray[Any]]]:
    if not path.is_file():
        raise DataError(f"{path}: no such file; {MAT_REMEDY}")
    try:
        content = loadmat(path, variable_names=names)
    except Exception as error:  # damaged bytes make scipy raise nearly anything, even NameError
        raise DataError(f"{path}: not a readable MATLAB v5 file ({error}); {MAT_REMEDY}") from error
    for name in names:
        if name not in content or content[name].dtype != object:
            raise DataError(f"{path}: holds no cell array {name!r}; {MAT_REMEDY}")
        found = content[name].size
        if num_images is not None and found != num_images:
            raise DataError(f"{path}: {name} holds {found} images, the annotations hold {num_images}; {MAT_REMEDY}")
    return [list(content[name].ravel()) for name in names]


def _rows(cell: NDArray[Any], width: int, where: str) -> NDArray[np.float64]:
    # MATLAB stores small labels as uint8 and boxes as uint16: arithmetic on these would wrap around.
    if cell.size == 0:
        return np.zeros((0, width))
    if cell.ndim != 2 or cell.shape[1] != width or cell.dtype.kind not in "uif":
        raise DataError(f"{where}: expected {width} numeric columns, found {cell.dtype} {cell.shape}; {MAT_REMEDY}")
    return cell.astype(np.float64)


def _check_boxes(boxes: NDArray[np.float64], where: str) -> None:
    for row, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
        if not (0 <= x1 <= x2 < math.inf and 0 <= y1 <= y2 < math.inf):
            raise DataError(f"{where}: row {row}: inverted box x1,y1,x2,y2 = {[x1, y1, x2, y2]}; {MAT_REMEDY}")


def _check_range(values: NDArray[np.float64], low: int, high: int, where: str) -> None:
    bad = np.flatnonzero(~((values >= low) & (values <= high)))
    if bad.size:
        raise DataError(f"{where}: row {bad[0]}: {values[bad[0]]:g} is not from {low} to {high}; {MAT_REMEDY}")
