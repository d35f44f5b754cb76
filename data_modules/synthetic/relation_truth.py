"""All that is true of a generated relation world: what its official files tell only in part.

`truth.json`, beside the official files, which no reader of these looks at. One object:

- `objects`, `predicates`: names; a name's position is its label.
- `images`: one entry an image: `image`, its name as the readers spell it; `size_wh` in pixels; `boxes`, rows
  [x1, y1, x2, y2] in pixels from 1, the last column and row included; `labels`, one a box; `ambiguous`, 1 for each box
  that is drawn halfway between its class and that one's twin; `relations`, rows [subject box, predicate, object box],
  everything that holds; `annotated`, 1 for each of them that the official files tell of.

Whatever mistakes the annotations make (relations given twice, second categories of a box) isn't here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_modules.errors import DataError
from data_modules.json_files import read_json
from data_modules.scene_graph import SceneGraph
from data_modules.synthetic.relation_scenes import Scene

FILE_NAME = "truth.json"
REMEDY = "remove the generated world and write it again"


@dataclass(frozen=True, slots=True)
class TrueScene:
    """One generated image as it is.

    Attributes:
        graph: All objects, and all relations that hold between them. Boxes are in pixels from 1, the last column and
            row included, whatever the data set's own convention.
        annotated: bool `[M]`, relations that the official files tell of.
        ambiguous: bool `[N]`, objects drawn halfway between their class and that one's twin.
    """

    graph: SceneGraph
    annotated: NDArray[np.bool_]
    ambiguous: NDArray[np.bool_]


def write_truth(
    folder: Path, scenes: Sequence[Scene], images: Sequence[str], names: tuple[list[str], list[str]]
) -> None:
    """Write `truth.json` into `folder`; `images` are the scenes' names as the readers spell them."""
    entries = [
        {
            "image": image,
            "size_wh": scene.size_wh,
            "boxes": [box for box, _ in scene.objects],
            "labels": [label for _, label in scene.objects],
            "ambiguous": [int(a) for a in scene.ambiguous],
            "relations": scene.facts,
            "annotated": [int(a) for a in scene.annotated],
        }
        for image, scene in zip(images, scenes, strict=True)
    ]
    content = {"objects": names[0], "predicates": names[1], "images": entries}
    (folder / FILE_NAME).write_text(json.dumps(content))


def read_truth(root: str | Path) -> list[TrueScene]:
    """Read the `truth.json` of a generated world, in the order in which its scenes were made.

    Raises:
        DataError: The file is missing, isn't JSON, or isn't what `write_truth` writes.
    """
    path = Path(root) / FILE_NAME
    content = read_json(path, REMEDY)
    try:
        limits = len(content["objects"]), len(content["predicates"])
        entries = list(content["images"])
    except (KeyError, TypeError) as error:
        raise DataError(f"{path}: expected objects, predicates and images ({error!r}); {REMEDY}") from error
    return [_scene(path, index, entry, limits) for index, entry in enumerate(entries)]


def _scene(path: Path, index: int, entry: Any, limits: tuple[int, int]) -> TrueScene:
    try:
        boxes = np.array(entry["boxes"], dtype=np.float32).reshape(-1, 4)
        labels, relations = (np.array(entry[key], dtype=np.int64) for key in ("labels", "relations"))
        relations = relations.reshape(-1, 3)
        annotated, ambiguous = (np.array(entry[key], dtype=np.bool_) for key in ("annotated", "ambiguous"))
        width, height = map(int, entry["size_wh"])
        image = str(entry["image"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: images[{index}]: {error!r}; {REMEDY}") from error
    for name, values, limit in (
        ("labels", labels, limits[0]),
        ("relations: predicate", relations[:, 1], limits[1]),
        ("relations: box", relations[:, [0, 2]], len(labels)),
    ):
        wrong = values[(values < 0) | (values >= limit)]
        if wrong.size:
            raise DataError(f"{path}: images[{index}]: {name}: expected 0 to {limit - 1}, found {wrong[0]}; {REMEDY}")
    if not (len(boxes) == len(labels) == len(ambiguous) and len(relations) == len(annotated)):
        raise DataError(f"{path}: images[{index}]: lists of different lengths; {REMEDY}")
    return TrueScene(SceneGraph(image, (width, height), boxes, labels, relations), annotated, ambiguous)
