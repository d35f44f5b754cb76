from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_modules.detections_file import DetectedImages, read_coco_results, read_detections, write_detections
from data_modules.errors import DataError
from data_modules.reldn_files import DetectionAnnotations
from data_modules.scene_graph import Detections, SceneGraph

NAMES = ["cup", "zebra", "man"]


def found(boxes: list[list[float]], labels: list[int], scores: list[float]) -> Detections:
    xyxy = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    return Detections(xyxy, np.array(labels, dtype=np.int64), np.array(scores, dtype=np.float64))


def graph(image: str, size_wh: tuple[int, int] | None) -> SceneGraph:
    nothing = np.zeros((0, 3), dtype=np.int64)
    return SceneGraph(image, size_wh, np.zeros((0, 4), np.float32), np.zeros(0, np.int64), nothing)


IMAGES = ["b.jpg", "a.jpg", "c.jpg"]
SIZES = [(100.0, 60.0), (30.0, 40.0), (7.0, 9.0)]
RECORDS = [
    found([[1, 2, 50.5, 60], [0, 0, 100, 30]], [2, 0], [0.9, 1 / 3]),
    found([], [], []),
    found([[-1, 0, 8, 9]], [1], [1.0]),  # a pixel outside on either side
]


def write(path: Path) -> Path:
    write_detections(path, NAMES, IMAGES, SIZES, RECORDS)
    return path


def same(a: Detections, b: Detections) -> bool:
    fields = ("boxes_xyxy", "labels", "scores")
    return all(
        getattr(a, f).dtype == getattr(b, f).dtype and np.array_equal(getattr(a, f), getattr(b, f)) for f in fields
    )


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "deeper" / "d.npz"
    write_detections(path, ["x"], [], [], [])
    assert read_detections(path, ["x"]).detections == {}
    read = read_detections(write(path), NAMES)
    assert list(read.detections) == IMAGES
    assert all(same(read.detections[name], record) for name, record in zip(IMAGES, RECORDS, strict=True))
    assert read.sizes_wh == dict(zip(IMAGES, SIZES, strict=True))
    assert [p.name for p in path.parent.iterdir()] == ["d.npz"]
    assert read_detections(write(path), NAMES).sizes_wh == read.sizes_wh  # overwritten
    with np.load(path) as content:  # the documented layout
        assert {name: (array.dtype.kind, array.shape) for name, array in content.items()} == {
            "object_names": ("U", (3,)),
            "images": ("U", (3,)),
            "sizes_wh": ("f", (3, 2)),
            "offsets": ("i", (4,)),
            "boxes_xyxy": ("f", (3, 4)),
            "labels": ("i", (3,)),
            "scores": ("f", (3,)),
        }


