from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_modules.errors import DataError
from data_modules.synthetic.openimages import COLUMNS, write_openimages_world

SMALL = {"train_images": 24, "test_images": 12}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_openimages_world(tmp_path_factory.mktemp("oi") / "w", **SMALL)


def checksums(root: Path) -> dict[str, str]:
    files = (p for p in sorted(root.rglob("*")) if p.is_file())
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_layout(world: Path) -> None:
    kinds = ("classes-vrd", "attributes-description", "relationships-description")
    expected = {f"challenge-{year}-{kind}.csv" for year in (2018, 2019) for kind in kinds}
    expected |= {"challenge-2018-train-vrd.csv", "challenge-2018-image-ids-valset-vrd.csv"}
    expected |= {"challenge-2019-train-vrd.csv", "challenge-2019-validation-vrd.csv"}
    assert {p.name for p in world.iterdir()} == expected | {"rel", "train", "validation", "truth.json", "manifest.json"}
    reldn = {f"{kind}_{side}.json" for side in ("train", "val") for kind in ("detections", "rel_only_annotations")}
    reldn |= {f"rel_only_annotations_{side}_mini.json" for side in ("train", "val")}
    assert {p.name for p in (world / "rel").iterdir()} == reldn | {"rel_9_predicates.json"}
    header = (world / "challenge-2019-train-vrd.csv").read_text().splitlines()[0]
    boxes = "XMin1,XMax1,YMin1,YMax1,XMin2,XMax2,YMin2,YMax2"
    assert header == f"ImageID,LabelName1,LabelName2,{boxes},RelationshipLabel"
    older = (world / "challenge-2018-train-vrd.csv").read_text().splitlines()[0]
    assert older == f"ImageID,LabelName1,LabelName2,{boxes},RelationLabel"
    assert len(list((world / "train").iterdir())) == 24
    assert len(list((world / "validation").iterdir())) == 12
    assert len(json.loads((world / "rel" / "rel_9_predicates.json").read_text())) == 9
    images = json.loads((world / "rel" / "detections_val.json").read_text())["images"]
    assert len(images) == 12 > len(json.loads((world / "rel" / "rel_only_annotations_val.json").read_text()))


def test_the_2018_files_hold_both_splits(world: Path) -> None:
    older = rows(world / "challenge-2018-train-vrd.csv")
    newer = [r for side in ("train", "validation") for r in rows(world / f"challenge-2019-{side}-vrd.csv")]
    assert [list(r.values()) for r in older] == [list(r.values()) for r in newer]
    listed = {r["ImageID"] for r in rows(world / "challenge-2018-image-ids-valset-vrd.csv")}
    assert listed >= {r["ImageID"] for r in rows(world / "challenge-2019-validation-vrd.csv")}
    assert not listed & {r["ImageID"] for r in rows(world / "challenge-2019-train-vrd.csv")}


def test_is_rows_have_an_attribute_and_identical_boxes(world: Path) -> None:
    marked = [r for r in rows(world / "challenge-2019-train-vrd.csv") if r["RelationshipLabel"] == "is"]
    attributes = [r[0] for r in csv.reader((world / "challenge-2019-attributes-description.csv").open())]
    classes = [r[0] for r in csv.reader((world / "challenge-2019-classes-vrd.csv").open())]
    assert len(marked) > 20
    for row in marked:
        assert [row[f"{c}1"] for c in ("XMin", "XMax", "YMin", "YMax")] == [
            row[f"{c}2"] for c in ("XMin", "XMax", "YMin", "YMax")
        ]
        assert attributes.index(row["LabelName2"]) == classes.index(row["LabelName1"]) % 5


def test_objects_are_drawn_where_the_rows_say(world: Path) -> None:
    found = []
    for row in rows(world / "challenge-2019-validation-vrd.csv"):
        pixels = np.asarray(Image.open(world / "validation" / f"{row['ImageID']}.jpg")).astype(int)
        height, width = pixels.shape[:2]
        vivid = pixels.max(axis=2) - pixels.min(axis=2) > 60  # the ground is grey
        x1, x2, y1, y2 = (
            round(float(row[c + "1"]) * s) for c, s in zip(COLUMNS, (width, width, height, height), strict=True)
        )
        inside = vivid[y1:y2, x1:x2]
        edges = (inside[:5], inside[-5:], inside[:, :5], inside[:, -5:])  # a rim is dark
        found.append(inside.mean() > 0.2 and all(edge.any() for edge in edges))
    assert len(found) > 50
    assert np.mean(found) > 0.95


def test_the_same_parameters_give_the_same_bytes(world: Path, tmp_path: Path) -> None:
    assert checksums(write_openimages_world(tmp_path / "again", **SMALL)) == checksums(world)
    without = checksums(write_openimages_world(tmp_path / "without", **SMALL, with_images=False))
    expected = {k: v for k, v in checksums(world).items() if k.startswith(("challenge", "rel", "truth"))}
    assert {k: v for k, v in without.items() if k != "manifest.json"} == expected
    other = checksums(write_openimages_world(tmp_path / "other", seed=1, **SMALL, with_images=False))
    assert other["challenge-2019-train-vrd.csv"] != expected["challenge-2019-train-vrd.csv"]


def test_a_complete_world_is_kept_and_anything_else_is_not_touched(tmp_path: Path) -> None:
    root = write_openimages_world(tmp_path / "w", **SMALL, with_images=False)
    path = root / "challenge-2019-train-vrd.csv"
    before = path.stat().st_mtime_ns
    assert write_openimages_world(root, **SMALL, with_images=False) == root
    assert path.stat().st_mtime_ns == before
    with pytest.raises(DataError, match="holds something else than the world"):
        write_openimages_world(root, **SMALL)
    with pytest.raises(ValueError, match="5 to 255 objects"):
        write_openimages_world(tmp_path / "x", num_objects=4)
    assert [p.name for p in tmp_path.iterdir()] == ["w"]
