"""A small generated world in COCO's layout: instances with the release's sparse category ids, polygons and crowds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.measure import find_contours

from data_modules.synthetic.manifest import write_world
from data_modules.synthetic.shapes import ShapeKnobs, ShapeScene, make_scenes, world_manifest
from data_modules.synthetic.voc import write_images

VERSION = 1  # part of the manifest: raise it when the same parameters give other files
# COCO's categories by supercategory; ids run on in this order but for the gaps.
CATEGORIES = {
    "person": "person",
    "vehicle": "bicycle,car,motorcycle,airplane,bus,train,truck,boat",
    "outdoor": "traffic light,fire hydrant,stop sign,parking meter,bench",
    "animal": "bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe",
    "accessory": "backpack,umbrella,handbag,tie,suitcase",
    "sports": "frisbee,skis,snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,tennis racket",
    "kitchen": "bottle,wine glass,cup,fork,knife,spoon,bowl",
    "food": "banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake",
    "furniture": "chair,couch,potted plant,bed,dining table,toilet",
    "electronic": "tv,laptop,mouse,remote,keyboard,cell phone",
    "appliance": "microwave,oven,toaster,sink,refrigerator",
    "indoor": "book,clock,vase,scissors,teddy bear,hair drier,toothbrush",
}
UNUSED_IDS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
VOC_NAMES = (  # what COCO calls VOC's classes
    *("airplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "dining table", "dog"),
    *("horse", "motorcycle", "person", "potted plant", "sheep", "couch", "train", "tv"),
)


def write_coco_world(
    root: str | Path,
    seed: int = 0,
    train_images: int = 20,
    valminusminival_images: int = 60,
    minival_images: int = 30,
    size_wh: tuple[int, int] = (200, 160),
    knobs: ShapeKnobs | None = None,
) -> Path:
    """Write `annotations/instances_*.json`, `train2014/` and `val2014/` under `root`; return that.

    In one image of ten all objects of the first one's class are annotated as a crowd, in one of twenty nothing is. A
    complete world of the same parameters is kept as it is. The same parameters give the same bytes (of images with the
    same Pillow).

    Args:
        root: The world's folder.
        seed: Seed of everything in it.
        train_images: Images of train2014.
        valminusminival_images: Images of val2014 outside minival.
        minival_images: Images of minival.
        size_wh: Usual width and height in pixels.
        knobs: How hard the scenes are.

    Raises:
        DataError: `root` exists and holds anything else.
        ValueError: A number is out of range.
    """
    counts = {"train": train_images, "valminusminival": valminusminival_images, "minival": minival_images}
    if min(counts.values()) < 1 or seed < 0 or min(size_wh) < 64:
        raise ValueError("a world has an image or more a part, sides of 64 pixels or more, and a seed >= 0")
    knobs = knobs or ShapeKnobs()
    manifest = world_manifest("synthetic/coco", VERSION, seed, knobs, size_wh=size_wh, **counts)

    def write(folder: Path) -> None:
        rng = np.random.default_rng([seed, 9])
        ids = rng.choice(580_000, sum(counts.values()), replace=False) + 1
        parts = {}
        first_annotation = 1
        for stream, (part, own) in enumerate(
            zip(counts, np.split(ids, np.cumsum([*counts.values()])[:-1]), strict=True)
        ):
            scenes = make_scenes(np.random.default_rng([seed, stream]), len(own), size_wh, knobs)
            images = "train2014" if part == "train" else "val2014"
            names = [f"COCO_{images}_{number:012d}" for number in own]
            write_images(folder / images, names, scenes)
            parts[part] = _content(own.tolist(), names, scenes, first_annotation)
            first_annotation += len(parts[part]["annotations"])
        val = {
            key: parts["valminusminival"][key] + parts["minival"][key] if key in ("images", "annotations") else value
            for key, value in parts["minival"].items()
        }
        (folder / "annotations").mkdir()
        for name, content in (parts | {"val": val}).items():
            (folder / "annotations" / f"instances_{name}2014.json").write_text(json.dumps(content))

    return write_world(root, manifest, write)


def coco_categories() -> list[dict[str, Any]]:
    """Return the release's 80 categories, whose ids go from 1 to 90."""
    ids = (number for number in range(1, 91) if number not in UNUSED_IDS)
    pairs = [(group, name) for group, names in CATEGORIES.items() for name in names.split(",")]
    return [{"supercategory": group, "id": next(ids), "name": name} for group, name in pairs]


def _content(ids: Sequence[int], names: Sequence[str], scenes: Sequence[ShapeScene], first: int) -> dict[str, Any]:
    categories = coco_categories()
    id_of = {category["name"]: category["id"] for category in categories}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index, (number, name, scene) in enumerate(zip(ids, names, scenes, strict=True)):
        height, width = scene.instances.shape
        images.append({"license": 1, "file_name": f"{name}.jpg", "height": height, "width": width, "id": number})
        crowd_label = scene.labels[0] if index % 10 == 3 else None
        single = [] if index % 20 == 7 else [n for n, label in enumerate(scene.labels) if label != crowd_label]
        masks = [(scene.labels[n], scene.instances == n + 1, False) for n in single]
        if crowd_label is not None:
            members = np.flatnonzero(scene.labels == crowd_label) + 1
            masks.append((crowd_label, np.isin(scene.instances, members), True))
        for label, mask, crowd in masks:
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            x, y = int(columns[0]), int(rows[0])
            annotations.append(
                {
                    "segmentation": _run_lengths(mask) if crowd else _polygons(mask),
                    "area": float(mask.sum()),
                    "iscrowd": int(crowd),
                    "image_id": number,
                    "bbox": [float(x), float(y), float(columns[-1] + 1 - x), float(rows[-1] + 1 - y)],
                    "category_id": id_of[VOC_NAMES[label]],
                    "id": first + len(annotations),
                }
            )
    licenses = [{"url": "", "id": 1, "name": "generated"}]
    info = {"description": "generated data in the layout of COCO 2014", "version": str(VERSION)}
    return {"info": info, "images": images, "licenses": licenses, "annotations": annotations, "categories": categories}


def _polygons(mask: NDArray[np.bool_]) -> list[list[float]]:
    """Outline every piece of a mask as x1, y1, x2, y2, ... in pixels."""
    contours = find_contours(np.pad(mask, 1).astype(np.float64), 0.5)  # type: ignore[no-untyped-call]
    # A pixel's centre is half a pixel from its edges, and the padding moved everything by one.
    return [(contour[:-1, ::-1] - 0.5).ravel().tolist() for contour in contours if len(contour) > 3]


def _run_lengths(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Encode a mask as COCO does crowds: lengths of runs down the columns, starting with the background."""
    column_major = np.concatenate([[False], mask.ravel(order="F"), [False]])
    changes = np.flatnonzero(column_major[1:] != column_major[:-1])
    counts = np.diff(np.concatenate([[0], changes, [mask.size]]))
    return {"counts": counts.tolist() if changes[-1] < mask.size else counts[:-1].tolist(), "size": list(mask.shape)}
