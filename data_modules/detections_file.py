"""Files of detected objects, which relation models get at test time: our own, and COCO's lists of results.

Our own is an npz that a detector's run writes:

| array | type | content |
|---|---|---|
| `object_names` | text `[C]` | names of the object categories; a name's position is its label |
| `images` | text `[I]` | image names as the annotations spell them |
| `sizes_wh` | float64 `[I, 2]` | width and height in pixels of the frame that the image's boxes are in |
| `offsets` | int64 `[I + 1]` | rows of image i are offsets[i] to offsets[i + 1] - 1 |
| `boxes_xyxy` | float32 `[N, 4]` | pixels, counted as in the data set's annotations |
| `labels` | int64 `[N]` | 0-based |
| `scores` | float64 `[N]` | confidences from 0 to 1 |
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_modules.errors import DataError
from data_modules.json_files import is_box, is_number, read_json
from data_modules.reldn_files import DetectionAnnotations
from data_modules.scene_graph import Detections, SceneGraph

REMEDY = "run the detector on this data set again, or name another file"
TOLERANCE = 1.0  # pixels that a box may reach outside its frame: conventions count columns from 0 or from 1
ARRAYS = ("object_names", "images", "sizes_wh", "offsets", "boxes_xyxy", "labels", "scores")


@dataclass(frozen=True, slots=True)
class DetectedImages:
    """Detections by image name.

    Attributes:
        path: The file that they come from.
        sizes_wh: Width and height in pixels of the frame that an image's boxes are in.
        detections: The detected objects.
    """

    path: Path
    sizes_wh: dict[str, tuple[float, float]]
    detections: dict[str, Detections]

    def fitted(
        self, graphs: Sequence[SceneGraph], frames_wh: Sequence[tuple[float, float] | None], min_score: float = 0.0
    ) -> list[Detections]:
        """Return the detections of some images, in the frames that their annotated boxes are in.

        Args:
            graphs: The images.
            frames_wh: Width and height in pixels of those frames; None where nobody knows them: the detections are
                then taken to be in the same one.
            min_score: Detections with a lower confidence, a fraction, are dropped.

        Raises:
            DataError: An image has no entry, or its frame has another shape than the file says.
        """
        missing = [graph.image for graph in graphs if graph.image not in self.detections]
        if missing:
            found = f"{len(missing)} of {len(graphs)} images, as {missing[0]!r}, are not in the file"
            raise DataError(f"{self.path}: {found}; {REMEDY}")
        return [self._fitted(graph, frame, min_score) for graph, frame in zip(graphs, frames_wh, strict=True)]

    def _fitted(self, graph: SceneGraph, frame: tuple[float, float] | None, min_score: float) -> Detections:
        found, own = self.detections[graph.image], self.sizes_wh[graph.image]
        kept = found.scores >= min_score
        boxes = found.boxes_xyxy[kept]
        if frame is not None and frame != own:
            factors = np.array(frame) / np.array(own)
            if graph.size_wh is not None:  # frames' shorter sides may be rounded, the longer ones are not
                uniform = max(frame) / max(own)
                if (np.abs(np.array(frame) - uniform * np.array(own)) > 1 + uniform).any():
                    sizes = f"detections are in a frame of {own}, annotations in one of {frame} pixels"
                    raise DataError(f"{self.path}: image {graph.image!r}: sizes_wh: {sizes}; {REMEDY}")
                factors[:] = uniform
            boxes = (boxes * np.tile(factors, 2)).astype(np.float32)
        return Detections(boxes, found.labels[kept], found.scores[kept])


def write_detections(
    path: Path,
    object_names: Sequence[str],
    images: Sequence[str],
    sizes_wh: Sequence[tuple[float, float]],
    detections: Sequence[Detections],
) -> None:
    """Write detections into an npz, which appears by one rename.

    Args:
        path: The file; one that is there is replaced.
        object_names: Names of the object categories in the order of their labels.
        images: Image names as the annotations spell them.
        sizes_wh: Widths and heights in pixels of the frames that the boxes are in.
        detections: One record an image.

    Raises:
        ValueError: There are not equally many of the last three, or an image occurs twice.
    """
    if not len(images) == len(sizes_wh) == len(detections) or len(set(images)) < len(images):
        found = f"{len(images)} images, {len(set(images))} of them different, {len(sizes_wh)} sizes"
        raise ValueError(f"expected one size and one record for each image, got {found}, {len(detections)} records")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with partial.open("wb") as file:
        np.savez(
            file,
            object_names=np.array(object_names, dtype=np.str_),
            images=np.array(images, dtype=np.str_),
            sizes_wh=np.array(sizes_wh, dtype=np.float64).reshape(-1, 2),
            offsets=np.cumsum([0, *(len(d.scores) for d in detections)], dtype=np.int64),
            boxes_xyxy=np.concatenate([np.zeros((0, 4)), *(d.boxes_xyxy for d in detections)]).astype(np.float32),
            labels=np.concatenate([np.zeros(0), *(d.labels for d in detections)]).astype(np.int64),
            scores=np.concatenate([np.zeros(0), *(d.scores for d in detections)]).astype(np.float64),
        )
    partial.replace(path)


def read_detections(path: Path, object_names: Sequence[str]) -> DetectedImages:
    """Read an npz that `write_detections` wrote.

    Args:
        path: The file.
        object_names: Names of the object categories, which must be those of the file.

    Raises:
        DataError: The file is missing or damaged, lacks an array or holds one that doesn't fit the others, or an
            image, label, score or box is none. The message names array and row.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; {REMEDY}")
    try:
        with np.load(path, allow_pickle=False) as file:
            data = {name: np.asarray(file[name]) for name in ARRAYS}
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: not a readable file of detections ({error}); {REMEDY}") from error
    images, rows = data["images"].size, data["labels"].size
    shapes = {"object_names": (data["object_names"].size,), "images": (images,), "sizes_wh": (images, 2)}
    shapes |= {"offsets": (images + 1,), "boxes_xyxy": (rows, 4), "labels": (rows,), "scores": (rows,)}
    for name, shape in shapes.items():
        kinds = "U" if name in ("object_names", "images") else "iu" if name in ("offsets", "labels") else "iuf"
        if data[name].shape != shape or data[name].dtype.kind not in kinds:
            found = f"{data[name].dtype} {data[name].shape}"
            raise DataError(f"{path}: {name}: expected {shape}, one of {kinds!r}, found {found}; {REMEDY}")
    if data["object_names"].tolist() != list(object_names):
        raise DataError(f"{path}: object_names: the detector knows other classes than the data set; {REMEDY}")
    names = data["images"].tolist()
    if len(set(names)) < len(names):
        raise DataError(f"{path}: images: {len(names) - len(set(names))} occur twice; {REMEDY}")
    offsets = data["offsets"].astype(np.int64)
    if offsets[0] != 0 or offsets[-1] != rows or (np.diff(offsets) < 0).any():
        raise DataError(f"{path}: offsets: expected to rise from 0 to {rows}; {REMEDY}")
    sizes, owner = data["sizes_wh"].astype(np.float64), np.repeat(np.arange(images), np.diff(offsets))
    return _checked(
        path,
        names,
        sizes,
        owner,
        data["boxes_xyxy"].astype(np.float64),
        data["labels"].astype(np.int64),
        data["scores"].astype(np.float64),
        len(object_names),
        lambda array, row: f"{array}: row {row}",
    )


