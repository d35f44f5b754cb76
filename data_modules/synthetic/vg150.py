"""A small generated world in the layout of VG150, file by file, and what the worlds of Visual Genome share."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from data_modules.synthetic.manifest import write_world
from data_modules.synthetic.relation_classes import Node, RelationKnobs, world_names
from data_modules.synthetic.relation_drawing import save_scenes
from data_modules.synthetic.relation_scenes import Scene, check_sizes, make_scenes
from data_modules.synthetic.relation_truth import write_truth
from data_modules.synthetic.shapes import world_manifest

VERSION = 2  # part of the manifest: raise it when the same parameters give other files
CORRUPTED = (1592, 1722, 4616, 4617)  # listed in image_data.json, left out everywhere else


def write_vg150_world(
    root: str | Path,
    seed: int = 0,
    train_images: int = 300,
    test_images: int = 100,
    num_objects: int = 20,
    num_predicates: int = 12,
    with_images: bool = True,
    side: int = 240,
    knobs: RelationKnobs | None = None,
) -> Path:
    """Write `VG-SGG.h5`, `VG-SGG-dicts.json`, `image_data.json` and `VG_100K/` under `root`, and return that.

    One image in twenty has no relation, the eighth of either split no box. A complete world of the same parameters is
    kept as it is; the same parameters give the same bytes. Without images the other files are unchanged. `truth.json`
    tells all that is true, see `relation_truth`.

    Args:
        root: The world's folder.
        seed: Seed of everything in it.
        train_images: Training images.
        test_images: Test images.
        num_objects: Object classes.
        num_predicates: Predicates.
        with_images: Draw the images.
        side: Height of nine images in ten, in pixels; the tenth is larger.
        knobs: How hard the scenes are.

    Raises:
        DataError: `root` exists and holds anything else.
        ValueError: A number is outside what the file formats or the five kinds allow.
    """
    knobs = knobs or RelationKnobs()
    sizes = (train_images, test_images, num_objects, num_predicates, side)
    check_sizes(seed, *sizes)
    manifest = vg_manifest("vg150", VERSION, seed, with_images, sizes, knobs)

    def write(folder: Path) -> None:
        scenes = vg_scenes(seed, *sizes, knobs)
        folder.mkdir(parents=True)
        write_image_data(folder / "image_data.json", scenes)
        _write_dicts(folder / "VG-SGG-dicts.json", scenes, num_objects, num_predicates)
        _write_h5(folder / "VG-SGG.h5", scenes, train_images)
        write_truth(folder, scenes, image_names(scenes), world_names(num_objects, num_predicates))
        if with_images:
            save_scenes(scenes, [folder / "VG_100K" / name for name in image_names(scenes)], knobs.clutter)

    return write_world(root, manifest, write)


def vg_manifest(
    name: str, version: int, seed: int, with_images: bool, sizes: tuple[int, int, int, int, int], knobs: RelationKnobs
) -> dict[str, Any]:
    """Return the manifest of a world of `vg_scenes`; `sizes` are that function's arguments after the seed."""
    fields = ("train_images", "test_images", "num_objects", "num_predicates", "side")
    named = dict(zip(fields, sizes, strict=True))
    return world_manifest(f"synthetic/{name}", version, seed, knobs, with_images=with_images, **named)


def vg_scenes(
    seed: int,
    train_images: int,
    test_images: int,
    num_objects: int,
    num_predicates: int,
    side: int,
    knobs: RelationKnobs,
) -> list[Scene]:
    """Return the scenes of the training and then of the test images; the eighth of either holds nothing."""
    scenes = []
    for stream, count in enumerate((train_images, test_images)):
        made = make_scenes(np.random.default_rng([seed, stream]), count, num_objects, num_predicates, knobs, side)
        scenes += [s.without_objects() if i == 7 else s for i, s in enumerate(made)]
    return scenes


def image_ids(scenes: Sequence[Scene]) -> list[int]:
    """Return the scenes' numbers in Visual Genome, rising and none of them a corrupted one."""
    return [1500 + 31 * i for i in range(len(scenes))]


