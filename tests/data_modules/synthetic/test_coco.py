from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_modules.errors import DataError
from data_modules.synthetic.coco import coco_categories, write_coco_world


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read it, never write to it."""
    return write_coco_world(tmp_path_factory.mktemp("coco") / "world", 0, 6, 20, 20)


def content(root: Path, part: str) -> dict[str, Any]:
    return json.loads((root / "annotations" / f"instances_{part}2014.json").read_text())


def test_the_layout_is_the_release_s(world: Path) -> None:
    parts = {p.stem.removeprefix("instances_") for p in (world / "annotations").iterdir()}
    assert parts == {"train2014", "val2014", "minival2014", "valminusminival2014"}
    val = content(world, "val")
    for part, count in (("train", 6), ("valminusminival", 20), ("minival", 20)):
        raw = content(world, part)
        assert set(raw) == {"info", "images", "licenses", "annotations", "categories"}
        assert len(raw["images"]) == count
        for image in raw["images"]:
            folder = "train2014" if part == "train" else "val2014"
            assert image["file_name"] == f"COCO_{folder}_{image['id']:012d}.jpg"
            assert Image.open(world / folder / image["file_name"]).size == (image["width"], image["height"])
        assert {a["image_id"] for a in raw["annotations"]} <= {image["id"] for image in raw["images"]}
        if part != "train":
            assert all(entry in val[key] for key in ("images", "annotations") for entry in raw[key])
    assert len(val["images"]) == 40
    ids = [a["id"] for part in ("train", "val") for a in content(world, part)["annotations"]]
    assert len(set(ids)) == len(ids)
    assert len(list((world / "val2014").iterdir())) == 40


def test_categories_are_the_release_s() -> None:
    categories = coco_categories()
    ids = {c["name"]: c["id"] for c in categories}
    assert (len(ids), min(ids.values()), max(ids.values())) == (80, 1, 90)
    # As the release numbers them.
    known = {"person": 1, "fire hydrant": 11, "stop sign": 13, "bird": 16, "giraffe": 25, "backpack": 27, "bottle": 44}
    known |= {"dining table": 67, "toilet": 70, "tv": 72, "refrigerator": 82, "book": 84, "toothbrush": 90}
    assert {name: ids[name] for name in known} == known
    assert len({c["supercategory"] for c in categories}) == 12


def test_boxes_and_areas_are_those_of_the_masks(world: Path) -> None:
    masks = pytest.importorskip("pycocotools.mask")
    crowds = 0
    for part in ("valminusminival", "minival"):
        raw = content(world, part)
        sizes = {image["id"]: (image["height"], image["width"]) for image in raw["images"]}
        for a in raw["annotations"]:
            height, width = sizes[a["image_id"]]
            if a["iscrowd"]:
                crowds += 1
                assert a["segmentation"]["size"] == [height, width]
                assert sum(a["segmentation"]["counts"]) == height * width
                encoded = masks.frPyObjects(a["segmentation"], height, width)
            else:
                encoded = masks.merge(masks.frPyObjects(a["segmentation"], height, width))
            mask = masks.decode(encoded).astype(bool)
            x, y, w, h = map(int, a["bbox"])
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            slack = 0 if a["iscrowd"] else 1  # polygons are rounded to pixels
            assert abs(columns[0] - x) <= slack
            assert abs(rows[0] - y) <= slack
            assert abs(columns[-1] + 1 - x - w) <= slack
            assert abs(rows[-1] + 1 - y - h) <= slack
            if a["iscrowd"]:
                assert mask.sum() == a["area"]
            else:  # a polygon can't have the hole that an object in front leaves
                assert 0.97 * a["area"] <= mask.sum() <= 1.5 * a["area"]
    assert crowds == 4


def test_some_images_hold_nothing(world: Path) -> None:
    raw = content(world, "minival")
    filled = {a["image_id"] for a in raw["annotations"]}
    assert [i for i, image in enumerate(raw["images"]) if image["id"] not in filled] == [7]


def test_the_same_parameters_give_the_same_bytes_and_a_complete_world_is_kept(world: Path, tmp_path: Path) -> None:
    def checksums(root: Path) -> dict[str, str]:
        files = (p for p in sorted(root.rglob("*")) if p.is_file())
        return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}

    again = write_coco_world(tmp_path / "again", 0, 6, 20, 20)
    assert checksums(again) == checksums(world)
    assert checksums(write_coco_world(tmp_path / "other", 1, 6, 20, 20)) != checksums(world)
    assert write_coco_world(again, 0, 6, 20, 20) == again
    with pytest.raises(DataError, match="holds something else than the world"):
        write_coco_world(again, 0, 6, 20, 21)
    with pytest.raises(ValueError, match="a world has an image or more a part"):
        write_coco_world(tmp_path / "none", minival_images=0)