def read_coco_results(
    path: Path,
    index: DetectionAnnotations,
    object_names: Sequence[str],
    rename: Callable[[str], str] = str,
) -> DetectedImages:
    """Read a COCO list of results: [{"image_id", "category_id", "bbox": [x, y, width, height], "score"}, ...].

    Widths and heights count columns and rows, as RelDN's code and Detectron write them. An image of which the list says
    nothing has no detections.

    Args:
        path: The file.
        index: The annotations whose image and category ids the list uses.
        object_names: Names of the object categories; the index may have them in another order.
        rename: From the index's file names to the annotations' image names.

    Raises:
        DataError: The file is missing or isn't such a list, or names an unknown image or category, or a score or box is
            none. The message names entry and field.
    """
    if sorted(index.names) != sorted(object_names):
        unknown = sorted(set(index.names) ^ set(object_names))[:3]
        raise DataError(f"{path}: its index has other classes than the data set, as {unknown}; {REMEDY}")
    content = read_json(path, REMEDY)
    if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
        raise DataError(f"{path}: expected a list of results; {REMEDY}")
    images = {number: place for place, number in enumerate(index.image_names)}
    labels = {number: object_names.index(index.names[label]) for number, label in index.labels_of.items()}
    owner = _known(path, content, "image_id", images)
    label = _known(path, content, "category_id", labels)
    boxes, scores = [entry.get("bbox") for entry in content], [entry.get("score") for entry in content]
    for row, (box, score) in enumerate(zip(boxes, scores, strict=True)):
        if not is_box(box):
            raise DataError(f"{path}: [{row}].bbox: expected [x, y, width, height], found {box!r}; {REMEDY}")
        if not is_number(score):
            raise DataError(f"{path}: [{row}].score: expected a number, found {score!r}; {REMEDY}")
    table = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    order = np.argsort(owner, kind="stable")
    corners = np.concatenate([table[:, :2], table[:, :2] + table[:, 2:] - 1], axis=1)
    return _checked(
        path,
        [rename(name) for name in index.image_names.values()],
        np.array(list(index.sizes_wh.values()), dtype=np.float64).reshape(-1, 2),
        owner[order],
        corners[order],
        label[order],
        np.array(scores, dtype=np.float64)[order],
        len(object_names),
        lambda array, row: f"[{order[row]}].{ {'scores': 'score', 'boxes_xyxy': 'bbox'}.get(array, array) }",
    )