def image_names(scenes: Sequence[Scene]) -> list[str]:
    """Return the scenes' file names in Visual Genome."""
    return [f"{number}.jpg" for number in image_ids(scenes)]


def write_image_data(path: Path, scenes: Sequence[Scene]) -> None:
    """Write `image_data.json`, the four corrupted images included."""
    sizes = dict(zip(image_ids(scenes), (s.size_wh for s in scenes), strict=True)) | dict.fromkeys(
        CORRUPTED, (400, 300)
    )
    entries = [
        {"width": w, "url": f"generated/{i}.jpg", "height": h, "image_id": i, "coco_id": None, "flickr_id": None}
        for i, (w, h) in sorted(sizes.items())
    ]
    path.write_text(json.dumps(entries))


def scene_nodes(scene: Scene) -> list[Node]:
    """Return all objects of a scene, and the second categories that its relations give some of them."""
    ends = (end for subject, _, other in scene.relations for end in (subject, other))
    return list(dict.fromkeys([*scene.objects, *ends]))


def _write_dicts(path: Path, scenes: Sequence[Scene], num_objects: int, num_predicates: int) -> None:
    objects, predicates = world_names(num_objects, num_predicates)
    content: dict[str, Any] = {}
    for kind, names in (("label", objects), ("predicate", predicates)):
        content[f"{kind}_to_idx"] = {name: i + 1 for i, name in enumerate(names)}
        content[f"idx_to_{kind}"] = {str(i + 1): name for i, name in enumerate(names)}
    nodes = Counter(objects[label] for scene in scenes for _, label in scene_nodes(scene))
    content["object_count"] = {name: nodes[name] for name in objects}
    used = Counter(predicates[p] for scene in scenes for _, p, _ in scene.relations)
    content["predicate_count"] = {name: used[name] for name in predicates}
    path.write_text(json.dumps(content))


def _write_h5(path: Path, scenes: Sequence[Scene], train_images: int) -> None:
    boxes: dict[int, list[list[int]]] = {1024: [], 512: []}
    labels: list[int] = []
    predicates: list[int] = []
    pairs: list[tuple[int, int]] = []
    ranges: list[list[int]] = []
    for scene in scenes:
        nodes, first_box, first_relation = scene_nodes(scene), len(labels), len(predicates)
        index = {node: first_box + i for i, node in enumerate(nodes)}
        for (x1, y1, x2, y2), label in nodes:
            labels.append(label + 1)
            for side, rows in boxes.items():
                scale = side / max(scene.size_wh)
                x, y = round((x1 - 1) * scale), round((y1 - 1) * scale)
                w, h = max(1, round((x2 - x1 + 1) * scale)), max(1, round((y2 - y1 + 1) * scale))
                rows.append([x + w // 2, y + h // 2, w, h])
        for subject, predicate, other in scene.relations:
            predicates.append(predicate + 1)
            pairs.append((index[subject], index[other]))
        ends = len(labels) - 1, len(predicates) - 1
        ranges.append(
            [first_box, ends[0], first_relation, ends[1]]
            if scene.relations
            else [first_box, ends[0], -1, -1]
            if nodes
            else [-1] * 4
        )
    table = np.array(ranges, dtype=np.int32)
    with h5py.File(path, "w") as file:
        for side, rows in boxes.items():
            file[f"boxes_{side}"] = np.array(rows, dtype=np.int32)
        file["labels"] = np.array(labels, dtype=np.int32)[:, None]
        file["predicates"] = np.array(predicates, dtype=np.int32)[:, None]
        file["relationships"] = np.array(pairs, dtype=np.int32).reshape(-1, 2)
        for column, name in enumerate(("first_box", "last_box", "first_rel", "last_rel")):
            file[f"img_to_{name}"] = table[:, column]
        file["split"] = np.where(np.arange(len(scenes)) < train_images, 0, 2).astype(np.int32)
        file["active_object_mask"] = np.isin(np.arange(len(labels)), pairs)[:, None]
