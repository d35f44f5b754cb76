from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from data_modules.errors import DataError
from data_modules.scene_graph import SceneGraph
from data_modules.vrd_files import (
    estimate_size,
    find_image,
    image_size,
    open_image,
    read_annotations,
    read_image_order,
    read_lu_detections,
    read_lu_ground_truth,
    read_lu_predictions,
    read_names,
    with_image_size,
)


def relation(predicate: int, subject: tuple[int, list[int]], obj: tuple[int, list[int]]) -> dict[str, Any]:
    (s, s_box), (o, o_box) = subject, obj
    return {
        "predicate": predicate,
        "subject": {"category": s, "bbox": s_box},
        "object": {"category": o, "bbox": o_box},
    }


A, B = [10, 40, 5, 25], [20, 60, 30, 90]  # ymin, ymax, xmin, xmax
CONTENT = {
    "2_b.jpg": [
        relation(1, (3, B), (0, A)),
        relation(0, (0, A), (3, B)),
        relation(1, (3, B), (0, A)),  # an exact duplicate
        relation(2, (0, A), (2, A)),  # one box under two categories, related to itself
        relation(2, (0, A), (0, A)),  # a node related to itself
    ],
    "1_o.jpg": [],
}


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def same(a: SceneGraph, b: SceneGraph) -> bool:
    return a.image == b.image and all(
        np.array_equal(getattr(a, name), getattr(b, name)) for name in ("boxes_xyxy", "labels", "relations")
    )


def test_annotations_become_nodes_in_order_of_first_appearance(tmp_path: Path) -> None:
    graphs = read_annotations(write(tmp_path / "a.json", CONTENT), 4, 3)
    assert list(graphs) == ["2_b.jpg", "1_o.jpg"]  # the order of the file
    graph = graphs["2_b.jpg"]
    assert graph.boxes_xyxy.tolist() == [[30, 20, 90, 60], [5, 10, 25, 40], [5, 10, 25, 40]]
    assert graph.labels.tolist() == [3, 0, 2]
    assert graph.relations.tolist() == [[0, 1, 1], [1, 0, 0], [0, 1, 1], [1, 2, 2], [1, 2, 1]]
    assert graph.triplets.tolist() == [[3, 1, 0], [0, 0, 3], [3, 1, 0], [0, 2, 2], [0, 2, 0]]
    assert graph.size_wh is None
    empty = graphs["1_o.jpg"]
    assert (empty.boxes_xyxy.shape, empty.labels.shape, empty.relations.shape) == ((0, 4), (0,), (0, 3))
    for g in graphs.values():
        assert (g.boxes_xyxy.dtype, g.labels.dtype, g.relations.dtype) == (np.float32, np.int64, np.int64)


def broken(change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    content = copy.deepcopy(CONTENT)
    change(content["2_b.jpg"][1])
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (broken(lambda r: r.update(predicate=3)), r"predicate: expected a label from 0 to 2, found 3"),
        (broken(lambda r: r.update(predicate=-1)), r"predicate: .* found -1"),
        (broken(lambda r: r.update(predicate=1.0)), r"predicate: .* found 1\.0"),
        (broken(lambda r: r.update(predicate=True)), r"predicate: .* found True"),
        (broken(lambda r: r.pop("predicate")), r"predicate: .* found None"),
        (broken(lambda r: r.pop("object")), r"object\.category: .* found None"),
        (broken(lambda r: r["subject"].update(category=4)), r"subject\.category: .* from 0 to 3, found 4"),
        (broken(lambda r: r["object"].pop("bbox")), r"object\.bbox: expected \[ymin, ymax, xmin, xmax\], found None"),
        (broken(lambda r: r["object"].update(bbox=[1, 2, 3])), r"object\.bbox: .* found \[1, 2, 3\]"),
        (broken(lambda r: r["object"].update(bbox=["1", 2, 3, 4])), r"object\.bbox: "),
        (broken(lambda r: r["object"].update(bbox=[5, 4, 1, 2])), r"object\.bbox: .*ymin <= ymax.* = \[5, 4, 1, 2\]"),
        (broken(lambda r: r["subject"].update(bbox=[1, 4, 3, 2])), r"subject\.bbox: .*xmin <= xmax"),
        (broken(lambda r: r["subject"].update(bbox=[-1, 4, 1, 2])), r"subject\.bbox: expected 0 <= ymin"),
        (broken(lambda r: r["subject"].update(bbox=[1, float("nan"), 1, 2])), r"subject\.bbox: "),
        (broken(lambda r: r["subject"].update(bbox=[1, float("inf"), 1, 2])), r"subject\.bbox: "),
    ],
)
def test_a_bad_relation_is_named_with_its_file_image_number_and_field(
    tmp_path: Path, content: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=rf"bad\.json: image '2_b\.jpg', relation 1, {message}.*json_dataset\.zip"):
        read_annotations(write(tmp_path / "bad.json", content), 4, 3)


