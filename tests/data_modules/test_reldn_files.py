from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_modules.errors import DataError
from data_modules.reldn_files import (
    read_detection_annotations,
    read_reldn_relations,
    read_vrd_file_names,
    with_all_boxes,
)

DETECTIONS: dict[str, Any] = {
    "images": [
        {"id": 9, "file_name": "b.jpg", "width": 40, "height": 30},
        {"id": 2, "file_name": "a.jpg", "width": 100, "height": 80},
        {"id": 5, "file_name": "c.jpg", "width": 10, "height": 10},
    ],
    "annotations": [
        {"image_id": 2, "category_id": 30, "bbox": [10, 20, 5, 7]},
        {"image_id": 9, "category_id": 4, "bbox": [0, 0, 40, 30]},
        {"image_id": 2, "category_id": 4, "bbox": [50, 0, 20, 10.5]},
        {"image_id": 9, "category_id": 4, "bbox": [3, 3, 1, 30]},  # one column: RelDN's code leaves it out
        {"image_id": 9, "category_id": 4, "bbox": [3, 3, 4, 0]},
    ],
    "categories": [{"id": 30, "name": "zebra"}, {"id": 4, "name": "cup"}],
}
RELATIONS: dict[str, Any] = {
    "b.jpg": [],
    "a.jpg": [
        {
            "predicate": 8,
            "subject": {"category": 1, "bbox": [20, 26, 10, 14]},  # ymin, ymax, xmin, xmax
            "object": {"category": 0, "bbox": [1, 2, 3, 4.5]},
        }
    ],
}
SIZES = {"a.jpg": (100, 80), "b.jpg": (40, 30)}


def write_json(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_the_two_files_order_box_ends_differently(tmp_path: Path) -> None:
    annotations = read_detection_annotations(write_json(tmp_path / "d.json", DETECTIONS))
    assert annotations.names == ["cup", "zebra"]  # by the ids 4 and 30
    assert annotations.labels_of == {4: 0, 30: 1}
    assert list(annotations.image_names.items()) == [(2, "a.jpg"), (5, "c.jpg"), (9, "b.jpg")]
    assert list(annotations.sizes_wh.items()) == [("a.jpg", (100, 80)), ("c.jpg", (10, 10)), ("b.jpg", (40, 30))]
    assert annotations.boxes_xyxy["a.jpg"].tolist() == [[10, 20, 14, 26], [50, 0, 69, 9.5]]  # x, y, width, height
    assert annotations.labels["a.jpg"].tolist() == [1, 0]
    assert annotations.boxes_xyxy["b.jpg"].tolist() == [[0, 0, 39, 29]]
    assert annotations.boxes_xyxy["c.jpg"].shape == (0, 4)
    assert annotations.flat_boxes == 2
    graphs = read_reldn_relations(write_json(tmp_path / "r.json", RELATIONS), annotations.sizes_wh, 2, 9)
    assert [g.image for g in graphs] == ["a.jpg", "b.jpg"]  # in the order of the image ids
    assert graphs[0].size_wh == (100, 80)
    assert graphs[0].boxes_xyxy.tolist() == [[10, 20, 14, 26], [3, 1, 4.5, 2]]
    assert graphs[0].triplets.tolist() == [[1, 8, 0]]
    whole = with_all_boxes(graphs[0], annotations)
    assert whole.boxes_xyxy.tolist() == [[10, 20, 14, 26], [3, 1, 4.5, 2], [50, 0, 69, 9.5]]  # the first is known
    assert whole.labels.tolist() == [1, 0, 0]
    assert whole.relations.tolist() == graphs[0].relations.tolist()
    assert with_all_boxes(graphs[1], annotations).boxes_xyxy.tolist() == [[0, 0, 39, 29]]


def test_a_box_under_another_category_is_another_node(tmp_path: Path) -> None:
    content = copy.deepcopy(DETECTIONS)
    content["annotations"][0]["category_id"] = 4  # the box of the relation's zebra
    annotations = read_detection_annotations(write_json(tmp_path / "d.json", content))
    (graph, _) = read_reldn_relations(write_json(tmp_path / "r.json", RELATIONS), annotations.sizes_wh, 2, 9)
    assert with_all_boxes(graph, annotations).labels.tolist() == [1, 0, 0, 0]


def test_the_two_files_may_round_differently(tmp_path: Path) -> None:
    for offset, nodes in ((1, 3), (1.5, 4)):
        content = copy.deepcopy(DETECTIONS)
        content["annotations"][0]["bbox"][1] += offset
        annotations = read_detection_annotations(write_json(tmp_path / "d.json", content))
        graph, _ = read_reldn_relations(write_json(tmp_path / "r.json", RELATIONS), annotations.sizes_wh, 2, 9)
        assert len(with_all_boxes(graph, annotations).labels) == nodes


def test_files_without_annotations(tmp_path: Path) -> None:
    path = write_json(tmp_path / "d.json", DETECTIONS | {"annotations": []})
    assert {name: len(boxes) for name, boxes in read_detection_annotations(path).boxes_xyxy.items()} == dict.fromkeys(
        ("a.jpg", "c.jpg", "b.jpg"), 0
    )
    path = write_json(path, DETECTIONS | {"annotations": [], "images": []})
    assert read_detection_annotations(path).sizes_wh == {}
    assert read_reldn_relations(write_json(path, {}), {}, 2, 9) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.update(predicate=9), r", predicate: expected 0 to 8, found 9"),
        (lambda r: r.update(predicate="on"), r", predicate: expected a whole number, found 'on'"),
        (lambda r: r.update(predicate=10**30), r", predicate: expected a whole number, found 1000"),
        (lambda r: r.pop("predicate"), r", predicate: expected a whole number, found None"),
        (lambda r: r["subject"].update(category=2), r", subject\.category: expected 0 to 1, found 2"),
        (lambda r: r["object"].update(category=-1), r", object\.category: expected 0 to 1, found -1"),
        (lambda r: r["object"].update(category=True), r", object\.category: expected a whole number, found True"),
        (lambda r: r.pop("subject"), r", subject\.bbox: expected \[ymin, ymax, xmin, xmax\], found None"),
        (lambda r: r["object"].update(bbox=[1, 2, 3]), r", object\.bbox: expected \[ymin.* found \[1, 2, 3\]"),
        (
            lambda r: r["object"].update(bbox=[1, 2, 3, "4"]),
            r", object\.bbox: expected \[ymin.* found \[1, 2, 3, '4'\]",
        ),
        (lambda r: r["object"].update(bbox=[5, 2, 3, 4]), r", object\.bbox: expected 0 <= ymin <= ymax .*\[5\.0, 2"),
        (lambda r: r["subject"].update(bbox=[1, 2, -3, 4]), r", subject\.bbox: expected 0 <= ymin <= ymax"),
        (lambda r: r["subject"].update(bbox=[1, float("inf"), 3, 4]), r", subject\.bbox: expected 0 <= ymin"),
        (lambda r: r["subject"].update(bbox=[1, float("nan"), 3, 4]), r", subject\.bbox: expected 0 <= ymin"),
        (lambda r: r["subject"].update(bbox=[1, 10**30, 3, 4]), r", subject\.bbox: expected \[ymin"),
        (lambda r: r["subject"].update(bbox=[1, 9, 101, 130]), r", subject\.bbox: .* within the image of \[100, 80\]"),
        (lambda r: r["subject"].update(bbox=[81, 90, 1, 5]), r", subject\.bbox: .* within the image of \[100, 80\]"),
    ],
)
def test_a_bad_relation_is_named(tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str) -> None:
    content = copy.deepcopy(RELATIONS)
    change(content["a.jpg"][0])
    with pytest.raises(DataError, match=rf"r\.json: image 'a\.jpg', relation 0{message}.*RelDN"):
        read_reldn_relations(write_json(tmp_path / "r.json", content), SIZES, 2, 9)