def _known(path: Path, content: list[dict[str, Any]], key: str, known: dict[int, int]) -> NDArray[np.int64]:
    values = [entry.get(key) for entry in content]
    found = [known.get(value, -1) if type(value) is int else -1 for value in values]
    if -1 in found:
        bad = found.index(-1)
        raise DataError(f"{path}: [{bad}].{key}: {values[bad]!r} is unknown; {REMEDY}")
    return np.array(found, dtype=np.int64)


def _checked(
    path: Path,
    images: list[str],
    sizes_wh: NDArray[np.float64],
    owner: NDArray[np.int64],
    boxes_xyxy: NDArray[np.float64],
    labels: NDArray[np.int64],
    scores: NDArray[np.float64],
    num_objects: int,
    where: Callable[[str, int], str],
) -> DetectedImages:
    """Check the values of long tables that are in the order of `images`, and cut them into one record an image."""
    bad = np.flatnonzero(~((sizes_wh > 0) & np.isfinite(sizes_wh)).all(axis=1))
    if bad.size:
        raise DataError(f"{path}: sizes_wh: row {bad[0]}: {sizes_wh[bad[0]].tolist()} is no size; {REMEDY}")
    limits = sizes_wh[owner] + TOLERANCE
    checks = (
        ("labels", (labels >= 0) & (labels < num_objects), labels, f"a label from 0 to {num_objects - 1}"),
        ("scores", (scores >= 0) & (scores <= 1), scores, "a confidence from 0 to 1"),
        (
            "boxes_xyxy",
            (boxes_xyxy >= -TOLERANCE).all(axis=1)
            & (boxes_xyxy[:, :2] <= boxes_xyxy[:, 2:]).all(axis=1)
            & (boxes_xyxy[:, 2:] <= limits).all(axis=1),
            boxes_xyxy,
            "x1 <= x2 and y1 <= y2 within the image",
        ),
    )
    for array, right, values, expected in checks:
        bad = np.flatnonzero(~right)
        if bad.size:
            found = f"image {images[owner[bad[0]]]!r}: expected {expected}, found {values[bad[0]].tolist()}"
            raise DataError(f"{path}: {where(array, int(bad[0]))}: {found}; {REMEDY}")
    ends = np.searchsorted(owner, np.arange(len(images)), side="right").tolist()
    boxes = boxes_xyxy.astype(np.float32)
    detections = {}
    for name, first, end in zip(images, [0, *ends], ends, strict=False):
        detections[name] = Detections(boxes[first:end], labels[first:end], scores[first:end])
    sizes: dict[str, tuple[float, float]] = {n: (w, h) for n, (w, h) in zip(images, sizes_wh.tolist(), strict=True)}
    return DetectedImages(path, sizes, detections)
