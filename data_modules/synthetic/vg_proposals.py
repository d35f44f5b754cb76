"""A small generated world in the layout of Visual Genome's own JSON files, for relation proposals."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_modules.synthetic.manifest import write_world
from data_modules.synthetic.relation_classes import Box, RelationKnobs, world_names
from data_modules.synthetic.relation_drawing import save_scenes
from data_modules.synthetic.relation_scenes import Scene, check_sizes
from data_modules.synthetic.relation_truth import write_truth
from data_modules.synthetic.vg150 import image_ids, image_names, scene_nodes, vg_manifest, vg_scenes, write_image_data

VERSION = 2  # part of the manifest: raise it when the same parameters give other files


def write_vg_proposals_world(
    root: str | Path,
    seed: int = 0,
    num_images: int = 400,
    num_objects: int = 20,
    num_predicates: int = 12,
    with_images: bool = True,
    side: int = 240,
    knobs: RelationKnobs | None = None,
) -> Path:
    """Write `objects.json`, `relationships.json`, `image_data.json` and `VG_100K/`; return `root`.

    As in the originals names vary in case and spaces, objects have been merged under several numbers, some
    relationships name objects that `objects.json` doesn't list, rare names abound, and some boxes reach outside their
    images or hold nothing. A complete world of the same parameters is kept as it is; the same parameters give the same
    bytes. Without images the other files are unchanged. `truth.json` tells all that is true, see `relation_truth`.

    Args:
        root: The world's folder.
        seed: Seed of everything in it.
        num_images: Images, of no split.
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
    some = max(num_images // 3, 2)
    sizes = (num_images - some, some, num_objects, num_predicates, side)
    check_sizes(seed, *sizes)
    manifest = vg_manifest("vg_proposals", VERSION, seed, with_images, sizes, knobs)

    def write(folder: Path) -> None:
        scenes = vg_scenes(seed, *sizes, knobs)
        folder.mkdir(parents=True)
        write_image_data(folder / "image_data.json", scenes)
        names = world_names(num_objects, num_predicates)
        objects, relationships = _annotations(scenes, names)
        (folder / "objects.json").write_text(json.dumps(objects))
        (folder / "relationships.json").write_text(json.dumps(relationships))
        write_truth(folder, scenes, image_names(scenes), names)
        if with_images:
            save_scenes(scenes, [folder / "VG_100K" / name for name in image_names(scenes)], knobs.clutter)

    return write_world(root, manifest, write)


def _annotations(
    scenes: Sequence[Scene], names: tuple[list[str], list[str]]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    objects, relationships = [], []
    for i, (number, scene) in enumerate(zip(image_ids(scenes), scenes, strict=True)):
        nodes = {node: 1000 * number + k for k, node in enumerate(scene_nodes(scene))}
        listed = []
        for k, ((box, label), object_id) in enumerate(nodes.items()):
            name = names[0][label]
            entry = _entry(box, object_id) | {"names": [f"{name.title()} " if k % 3 == 1 else name]}
            entry |= {"synsets": [], "merged_object_ids": [object_id + 500] if k == 0 else []}
            if i % 10 == 3 and k == 0:
                entry["w"] += scene.size_wh[0]  # past the right border
            if i % 10 != 4 or k != 0:  # otherwise only relationships.json knows it
                listed.append(entry)
        if nodes:
            rare = {"names": [f"thing {number}"], "object_id": 1000 * number + 900, "synsets": []}
            listed.append(_entry((1, 1, 9, 9), 0) | rare | {"merged_object_ids": []})
            nothing = {"names": [names[0][0]], "object_id": 1000 * number + 901, "synsets": [], "w": 0}
            listed.append(_entry((5, 5, 9, 9), 0) | nothing | {"merged_object_ids": []})
        objects.append({"image_id": number, "objects": listed})
        rows = []
        for k, (subject, predicate, other) in enumerate(scene.relations):
            ends = {}
            for end, node in (("subject", subject), ("object", other)):
                first = node == next(iter(nodes))
                object_id = nodes[node] + (500 if first and k % 2 and i % 10 != 4 else 0)  # the merged number
                name = names[0][node[1]]
                ends[end] = _entry(node[0], object_id) | ({"name": name} if k % 2 else {"names": [name]})
            rows.append(ends | {"predicate": names[1][predicate].upper(), "relationship_id": k, "synsets": []})
        relationships.append({"image_id": number, "relationships": rows})
    return objects, relationships


def _entry(box: Box, object_id: int) -> dict[str, Any]:
    x1, y1, x2, y2 = box  # pixels from 1, the last column and row included
    return {"x": x1 - 1, "y": y1 - 1, "w": x2 - x1 + 1, "h": y2 - y1 + 1, "object_id": object_id}
