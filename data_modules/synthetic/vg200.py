"""A small generated world in the layout of VG200: `vg1_2_meta.h5` of VTransE, `image_data.json` and images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np

from data_modules.synthetic.manifest import write_world
from data_modules.synthetic.relation_classes import RelationKnobs, world_names
from data_modules.synthetic.relation_drawing import save_scenes
from data_modules.synthetic.relation_scenes import Scene, check_sizes
from data_modules.synthetic.relation_truth import write_truth
from data_modules.synthetic.vg150 import image_ids, image_names, vg_manifest, vg_scenes, write_image_data

VERSION = 2  # part of the manifest: raise it when the same parameters give other files


def write_vg200_world(
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
    """Write the world under `root` and return that; a complete one of the same parameters is kept as it is.

    Images without relations are only in `meta/imid2path`, `image_data.json` and the image folders. Every second image
    lies in `VG_100K_2`. One box of the first training image reaches outside it, as a few of the public file do. The
    same parameters give the same bytes. Without images the other files are unchanged. `truth.json` tells all that is
    true, see `relation_truth`.

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
    manifest = vg_manifest("vg200", VERSION, seed, with_images, sizes, knobs)

    def write(folder: Path) -> None:
        scenes = vg_scenes(seed, *sizes, knobs)
        folder.mkdir(parents=True)
        write_image_data(folder / "image_data.json", scenes)
        paths = [f"VG_100K{'_2' if i % 2 else ''}/{name}" for i, name in enumerate(image_names(scenes))]
        names = world_names(num_objects, num_predicates)
        _write_h5(folder / "vg1_2_meta.h5", scenes, paths, train_images, names)
        write_truth(folder, scenes, image_names(scenes), names)
        if with_images:
            save_scenes(scenes, [folder / path for path in paths], knobs.clutter)

    return write_world(root, manifest, write)


def _write_h5(
    path: Path, scenes: Sequence[Scene], paths: Sequence[str], train_images: int, names: tuple[list[str], list[str]]
) -> None:
    objects, predicates = names
    with h5py.File(path, "w") as file:
        for kind, listed in (("cls", ["__background__", *objects]), ("pre", predicates)):
            for i, name in enumerate(listed):
                file[f"meta/{kind}/idx2name/{i}"] = np.bytes_(name)
                file[f"meta/{kind}/name2idx/{name}"] = i
        widened = False
        for i, (number, scene) in enumerate(zip(image_ids(scenes), scenes, strict=True)):
            file[f"meta/imid2path/{number}"] = np.bytes_(paths[i])
            if not scene.relations:
                continue
            group = file.create_group(f"gt/{'train' if i < train_images else 'test'}/{number}")
            ends = {"sub": [s[0] for s, _, _ in scene.relations], "obj": [o[0] for _, _, o in scene.relations]}
            for end, boxes in ends.items():
                # Pixels of the scenes count from 1; the last column's right edge is W.
                edges = np.array(boxes, dtype=np.int32) - [1, 1, 0, 0]
                if not widened:
                    edges[0, 2] = scene.size_wh[0] + 3
                    widened = True
                group[f"{end}_boxes"] = edges
            group["rlp_labels"] = np.array([(s[1] + 1, p, o[1] + 1) for s, p, o in scene.relations], dtype=np.int32)