def test_files_that_are_no_annotations(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.json", CONTENT)
    cut = tmp_path / "cut.json"
    cut.write_text(whole.read_text()[:-40])
    with pytest.raises(DataError, match=r"cut\.json: not valid JSON.*checksum"):
        read_annotations(cut, 4, 3)
    cut.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"cut\.json: not valid JSON"):
        read_annotations(cut, 4, 3)
    with pytest.raises(DataError, match=r"gone\.json: no such file; re-extract json_dataset\.zip"):
        read_annotations(tmp_path / "gone.json", 4, 3)
    with pytest.raises(DataError, match="expected a dictionary"):
        read_annotations(write(tmp_path / "list.json", [CONTENT]), 4, 3)
    with pytest.raises(DataError, match=r"image 'x\.jpg': expected a list"):
        read_annotations(write(tmp_path / "list.json", {"x.jpg": {}}), 4, 3)


def test_names(tmp_path: Path) -> None:
    assert read_names(write(tmp_path / "names.json", ["b", "a"])) == ["b", "a"]
    for wrong in ({"a": 0}, [], ["a", 1], ["a", ""]):
        with pytest.raises(DataError, match=r"names\.json: expected a list of names"):
            read_names(write(tmp_path / "names.json", wrong))
    with pytest.raises(DataError, match="1 names occur twice"):
        read_names(write(tmp_path / "names.json", ["a", "b", "a"]))


def test_boxes_end_within_the_image_whose_last_column_they_may_hold(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", CONTENT)
    graph = read_annotations(path, 4, 3)["2_b.jpg"]
    assert with_image_size(graph, (90, 60), path).size_wh == (90, 60)
    for size in ((89, 60), (90, 59)):
        with pytest.raises(DataError, match=r"a\.json: image '2_b\.jpg', relation 0, subject: box .*30.*outside"):
            with_image_size(graph, size, path)


def cells(*arrays: Any) -> np.ndarray:
    result = np.empty((1, len(arrays)), dtype=object)
    for i, array in enumerate(arrays):
        result[0, i] = array
    return result


NOTHING = np.zeros((0, 0), dtype=np.uint8)


def detections(**changes: Any) -> dict[str, np.ndarray]:
    content = {
        "detection_bboxes": cells(NOTHING, np.array([[1, 2, 255, 200], [7, 8, 9, 10]], dtype=np.uint8)),
        "detection_labels": cells(NOTHING, np.array([[255], [1]], dtype=np.uint8)),
        "detection_confs": cells(NOTHING, np.array([[0.25], [1.0]])),
    }
    for name, cell in changes.items():
        content[f"detection_{name}"] = cells(NOTHING, cell)
    return content


def test_detections_are_cast_before_any_arithmetic(tmp_path: Path) -> None:
    savemat(tmp_path / "d.mat", detections())
    empty, found = read_lu_detections(tmp_path / "d.mat", 255, 2)
    assert (empty.boxes_xyxy.shape, empty.labels.shape, empty.scores.shape) == ((0, 4), (0,), (0,))
    assert found.labels.tolist() == [254, 0]
    assert found.scores.tolist() == [0.25, 1.0]
    assert (found.boxes_xyxy[:, 2:] - found.boxes_xyxy[:, :2] + 1).tolist() == [[255, 199], [3, 3]]
    for d in (empty, found):
        assert (d.boxes_xyxy.dtype, d.labels.dtype, d.scores.dtype) == (np.float32, np.int64, np.float64)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            detections(labels=np.array([[1], [101]], np.uint8)),
            r"image 1: detection_labels: row 1: 101 .* from 1 to 100",
        ),
        (detections(labels=np.array([[0], [1]], np.uint8)), r"image 1: detection_labels: row 0: 0 "),
        (detections(confs=np.array([[0.5], [1.5]])), r"image 1: detection_confs: row 1: 1\.5 is not from 0 to 1"),
        (detections(confs=np.array([[np.nan], [0.5]])), r"detection_confs: row 0: nan"),
        (detections(confs=np.array([[0.5]])), r"image 1: 2 boxes, 2 labels and 1 confidences"),
        (detections(bboxes=np.array([[1, 2, 3, 4], [9, 8, 7, 10]])), r"image 1: detection_bboxes: row 1: inverted"),
        (detections(bboxes=np.array([[1, 2, 3], [1, 2, 3]])), r"detection_bboxes: expected 4 numeric columns"),
        ({"detection_bboxes": cells(NOTHING)}, r"holds no cell array 'detection_labels'"),
        ({**detections(), "detection_confs": np.zeros((2, 1))}, r"holds no cell array 'detection_confs'"),
    ],
)
def test_bad_detections_are_named(tmp_path: Path, content: dict[str, Any], message: str) -> None:
    labels = content.get("detection_labels")
    if labels is not None and labels[0, 1].max() == 255:
        content = {**content, "detection_labels": cells(NOTHING, np.array([[2], [1]], np.uint8))}
    savemat(tmp_path / "bad.mat", content)
    with pytest.raises(DataError, match=rf"bad\.mat: .*{message}.*Lu et al"):
        read_lu_detections(tmp_path / "bad.mat", 100)


