"""A small generated world in the layout of the VRD release, file by file."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import savemat

from data_modules.synthetic.manifest import write_world
from data_modules.synthetic.relation_classes import Node, RelationKnobs, world_names
from data_modules.synthetic.relation_drawing import save_scenes
from data_modules.synthetic.relation_scenes import Scene, check_sizes, detect, make_scenes
from data_modules.synthetic.relation_truth import write_truth
from data_modules.synthetic.shapes import world_manifest

VERSION = 2  # part of the manifest: raise it when the same parameters give other files
GIF_STEM = "4392556686_44d71ff5a0_o"  # the release's one GIF, which its annotations call .jpg


def write_vrd_world(
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

    The folder appears by one rename, so that no process ever sees half a world. The same parameters give the same
    bytes (of images with the same Pillow). Without images the other files are unchanged. `truth.json` tells all that
    is true, see `relation_truth`.

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
    check_sizes(seed, train_images, test_images, num_objects, num_predicates, side)
    knobs = knobs or RelationKnobs()
    sizes = {"num_objects": num_objects, "num_predicates": num_predicates, "side": side}
    counts = {"train_images": train_images, "test_images": test_images}
    manifest = world_manifest("synthetic/vrd", VERSION, seed, knobs, with_images=with_images, **counts, **sizes)

    def write(folder: Path) -> None:
        train, test = (
            make_scenes(np.random.default_rng([seed, stream]), count, num_objects, num_predicates, knobs, side)
            for stream, count in enumerate(counts.values())
        )
        train[0] = replace(train[0], image=train[0].image.replace(".jpg", ".png"))
        test[1] = replace(test[1], image=f"{GIF_STEM}.jpg")
        _write_annotations(folder / "json_dataset", train, test, num_objects, num_predicates)
        _write_lu2016(folder / "lu2016", np.random.default_rng([seed, 2]), train, test, num_objects, num_predicates)
        scenes = train + test
        write_truth(folder, scenes, [s.image for s in scenes], world_names(num_objects, num_predicates))
        for split, part in (("train", train), ("test", test)) if with_images else ():
            paths = [folder / "sg_dataset" / f"sg_{split}_images" / s.image for s in part]
            save_scenes(part, [p.with_suffix(".gif") if p.stem == GIF_STEM else p for p in paths], knobs.clutter)

    return write_world(root, manifest, write)


def _write_annotations(folder: Path, train: list[Scene], test: list[Scene], objects: int, predicates: int) -> None:
    def entry(node: Node) -> dict[str, Any]:
        (x1, y1, x2, y2), label = node
        return {"category": label, "bbox": [y1, y2, x1, x2]}

    folder.mkdir(parents=True)
    # The release's JSON lists the test images in another order than its MATLAB files.
    for split, scenes in (("train", train), ("test", test[::-1])):
        content = {
            scene.image: [{"predicate": p, "object": entry(o), "subject": entry(s)} for s, p, o in scene.relations]
            for scene in scenes
        }
        (folder / f"annotations_{split}.json").write_text(json.dumps(content))
    for name, names in zip(("objects", "predicates"), world_names(objects, predicates), strict=True):
        (folder / f"{name}.json").write_text(json.dumps(names))


def _write_lu2016(
    folder: Path, rng: np.random.Generator, train: list[Scene], test: list[Scene], objects: int, predicates: int
) -> None:
    folder.mkdir(parents=True)
    counts = Counter((s[1], p, o[1]) for scene in train for s, p, o in scene.relations)
    table = np.zeros((objects, objects, predicates))
    for (subject, predicate, other), count in counts.items():
        table[subject, other, predicate] = count
    # In one image of 25 nothing is found, from the third on.
    blank = [scene.without_objects() if i % 25 == 2 else scene for i, scene in enumerate(test)]
    seen = [detect(child, s, objects) for child, s in zip(rng.spawn(len(test)), blank, strict=True)]
    predicted = []
    for boxes, labels, confidences in seen:  # the commonest predicate of every ordered pair
        s, o = np.nonzero(~np.eye(len(labels), dtype=bool))
        best = table[labels[s], labels[o]].argmax(axis=1)
        scores = confidences[s] * confidences[o] * np.log1p(1 + table[labels[s], labels[o], best])
        order = np.argsort(-scores, kind="stable")
        triplets = np.stack([labels[s], best, labels[o]], axis=1)[order] + 1
        predicted.append((triplets, scores[order, None], boxes[s][order], boxes[o][order]))
    rows = [[(s[1] + 1, p + 1, o[1] + 1, *s[0], *o[0]) for s, p, o in scene.relations] for scene in test]
    truth = [np.array(r).reshape(-1, 11) for r in rows]
    names = world_names(objects, predicates)
    _save(folder / "objectListN.mat", objectListN=names[0])
    _save(folder / "relationListN.mat", relationListN=names[1])
    _save(folder / "imagePath.mat", imagePath=[scene.image for scene in test])
    _save(
        folder / "gt.mat",
        gt_tuple_label=[t[:, :3].astype(np.uint8) for t in truth],
        gt_sub_bboxes=[t[:, 3:7].astype(np.uint16) for t in truth],
        gt_obj_bboxes=[t[:, 7:].astype(np.uint16) for t in truth],
    )
    _save(
        folder / "objectDetRCNN.mat",
        detection_bboxes=[boxes for boxes, _, _ in seen],
        detection_labels=[(labels + 1)[:, None].astype(np.uint8) for _, labels, _ in seen],
        detection_confs=[confidences[:, None] for _, _, confidences in seen],
    )
    _save(
        folder / "relationship_det_result.mat",
        rlp_labels_ours=[t.astype(np.uint8) for t, _, _, _ in predicted],
        rlp_confs_ours=[c.astype(np.float32) for _, c, _, _ in predicted],
        sub_bboxes_ours=[b.astype(np.uint16) for _, _, b, _ in predicted],
        obj_bboxes_ours=[b.astype(np.uint16) for _, _, _, b in predicted],
    )


def _save(path: Path, **variables: list[Any]) -> None:
    """Save 1 x n cell arrays as MATLAB v5; an empty cell is 0 x 0 uint8, as in the release."""
    content = {}
    for name, cells in variables.items():
        array = np.empty((1, len(cells)), dtype=object)
        for i, cell in enumerate(cells):
            array[0, i] = cell if len(cell) else np.zeros((0, 0), dtype=np.uint8)
        content[name] = array
    savemat(path, content, do_compression=True)
    # The first 116 bytes are free text, into which scipy writes the time: the same world must give the same bytes.
    with path.open("r+b") as file:
        file.write(b"MATLAB 5.0 MAT-file".ljust(116))