def test_boxes_may_reach_outside_as_those_of_visual_genome_do(tmp_path: Path) -> None:
    content = copy.deepcopy(RELATIONS)
    content["a.jpg"][0]["subject"]["bbox"] = [20, 90, 10, 14]
    graph, _ = read_reldn_relations(write_json(tmp_path / "r.json", content), SIZES, 2, 9)
    assert graph.boxes_xyxy[0].tolist() == [10, 20, 14, 90]


def test_relations_that_do_not_fit(tmp_path: Path) -> None:
    path = write_json(tmp_path / "r.json", RELATIONS)
    with pytest.raises(DataError, match=r"r\.json: image 'b\.jpg': the detections JSON doesn't list it"):
        read_reldn_relations(path, {"a.jpg": (9, 9)}, 2, 9)
    for wrong, message in (([], "expected a dictionary"), ({"a.jpg": {}}, "image 'a.jpg': expected a list of")):
        with pytest.raises(DataError, match=message):
            read_reldn_relations(write_json(path, wrong), SIZES, 2, 9)
    path.write_text('{"a.jpg": [')
    with pytest.raises(DataError, match=r"r\.json: not valid JSON .*RelDN"):
        read_reldn_relations(path, SIZES, 2, 9)
    with pytest.raises(DataError, match=r"gone\.json: no such file; .*RelDN"):
        read_reldn_relations(tmp_path / "gone.json", SIZES, 2, 9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("annotations"), r"annotations: expected a list of objects"),
        (lambda d: d["images"].append(3), r"images: expected a list of objects"),
        (lambda d: d.update(categories={}), r"categories: expected a list of objects"),
        (lambda d: d.update(categories=[]), r"categories: expected at least one"),
        (lambda d: d["categories"][1].update(id=30), r"categories\[1\]\.id: 30 occurs twice"),
        (lambda d: d["categories"][1].update(name="zebra"), r"categories\[1\]\.name: 'zebra' occurs twice"),
        (lambda d: d["categories"][0].pop("name"), r"categories\[0\]\.name: expected a text, found None"),
        (lambda d: d["images"][1].pop("width"), r"images\[1\]\.width: expected a whole number, found None"),
        (lambda d: d["images"][1].update(height=0), r"images\[1\]\.height: expected at least 1, found 0"),
        (lambda d: d["images"][2].update(id=9), r"images\[2\]\.id: 9 occurs twice"),
        (lambda d: d["images"][2].update(id=float("inf")), r"images\[2\]\.id: expected a whole number, found inf"),
        (lambda d: d["images"][2].update(file_name=7), r"images\[2\]\.file_name: expected a text, found 7"),
        (lambda d: d["annotations"][1].update(bbox=[1, 2]), r"annotations\[1\]\.bbox: .* found \[1, 2\]"),
        (lambda d: d["annotations"][1].pop("bbox"), r"annotations\[1\]\.bbox: .* found None"),
        (
            lambda d: d["annotations"][1].update(bbox=[1, 2, 3, "4"]),
            r"annotations\[1\]\.bbox: .* found \[1, 2, 3, '4'\]",
        ),
        (lambda d: d["annotations"][2].update(bbox=[1, 2, -3, 4]), r"annotations\[2\]\.bbox: .* neither negative"),
        (lambda d: d["annotations"][2].update(bbox=[1, float("nan"), 3, 4]), r"annotations\[2\]\.bbox: .* nan"),
        (lambda d: d["annotations"][1].update(image_id=3), r"annotations\[1\]\.image_id: 3 is unknown"),
        (lambda d: d["annotations"][1].update(image_id="9"), r"annotations\[1\]\.image_id: expected a whole number"),
        (lambda d: d["annotations"][2].update(category_id=5), r"annotations\[2\]\.category_id: 5 is unknown"),
    ],
)
def test_a_bad_detection_is_named(tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str) -> None:
    content = copy.deepcopy(DETECTIONS)
    change(content)
    with pytest.raises(DataError, match=rf"d\.json: {message}.*RelDN"):
        read_detection_annotations(write_json(tmp_path / "d.json", content))