def test_matlab_files_of_another_number_of_images(tmp_path: Path) -> None:
    savemat(tmp_path / "d.mat", detections())
    with pytest.raises(DataError, match=r"d\.mat: detection_bboxes holds 2 images, the annotations hold 3"):
        read_lu_detections(tmp_path / "d.mat", 255, 3)
    with pytest.raises(DataError, match=r"gone\.mat: no such file"):
        read_lu_detections(tmp_path / "gone.mat", 255)


@pytest.mark.parametrize("compressed", [True, False])
def test_damaged_matlab_files(tmp_path: Path, compressed: bool) -> None:
    path = tmp_path / "d.mat"
    savemat(path, detections(), do_compression=compressed)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for cut in rng.integers(0, len(whole) // 2, 40):
        path.write_bytes(whole[:cut])
        with pytest.raises(DataError, match=r"d\.mat: "):
            read_lu_detections(path, 255, 2)
    for _ in range(60 if compressed else 0):  # wrong bytes: either the values are still good, or the error is ours
        content = bytearray(whole)
        for place in rng.integers(0, len(whole), 4):
            content[place] = rng.integers(256)
        path.write_bytes(content)
        try:
            read_lu_detections(path, 255, 2)
        except DataError as error:
            assert "d.mat" in str(error)


def test_predictions_keep_their_rows(tmp_path: Path) -> None:
    boxes = np.array([[1, 2, 300, 200], [7, 8, 9, 10], [7, 8, 9, 10]], dtype=np.uint16)
    content = {
        "rlp_labels_ours": cells(np.array([[100, 70, 1], [1, 2, 3], [1, 2, 3]], dtype=np.uint8), NOTHING),
        "rlp_confs_ours": cells(np.array([[0.5], [14.5], [-1]], dtype=np.float32), NOTHING),
        "sub_bboxes_ours": cells(boxes, NOTHING),
        "obj_bboxes_ours": cells(boxes[::-1], NOTHING),
    }
    savemat(tmp_path / "p.mat", content)
    found, empty = read_lu_predictions(tmp_path / "p.mat", 2)
    assert found.triplets.tolist() == [[[99, 69, 0]], [[0, 1, 2]], [[0, 1, 2]]]
    assert found.scores.tolist() == [[0.5], [14.5], [-1.0]]
    assert found.subject_boxes_xyxy.tolist() == boxes.tolist()
    assert found.object_boxes_xyxy.tolist() == boxes[::-1].tolist()
    assert (found.triplets.dtype, found.scores.dtype, found.object_boxes_xyxy.dtype) == (
        np.int64,
        np.float64,
        np.float32,
    )
    assert (empty.triplets.shape, empty.scores.shape, empty.subject_boxes_xyxy.shape) == ((0, 1, 3), (0, 1), (0, 4))
    content["rlp_confs_ours"] = cells(np.zeros((2, 1), dtype=np.float32), NOTHING)
    savemat(tmp_path / "p.mat", content)
    with pytest.raises(DataError, match="image 0: the four variables differ"):
        read_lu_predictions(tmp_path / "p.mat")


def test_matlab_ground_truth_equals_the_annotations_of_the_generated_world(vrd_world: Path) -> None:
    annotations = read_annotations(vrd_world / "json_dataset" / "annotations_test.json", 20, 12)
    order = read_image_order(vrd_world / "lu2016" / "imagePath.mat")
    assert set(order) == set(annotations)
    assert order != list(annotations)
    graphs = read_lu_ground_truth(vrd_world / "lu2016" / "gt.mat", order)
    assert sum(len(g.relations) for g in graphs) > 100
    assert all(same(g, annotations[g.image]) for g in graphs)
    with pytest.raises(DataError, match=r"gt\.mat: gt_tuple_label holds 24 images, the annotations hold 23"):
        read_lu_ground_truth(vrd_world / "lu2016" / "gt.mat", order[1:])


def test_images_are_found_under_other_suffixes_and_read_by_content(tmp_path: Path) -> None:
    red = Image.new("RGB", (30, 20), (250, 0, 0))
    red.save(tmp_path / "a.jpg")
    red.convert("P").save(tmp_path / "b.gif", save_all=True, append_images=[Image.new("P", (30, 20))])
    red.convert("RGBA").save(tmp_path / "c.png")
    (tmp_path / "c.png").rename(tmp_path / "c.jpg")
    Image.new("L", (30, 20), 250).save(tmp_path / "d.jpeg")
    for name in ("a.jpg", "b.jpg", "c.jpg", "d.jpg"):
        image = open_image(tmp_path, name)
        assert (image.mode, image.size, image_size(tmp_path, name)) == ("RGB", (30, 20), (30, 20))
        assert image.getpixel((15, 10))[0] >= 248
    assert find_image(tmp_path, "b.jpg").name == "b.gif"
    assert open_image(tmp_path, "b.jpg").getpixel((15, 10))[1] < 10  # the first frame


def test_unreadable_images_are_named(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (60, 60, 3)).astype(np.uint8)
    for name in ("a.jpg", "b.png"):
        Image.fromarray(noise).save(tmp_path / name)
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        assert image_size(tmp_path, name) == (60, 60)  # the header is intact
        with pytest.raises(DataError, match=rf"{name}: truncated or damaged image.*sg_dataset\.zip"):
            open_image(tmp_path, name)
    (tmp_path / "c.jpg").write_text("no image")
    with pytest.raises(DataError, match=r"c\.jpg: not a readable image"):
        image_size(tmp_path, "c.jpg")
    with pytest.raises(DataError, match=r"c\.jpg: truncated or damaged"):
        open_image(tmp_path, "c.jpg")
    with pytest.raises(DataError, match=r"gone\.jpg: no such image, nor one of that stem with \.jpg.*sg_dataset\.zip"):
        open_image(tmp_path, "gone.jpg")


def test_sizes_are_estimated_from_the_boxes() -> None:
    boxes = np.array([[1, 1, 500, 300], [20, 10, 30, 320]], dtype=np.float32)
    assert estimate_size("1_o.jpg", boxes) == (500, 320)
    assert estimate_size("1_b.jpg", boxes) == (1024, 320)
    assert estimate_size("1_b.jpg", boxes[:, [1, 0, 3, 2]]) == (320, 1024)
    assert estimate_size("1_o.jpg", boxes[:0]) == (1, 1)
    assert estimate_size("1_b.jpg", boxes[:0]) == (1024, 1024)