@pytest.mark.parametrize("images", [["a", "b"], ["a", "b", "a"]])
def test_records_that_do_not_fit_are_not_written(tmp_path: Path, images: list[str]) -> None:
    with pytest.raises(ValueError, match="expected one size and one record for each image"):
        write_detections(tmp_path / "d.npz", NAMES, images, SIZES, RECORDS)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": None}, r"not a readable file of detections"),
        ({"images": np.array([{}, {}, {}], dtype=object)}, r"not a readable file of detections"),  # would be a pickle
        ({"images": np.array([1, 2, 3])}, r"images: expected \(3,\), one of 'U', found int64"),
        ({"images": np.array(["a", "b", "a"])}, r"images: 1 occur twice"),
        ({"object_names": np.array(["cup", "man", "zebra"])}, r"object_names: the detector knows other classes"),
        ({"object_names": np.array(["cup"])}, r"object_names: the detector knows other classes"),
        ({"sizes_wh": np.ones((2, 2))}, r"sizes_wh: expected \(3, 2\), .* found float64 \(2, 2\)"),
        ({"sizes_wh": np.array([[100, 60], [0, 40], [7, 9]])}, r"sizes_wh: row 1: \[0\.0, 40\.0\] is no size"),
        ({"sizes_wh": np.array([[100, 60], [np.nan, 4], [7, 9]])}, r"sizes_wh: row 1: .*nan"),
        ({"offsets": np.array([0, 2, 2, 4])}, r"offsets: expected to rise from 0 to 3"),
        ({"offsets": np.array([0, 3, 2, 3])}, r"offsets: expected to rise from 0 to 3"),
        ({"offsets": np.array([0.0, 2, 2, 3])}, r"offsets: expected \(4,\), one of 'iu', found float64"),
        ({"labels": np.array([2, 0])}, r"boxes_xyxy: expected \(2, 4\), .* found float32 \(3, 4\)"),
        ({"labels": np.array([2.0, 0, 1])}, r"labels: expected \(3,\), one of 'iu', found float64"),
        ({"labels": np.array([2, 3, 1])}, r"labels: row 1: image 'b\.jpg': expected a label from 0 to 2, found 3"),
        ({"labels": np.array([2, 0, -1])}, r"labels: row 2: image 'c\.jpg': expected a label from 0 to 2, found -1"),
        ({"scores": np.array([0.9, 1.1, 1])}, r"scores: row 1: image 'b\.jpg': expected a confidence .*found 1\.1"),
        ({"scores": np.array([0.9, np.nan, 1])}, r"scores: row 1: .* found nan"),
        ({"boxes_xyxy": np.array([[5, 2, 4, 9]] * 3)}, r"boxes_xyxy: row 0: image 'b\.jpg': expected x1 <= x2 .*5\.0"),
        ({"boxes_xyxy": np.array([[5, 2, 102, 9]] * 3)}, r"boxes_xyxy: row 0: .* within the image, found .*102"),
        ({"boxes_xyxy": np.array([[1, 2, 3, 9]] * 2 + [[1, 2, 3, 11]])}, r"boxes_xyxy: row 2: image 'c\.jpg'"),
        ({"boxes_xyxy": np.array([[1, -2, 3, 9]] * 3)}, r"boxes_xyxy: row 0: .*-2"),
        ({"boxes_xyxy": np.full((3, 4), np.nan)}, r"boxes_xyxy: row 0: .*nan"),
    ],
)
def test_a_bad_file_is_named_with_array_and_row(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with np.load(write(tmp_path / "d.npz")) as file:
        content = {name: array for name, array in (dict(file) | changes).items() if array is not None}
    np.savez(tmp_path / "bad.npz", **content)
    with pytest.raises(DataError, match=rf"bad\.npz: {message}.*; run the detector"):
        read_detections(tmp_path / "bad.npz", NAMES)


def test_damaged_files(tmp_path: Path) -> None:
    whole = write(tmp_path / "d.npz").read_bytes()
    for cut in (0, 10, len(whole) // 2, len(whole) - 5):
        (tmp_path / "bad.npz").write_bytes(whole[:cut])
        with pytest.raises(DataError, match=r"bad\.npz: not a readable file of detections"):
            read_detections(tmp_path / "bad.npz", NAMES)
    with pytest.raises(DataError, match=r"gone\.npz: no such file"):
        read_detections(tmp_path / "gone.npz", NAMES)


def test_boxes_are_brought_into_the_annotated_frame(tmp_path: Path) -> None:
    read = read_detections(write(tmp_path / "d.npz"), NAMES)
    # 1024 x 614: the shorter side is rounded, the boxes are scaled by 10.24 in both directions.
    (first, empty) = read.fitted([graph("b.jpg", (1024, 614)), graph("a.jpg", (30, 40))], [(1024, 614), (30, 40)])
    np.testing.assert_allclose(first.boxes_xyxy, RECORDS[0].boxes_xyxy * 10.24, rtol=1e-6)
    assert first.boxes_xyxy.dtype == np.float32
    assert same(empty, RECORDS[1])
    # The same frame, or one that nobody knows: the very numbers.
    for frame in ((100, 60), None):
        assert same(read.fitted([graph("b.jpg", frame)], [frame])[0], RECORDS[0])
    # A square that stands for an unknown size is filled.
    (spread,) = read.fitted([graph("b.jpg", None)], [(1000, 1000)])
    expected = RECORDS[0].boxes_xyxy * np.array([10, 1000 / 60, 10, 1000 / 60])
    np.testing.assert_allclose(spread.boxes_xyxy, expected, rtol=1e-6)
    (strong,) = read.fitted([graph("b.jpg", None)], [None], min_score=0.5)
    assert (strong.labels.tolist(), strong.scores.tolist(), len(strong.boxes_xyxy)) == ([2], [0.9], 1)


def test_images_that_do_not_fit_are_named(tmp_path: Path) -> None:
    read = read_detections(write(tmp_path / "d.npz"), NAMES)
    with pytest.raises(DataError, match=r"d\.npz: 1 of 2 images, as 'x\.jpg', are not in the file; run the detector"):
        read.fitted([graph("b.jpg", None), graph("x.jpg", None)], [None, None])
    for size in ((60, 100), (1024, 700), (50, 33)):
        with pytest.raises(
            DataError, match=r"image 'b\.jpg': sizes_wh: detections are in a frame of \(100\.0, 60\.0\)"
        ):
            read.fitted([graph("b.jpg", size)], [size])


INDEX = DetectionAnnotations(
    names=["zebra", "man", "cup"],  # by category id, which is another order than the data set's
    image_names={2: "2.jpg", 5: "5.jpg", 9: "9.jpg"},
    labels_of={10: 0, 20: 1, 30: 2},
    sizes_wh={"2.jpg": (30, 40), "5.jpg": (100, 60), "9.jpg": (7, 9)},
    boxes_xyxy={},
    labels={},
    flat_boxes=0,
)
RESULTS: list[dict[str, Any]] = [
    {"image_id": 5, "category_id": 20, "bbox": [1, 2, 50.5, 9], "score": 0.25},
    {"image_id": 2, "category_id": 30, "bbox": [0, 0, 30, 40], "score": 1},
    {"image_id": 5, "category_id": 10, "bbox": [99, 59, 1, 1], "score": 0.5},
]


def read_results(folder: Path, content: Any = RESULTS, **options: Any) -> DetectedImages:
    (folder / "r.json").write_text(json.dumps(content))
    return read_coco_results(folder / "r.json", INDEX, NAMES, **options)


def test_coco_results_become_detections_of_the_classes_of_their_names(tmp_path: Path) -> None:
    read = read_results(tmp_path, rename=lambda name: f"image-{name}")
    assert list(read.detections) == ["image-2.jpg", "image-5.jpg", "image-9.jpg"]
    assert read.sizes_wh["image-5.jpg"] == (100, 60)
    assert same(read.detections["image-2.jpg"], found([[0, 0, 29, 39]], [0], [1.0]))
    expected = found([[1, 2, 50.5, 10], [99, 59, 99, 59]], [2, 1], [0.25, 0.5])  # the last column and row included
    assert same(read.detections["image-5.jpg"], expected)
    assert same(read.detections["image-9.jpg"], found([], [], []))
    assert all(len(d.labels) == 0 for d in read_results(tmp_path, []).detections.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r[1].update(image_id=3), r"\[1\]\.image_id: 3 is unknown"),
        (lambda r: r[1].update(image_id="2"), r"\[1\]\.image_id: '2' is unknown"),
        (lambda r: r[1].update(image_id=True), r"\[1\]\.image_id: True is unknown"),
        (lambda r: r[2].pop("category_id"), r"\[2\]\.category_id: None is unknown"),
        (lambda r: r[2].update(category_id=1), r"\[2\]\.category_id: 1 is unknown"),
        (lambda r: r[0].update(score="0.5"), r"\[0\]\.score: expected a number, found '0\.5'"),
        (lambda r: r[0].update(score=1.5), r"\[0\]\.score: image '5\.jpg': expected a confidence .*1\.5"),
        (lambda r: r[0].update(score=float("nan")), r"\[0\]\.score: image '5\.jpg': .* found nan"),
        (lambda r: r[0].update(bbox=[1, 2, 3]), r"\[0\]\.bbox: expected \[x, y, width, height\], found \[1, 2, 3\]"),
        (lambda r: r[0].update(bbox=[1, 2, 10**400, 4]), r"\[0\]\.bbox: expected \[x, y, width, height\], found \[1"),
        (lambda r: r[0].update(score=10**400), r"\[0\]\.score: expected a number, found 1000"),
        (lambda r: r[0].update(bbox=[1, 2, 3, None]), r"\[0\]\.bbox: expected \[x, y, width, height\]"),
        (lambda r: r[0].update(bbox=[1, 2, -3, 4]), r"\[0\]\.bbox: image '5\.jpg': expected x1 <= x2"),
        (lambda r: r[0].update(bbox=[1, 2, 103, 4]), r"\[0\]\.bbox: image '5\.jpg': .* within the image"),
        (lambda r: r[0].update(bbox=[1, 2, float("inf"), 4]), r"\[0\]\.bbox: image '5\.jpg'"),
        (lambda r: r.append(7), r"expected a list of results"),
    ],
)
def test_a_bad_result_is_named(tmp_path: Path, change: Callable[[list[Any]], Any], message: str) -> None:
    content = copy.deepcopy(RESULTS)
    change(content)
    with pytest.raises(DataError, match=rf"r\.json: {message}.*; run the detector"):
        read_results(tmp_path, content)


def test_results_of_another_data_set_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"r\.json: expected a list of results"):
        read_results(tmp_path, {"annotations": RESULTS})
    with pytest.raises(DataError, match=r"r\.json: its index has other classes than the data set, as \['dog', 'man'\]"):
        read_coco_results(tmp_path / "r.json", INDEX, ["cup", "zebra", "dog"])
    (tmp_path / "r.json").write_text("[{")
    with pytest.raises(DataError, match=r"r\.json: not valid JSON"):
        read_coco_results(tmp_path / "r.json", INDEX, NAMES)
