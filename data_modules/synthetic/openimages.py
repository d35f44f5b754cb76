"""A small generated world in the layouts of Open Images VRD: the challenge's CSV files and RelDN's JSON files."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from data_modules.synthetic.manifest import write_world
from data_modules.synthetic.relation_classes import Box, RelationKnobs, world_names
from data_modules.synthetic.relation_drawing import save_scenes
from data_modules.synthetic.relation_scenes import Scene, check_sizes
from data_modules.synthetic.relation_truth import write_truth
from data_modules.synthetic.vg150 import scene_nodes, vg_manifest, vg_scenes

VERSION = 2  # part of the manifest: raise it when the same parameters give other files
ATTRIBUTES = ("(made of)Textile", "Wooden", "Plastic", "Transparent", "(made of)Leather")  # of the five kinds
COLUMNS = ("XMin", "XMax", "YMin", "YMax")


def write_openimages_world(
    root: str | Path,
    seed: int = 0,
    train_images: int = 300,
    test_images: int = 100,
    num_objects: int = 20,
    num_predicates: int = 9,
    with_images: bool = True,
    side: int = 240,
    knobs: RelationKnobs | None = None,
) -> Path:
    """Write the same scenes as CSV files of 2018 and 2019 and as RelDN's JSON files in `rel/`; return `root`.

    Some boxes have an attribute, which follows from their kind; some images have nothing but these "is" rows. The mini
    lists hold a third of the images. A complete world of the same parameters is kept as it is; the same parameters
    give the same bytes. Without images the other files are unchanged. `truth.json` tells all
    that is true, see `relation_truth`.

    Raises:
        DataError: `root` exists and holds anything else.
        ValueError: A number is outside what the file formats or the five kinds allow.
    """
    knobs = knobs or RelationKnobs()
    sizes = (train_images, test_images, num_objects, num_predicates, side)
    check_sizes(seed, *sizes)
    manifest = vg_manifest("openimages", VERSION, seed, with_images, sizes, knobs)

    def write(folder: Path) -> None:
        scenes = [replace(s, image=f"{s.drawing:016x}") for s in vg_scenes(seed, *sizes, knobs)]
        sides = {"train": scenes[:train_images], "validation": scenes[train_images:]}
        objects, predicates = world_names(num_objects, num_predicates)
        identifiers = [name.replace(" ", "_") for name in predicates]
        (folder / "rel").mkdir(parents=True)
        rows = {split: _rows(part, identifiers) for split, part in sides.items()}
        for year in ("2018", "2019"):
            prefix, last = f"challenge-{year}", "RelationLabel" if year == "2018" else "RelationshipLabel"
            header = ["ImageID", "LabelName1", "LabelName2", *(f"{c}{end}" for end in (1, 2) for c in COLUMNS), last]
            _write_csv(folder / f"{prefix}-classes-vrd.csv", ([mid(i), name] for i, name in enumerate(objects)))
            attributes = ([mid(900 + i), name] for i, name in enumerate(ATTRIBUTES))
            _write_csv(folder / f"{prefix}-attributes-description.csv", attributes)
            described = [*zip(identifiers, predicates, strict=True), ("is", "is")]
            _write_csv(folder / f"{prefix}-relationships-description.csv", described)
            if year == "2019":
                for split in sides:
                    _write_csv(folder / f"{prefix}-{split}-vrd.csv", [header, *rows[split]])
            else:  # one file, and a list of its images that are for validation
                _write_csv(folder / f"{prefix}-train-vrd.csv", [header, *rows["train"], *rows["validation"]])
                listed = [["ImageID"], *([s.image] for s in sides["validation"])]
                _write_csv(folder / f"{prefix}-image-ids-valset-vrd.csv", listed)
        for split, part in (("train", sides["train"]), ("val", sides["validation"])):
            _write_reldn(folder / "rel", split, part, objects)
        (folder / "rel" / "rel_9_predicates.json").write_text(json.dumps(identifiers))
        write_truth(folder, scenes, [f"{s.image}.jpg" for s in scenes], (objects, predicates))
        for split, part in sides.items() if with_images else ():
            save_scenes(part, [folder / split / f"{s.image}.jpg" for s in part], knobs.clutter)

    return write_world(root, manifest, write)


def mid(number: int) -> str:
    """Return a class's made-up MID."""
    return f"/m/0g{number:04x}"


def _rows(scenes: Sequence[Scene], predicates: Sequence[str]) -> list[list[str]]:
    rows = []
    for scene in scenes:
        rng = np.random.default_rng([scene.drawing, 1])  # an image's rows don't depend on how many there are
        width, height = scene.size_wh

        def fractions(box: Box, width: int = width, height: int = height) -> list[str]:
            x1, y1, x2, y2 = box  # pixels from 1; a box begins at its first column's left edge
            return [f"{v:.6f}" for v in ((x1 - 1) / width, x2 / width, (y1 - 1) / height, y2 / height)]

        for (s_box, s), predicate, (o_box, o) in scene.relations:
            boxes = [*fractions(s_box), *fractions(o_box)]
            rows.append([scene.image, mid(s), mid(o), *boxes, predicates[predicate]])
        for box, label in scene.objects:
            if rng.random() < 0.3:
                rows.append([scene.image, mid(label), mid(900 + label % 5), *fractions(box), *fractions(box), "is"])
    return rows


def _write_csv(path: Path, rows: Iterable[Sequence[str]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def _write_reldn(folder: Path, split: str, scenes: Sequence[Scene], objects: Sequence[str]) -> None:
    def end(box: Box, label: int) -> dict[str, Any]:
        x1, y1, x2, y2 = (v - 1 for v in box)  # pixels from 0
        return {"category": label, "bbox": [y1, y2, x1, x2]}

    relations: dict[str, Any] = {}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, scene in enumerate(scenes, start=1):
        name = f"{scene.image}.jpg"
        images.append({"id": number, "file_name": name, "width": scene.size_wh[0], "height": scene.size_wh[1]})
        for (x1, y1, x2, y2), label in scene_nodes(scene):
            w, h = x2 - x1 + 1, y2 - y1 + 1
            row = {"id": len(annotations) + 1, "image_id": number, "category_id": label, "iscrowd": 0, "area": w * h}
            annotations.append(row | {"bbox": [x1 - 1, y1 - 1, w, h]})
        if scene.relations:
            rows = [{"subject": end(*s), "predicate": p, "object": end(*o)} for s, p, o in scene.relations]
            relations[name] = rows
    categories = [{"id": label, "name": name} for label, name in enumerate(objects)]
    detections = {"images": images, "annotations": annotations, "categories": categories}
    (folder / f"detections_{split}.json").write_text(json.dumps(detections))
    (folder / f"rel_only_annotations_{split}.json").write_text(json.dumps(relations))
    mini = dict(list(relations.items())[::3])
    (folder / f"rel_only_annotations_{split}_mini.json").write_text(json.dumps(mini))