def test_a_list_in_place_of_detections(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"d\.json: categories: expected a list of objects"):
        read_detection_annotations(write_json(tmp_path / "d.json", [DETECTIONS]))


def test_vrd_images_are_found_under_the_names_of_the_release(tmp_path: Path) -> None:
    path = write_json(tmp_path / "m.json", {"b_o.png": 2, "a_o.jpg": 1, "c_o.gif": 13})
    assert read_vrd_file_names(path) == {
        "000000000001.jpg": "a_o.jpg",
        "000000000002.jpg": "b_o.png",
        "000000000013.jpg": "c_o.jpg",
    }
    for wrong in ({"a": 1, "b": 1}, {"a": 0}, {"a": "1"}, {"a": True}, {}, [1]):
        with pytest.raises(DataError, match=r"m\.json: expected a different whole number above 0"):
            read_vrd_file_names(write_json(path, wrong))


def test_relations_agree_with_a_plain_loop(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    content: dict[str, list[dict[str, Any]]] = {}
    for image in range(20):
        rows: list[dict[str, Any]] = []
        for _ in range(int(rng.integers(0, 9))):
            low, high = rng.integers(0, 3, (2, 2)), rng.integers(3, 6, (2, 2))
            ends = [
                {"category": int(rng.integers(3)), "bbox": [int(v) for v in (lo[1], hi[1], lo[0], hi[0])]}
                for lo, hi in zip(low, high, strict=True)
            ]
            rows.append({"predicate": int(rng.integers(4)), "subject": ends[0], "object": ends[1]})
        content[f"{image}.jpg"] = rows
    sizes = {f"{image}.jpg": (50, 50) for image in range(25)}
    graphs = read_reldn_relations(write_json(tmp_path / "r.json", content), sizes, 3, 4)
    assert [g.image for g in graphs] == list(content)
    for graph, rows in zip(graphs, content.values(), strict=True):
        nodes: list[tuple[Any, ...]] = []
        relations = []
        for row in rows:
            places = []
            for key in ("subject", "object"):
                end = row[key]
                y1, y2, x1, x2 = end["bbox"]
                node = (x1, y1, x2, y2, end["category"])
                if node not in nodes:
                    nodes.append(node)
                places.append(nodes.index(node))
            relations.append([places[0], row["predicate"], places[1]])
        assert [(*b, c) for b, c in zip(graph.boxes_xyxy.tolist(), graph.labels.tolist(), strict=True)] == nodes
        assert graph.relations.tolist() == relations
