from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_modules.coco_files import read_instances
from data_modules.errors import DataError

SMALL = {
    "images": [
        {"id": 9, "width": 100, "height": 80, "file_name": "b.jpg"},
        {"id": 4, "width": 50, "height": 50, "file_name": "a.jpg"},
    ],
    "categories": [{"id": 90, "name": "toothbrush"}, {"id": 1, "name": "person"}, {"id": 13, "name": "stop sign"}],
    "annotations": [
        {"id": 1, "image_id": 9, "category_id": 13, "bbox": [10.5, 20, 30, 40.25], "iscrowd": 0, "area": 700.5},
        {"id": 2, "image_id": 9, "category_id": 90, "bbox": [0, 0, 100.6, 80], "iscrowd": 1, "area": 8000},
    ],
}


def write(path: Path, raw: Any) -> Path:
    path.write_text(json.dumps(raw))
    return path


def test_boxes_become_edges(tmp_path: Path) -> None:
    instances = read_instances(write(tmp_path / "a.json", SMALL))
    assert instances.names == ("person", "stop sign", "toothbrush")
    assert list(instances.examples) == [9, 4]
    example = instances.examples[9]
    assert example.boxes_xyxy.tolist() == [[10.5, 20, 40.5, 60.25], [0, 0, 100, 80]]  # cut off where the image ends
    assert (example.labels.tolist(), example.crowd.tolist(), example.areas.tolist()) == (
        [1, 2],
        [False, True],
        [700.5, 8000],
    )
    assert instances.examples[4].boxes_xyxy.shape == (0, 4)
    assert instances.flat_boxes == 0


def broken(change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    raw = copy.deepcopy(SMALL)
    change(raw)
    return raw


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["annotations"][1].update(category_id=2), "annotation 2, category_id: there is no category 2"),
        (lambda c: c["annotations"][1].update(image_id=5), "annotation 2, image_id: there is no image 5"),
        (lambda c: c["annotations"][1].pop("image_id"), "annotation 2, image_id: expected int, found None"),
        (
            lambda c: c["annotations"][0].pop("bbox"),
            r"annotation 1, bbox: expected \[x, y, width, height\], found None",
        ),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 3]), "annotation 1, bbox: expected"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 3, "4"]), "annotation 1, bbox: expected"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 3, float("nan")]), "annotation 1, bbox: expected"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 0, 4]), r"annotation 1, bbox: .*\[1, 2, 0, 4\] has no area"),
        (lambda c: c["annotations"][0].update(bbox=[9, 2, -3, 4]), r"annotation 1, bbox: .*has no area"),
        (
            lambda c: c["annotations"][0].update(bbox=[90, 2, 20, 4]),
            r"annotation 1, bbox: .*outside image 9 of \(100, 80\)",
        ),
        (lambda c: c["annotations"][0].update(bbox=[-3, 2, 20, 4]), r"annotation 1, bbox: .*outside image 9"),
        (lambda c: c["annotations"][0].update(iscrowd=2), "annotation 1, iscrowd, area: .*found 2 and 700.5"),
        (lambda c: c["annotations"][0].update(area="big"), "annotation 1, iscrowd, area: .*'big'"),
        (lambda c: c["annotations"][1].update(id=1), "annotations: 1 ids occur twice, 1 first"),
        (lambda c: c["images"][1].update(id=9), "images: 1 ids occur twice, 9 first"),
        (lambda c: c["categories"][1].update(id=90), "categories: 1 ids occur twice, 90 first"),
        (lambda c: c["images"][1].pop("width"), "image 4, width: expected int, found None"),
        (lambda c: c["images"][1].update(file_name=7), "image 4, file_name: expected str, found 7"),
        (lambda c: c["categories"][1].pop("name"), "category 1, name: expected str"),
        (lambda c: c.pop("annotations"), "annotations: expected a list of entries with an id each"),
        (lambda c: c["images"].append({}), "images: expected a list of entries with an id each"),
    ],
)
def test_a_bad_entry_is_named_with_its_file_and_field(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    with pytest.raises(DataError, match=rf"bad\.json: {message}.*extract annotations_trainval2014\.zip"):
        read_instances(write(tmp_path / "bad.json", broken(change)))


def test_boxes_without_area_are_left_out_where_the_release_has_them_or_the_user_says_so(tmp_path: Path) -> None:
    flat = write(tmp_path / "flat.json", broken(lambda c: c["annotations"][0].update(bbox=[1, 2, 3, 0.0])))
    with pytest.raises(DataError, match=r"has no area \(drop_flat_boxes leaves"):
        read_instances(flat)
    instances = read_instances(flat, drop_flat_boxes=True)
    assert instances.flat_boxes == 1
    assert instances.examples[9].labels.tolist() == [2]
    known = json.loads(flat.read_text())
    known["images"][0]["id"] = known["annotations"][0]["image_id"] = known["annotations"][1]["image_id"] = 200365
    assert read_instances(write(tmp_path / "known.json", known)).flat_boxes == 1
    known["annotations"][0]["bbox"] = [1, 2, 3, -1]
    with pytest.raises(DataError, match="has no area"):
        read_instances(write(tmp_path / "known.json", known), drop_flat_boxes=True)


def test_files_that_are_no_annotations(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", SMALL)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"a\.json: not valid JSON"):
        read_instances(path)
    path.write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(DataError, match=r"a\.json: not valid JSON"):
        read_instances(path)
    with pytest.raises(DataError, match="expected a dictionary"):
        read_instances(write(path, []))
    with pytest.raises(DataError, match=r"gone\.json: no such file; extract"):
        read_instances(tmp_path / "gone.json")
