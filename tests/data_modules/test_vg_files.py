from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from data_modules.errors import DataError
from data_modules.json_files import read_json, read_name_list
from data_modules.vg_files import (
    read_image_data,
    read_scenes,
    read_test_truth,
    read_vg150_names,
    read_zero_shot,
)

Content = dict[str, Any]


def scenes() -> Content:
    """Three images: two boxes and two relations, nothing, one box and no relation."""
    return {
        "boxes_1024": np.array([[1, 1, 3, 3], [10, 20, 5, 7], [500, 300, 100, 51]], dtype=np.int32),
        "labels": np.array([[1], [150], [7]], dtype=np.int32),
        "predicates": np.array([[50], [1]], dtype=np.int32),
        "relationships": np.array([[1, 0], [0, 1]], dtype=np.int32),
        "img_to_first_box": np.array([0, -1, 2], dtype=np.int32),
        "img_to_last_box": np.array([1, -1, 2], dtype=np.int32),
        "img_to_first_rel": np.array([0, -1, -1], dtype=np.int32),
        "img_to_last_rel": np.array([1, -1, -1], dtype=np.int32),
        "split": np.array([0, 0, 2], dtype=np.int32),
    }


def write_h5(path: Path, content: Content) -> Path:
    with h5py.File(path, "w") as file:
        for name, values in content.items():
            file[name] = values
    return path


def changed(**changes: Any) -> Content:
    return scenes() | changes


def test_boxes_are_cut_off_towards_zero_as_in_an_int32_array(tmp_path: Path) -> None:
    table = read_scenes(write_h5(tmp_path / "a.h5", scenes()), 3, 150, 50)
    # 1 - 1.5 = -0.5 -> 0 and not -1; 10 - 2.5 = 7.5 -> 7, 20 - 3.5 = 16.5 -> 16; 300 - 25.5 = 274.5 -> 274.
    expected = [[0, 0, 3, 3], [7, 16, 12, 23], [450, 274, 550, 325]]
    assert table.boxes_xyxy.tolist() == expected
    in_place = scenes()["boxes_1024"]  # what neural-motifs does, in the int32 array itself
    in_place[:, :2] = in_place[:, :2] - in_place[:, 2:] / 2
    in_place[:, 2:] = in_place[:, :2] + in_place[:, 2:]
    assert in_place.tolist() == expected


def test_tables_are_0_based_and_relations_count_from_their_images_first_box(tmp_path: Path) -> None:
    content = scenes()
    content["boxes_1024"] = content["boxes_1024"][[2, 0, 1]]
    content["labels"] = content["labels"][[2, 0, 1]]
    content["relationships"] = content["relationships"] + 1
    content["img_to_first_box"] = np.array([1, -1, 0])
    content["img_to_last_box"] = np.array([2, -1, 0])
    table = read_scenes(write_h5(tmp_path / "a.h5", content), 3, 150, 50)
    assert table.labels.tolist() == [6, 0, 149]
    assert table.box_ranges.tolist() == [[1, 3], [0, 0], [0, 1]]
    assert table.relations.tolist() == [[1, 49, 0], [0, 0, 1]]
    assert table.relation_ranges.tolist() == [[0, 2], [0, 0], [0, 0]]
    assert table.split.tolist() == [0, 0, 2]
    types = table.boxes_xyxy.dtype, table.labels.dtype, table.relations.dtype, table.box_ranges.dtype
    assert types == (np.float32, np.int64, np.int64, np.int64)


@pytest.mark.parametrize(
    "content",
    [
        changed(boxes_1024=scenes()["boxes_1024"].astype(np.float32)),
        changed(boxes_1024=scenes()["boxes_1024"] + 0.75),  # floats with fractions: as if stored as int32
        changed(predicates=np.array([50, 1])),
        changed(labels=np.array([1.0, 150.0, 7.0])),
        changed(split=np.array([[0], [0], [2]], dtype=np.uint8)),
        changed(active_object_mask=np.ones((3, 1), dtype=bool), boxes_512=np.zeros((3, 4), dtype=np.int32)),
    ],
    ids=["float boxes", "fractions", "1-d predicates", "float labels", "2-d split", "more data sets"],
)
def test_re_released_forms_read_the_same(tmp_path: Path, content: Content) -> None:
    expected = read_scenes(write_h5(tmp_path / "a.h5", scenes()), 3, 150, 50)
    found = read_scenes(write_h5(tmp_path / "b.h5", content), 3, 150, 50)
    for name in ("boxes_xyxy", "labels", "relations", "box_ranges", "relation_ranges", "split"):
        assert getattr(found, name).tolist() == getattr(expected, name).tolist()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        *((name, rf"holds no data set '{name}'") for name in scenes()),
        (changed(labels=np.array([[0], [150], [7]])), r"labels: row 0: expected 1 to 150, found \[0\]"),
        (changed(labels=np.array([[1], [151], [7]])), r"labels: row 1: expected 1 to 150, found \[151\]"),
        (changed(labels=np.array([[1], [2.5], [7]])), r"labels: row 1: \[2\.5\] isn't whole"),
        (changed(labels=np.array([[1], [2]])), r"boxes_1024 holds 3 rows, labels 2"),
        (
            changed(labels=np.array([[b"a"], [b"b"], [b"c"]])),
            r"labels: expected 1 numeric columns, found \|S1 \(3, 1\)",
        ),
        (changed(labels=7), r"labels: expected 1 numeric columns, found int64 \(\)"),
        (changed(predicates=np.array([[51], [1]])), r"predicates: row 0: expected 1 to 50, found \[51\]"),
        (changed(predicates=np.array([[1]])), r"relationships holds 2 rows, predicates 1"),
        (changed(boxes_1024=np.ones((3, 5))), r"boxes_1024: expected 4 numeric columns, found float64 \(3, 5\)"),
        (changed(boxes_1024=np.full((3, 4), np.nan)), r"boxes_1024: row 0: .*nan.* isn't whole"),
        (changed(boxes_1024=np.array([[9, 9, 3, 0]] * 3)), r"boxes_1024 \(widths and heights\): row 0: expected 1 to"),
        (changed(boxes_1024=np.array([[9, 1025, 3, 3]] * 3)), r"boxes_1024 \(centres\): row 0: expected 0 to 1024"),
        (changed(split=np.array([0, 3, 2])), r"split: row 1: expected 0 to 2, found \[3\]"),
        (changed(split=np.array([0, 2])), r"split holds 2 images, image_data\.json 3 without the four corrupted ones"),
        (changed(img_to_last_box=np.array([1, -1, 3])), r"img_to_last_box: image 2: rows 2 to 3 of 3"),
        (changed(img_to_first_box=np.array([0, -1, -1])), r"img_to_last_box: image 2: rows -1 to 2 of 3"),
        (changed(img_to_last_rel=np.array([2, -1, -1])), r"img_to_last_rel: image 0: rows 0 to 2 of 2"),
        (changed(img_to_first_rel=np.array([-2, -1, -1])), r"img_to_last_rel: image 0: rows -2 to 1 of 2"),
        (changed(img_to_first_rel=np.array([0, -1])), r"img_to_first_rel holds 2 images, split 3"),
        (
            changed(relationships=np.array([[1, 0], [0, 9]])),
            r"relationships: row 1: boxes of image 0 are 0 to 1, found",
        ),
        (
            changed(relationships=np.array([[1, 2], [0, 1]])),
            r"relationships: row 0: boxes of image 0 .* found \[1, 2\]",
        ),
        (changed(relationships=np.array([[-1, 0], [0, 1]])), r"relationships: row 0: .* found \[-1, 0\]"),
    ],
)
def test_a_bad_h5_file_is_named_with_its_data_set(tmp_path: Path, content: Content | str, message: str) -> None:
    if isinstance(content, str):
        content = {name: values for name, values in scenes().items() if name != content}
    with pytest.raises(DataError, match=rf"bad\.h5: .*{message}.*; fetch VG-SGG\.h5 of Xu et al"):
        read_scenes(write_h5(tmp_path / "bad.h5", content), 3, 150, 50)


def test_a_group_in_place_of_a_data_set(tmp_path: Path) -> None:
    content = {name: values for name, values in scenes().items() if name != "labels"}
    with pytest.raises(DataError, match=r"holds no data set 'labels'"):
        read_scenes(write_h5(tmp_path / "bad.h5", content | {"labels/deeper": 1}), 3, 150, 50)


def test_files_that_are_no_h5(tmp_path: Path) -> None:
    path = tmp_path / "bad.h5"
    with pytest.raises(DataError, match=r"bad\.h5: no such file; fetch VG-SGG\.h5"):
        read_scenes(path, 3, 150, 50)
    path.write_bytes(b"no HDF5 at all")
    with pytest.raises(DataError, match=r"bad\.h5: not a readable HDF5 file"):
        read_scenes(path, 3, 150, 50)
    whole = write_h5(tmp_path / "whole.h5", scenes()).read_bytes()
    for cut in np.linspace(0, len(whole) - 1, 30).astype(int):
        path.write_bytes(whole[:cut])
        with pytest.raises(DataError, match=r"bad\.h5: "):
            read_scenes(path, 3, 150, 50)


def write_json(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_image_data_skips_the_corrupted_images_and_keeps_the_order(tmp_path: Path) -> None:
    ids = [5, 1592, 3, 4616, 4617, 1722, 9]
    path = write_json(tmp_path / "i.json", [{"image_id": i, "width": 100 + i, "height": 50, "url": ""} for i in ids])
    assert read_image_data(path) == {5: (105, 50), 3: (103, 50), 9: (109, 50)}
    assert list(read_image_data(path)) == [5, 3, 9]
    assert list(read_image_data(path, skip_corrupted=False)) == ids


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e[1].pop("width"), r"entry 1: expected whole numbers .* = \[2, None, 50\]"),
        (lambda e: e[1].update(height="50"), r"entry 1: .* = \[2, 100, '50'\]"),
        (lambda e: e[1].update(image_id=1), r"entry 1: image_id 1 occurs twice"),
        (lambda e: e[1].update(width=0), r"entry 1: expected whole numbers above 0"),
        (lambda e: e.append("x"), r"entry 3: .* = \[None, None, None\]"),
    ],
)
def test_bad_image_data_is_named(tmp_path: Path, change: Callable[[list[Any]], Any], message: str) -> None:
    entries = [{"image_id": i, "width": 100, "height": 50} for i in (1, 2, 3)]
    change(entries)
    with pytest.raises(DataError, match=rf"bad\.json: {message}.*visualgenome\.org"):
        read_image_data(write_json(tmp_path / "bad.json", entries))
    with pytest.raises(DataError, match="expected a list of images"):
        read_image_data(write_json(tmp_path / "bad.json", {"image_id": 1}))


def test_names_are_sorted_by_number(tmp_path: Path) -> None:
    content = {"label_to_idx": {"zebra": 1, "ant": 2}, "predicate_to_idx": {"on": 2, "above": 1, "in": 3}}
    assert read_vg150_names(write_json(tmp_path / "d.json", content)) == (["zebra", "ant"], ["above", "on", "in"])
    wrong: Any
    for wrong in ({"zebra": 0, "ant": 1}, {"zebra": 1, "ant": 3}, {"zebra": 1, "ant": 1}, {"zebra": [1]}, [], {}):
        with pytest.raises(DataError, match=r"d\.json: label_to_idx: expected names numbered from 1"):
            read_vg150_names(write_json(tmp_path / "d.json", content | {"label_to_idx": wrong}))
    with pytest.raises(DataError, match="label_to_idx"):
        read_vg150_names(write_json(tmp_path / "d.json", [content]))
    both = content | {
        "idx_to_label": {"1": "zebra", "2": "ant"},
        "idx_to_predicate": {"1": "above", "2": "on", "3": "in"},
    }
    assert read_vg150_names(write_json(tmp_path / "d.json", both))[1] == ["above", "on", "in"]
    for key, wrong in (("idx_to_label", {"1": "ant", "2": "zebra"}), ("idx_to_predicate", {"1": "above"})):
        with pytest.raises(DataError, match=rf"d\.json: {key}: contradicts"):
            read_vg150_names(write_json(tmp_path / "d.json", both | {key: wrong}))


def test_files_that_are_no_json(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.json: no such file; fetch it"):
        read_json(tmp_path / "gone.json", "fetch it")
    for content in (b'{"a": 1', b"\xff\xfe\x00"):
        (tmp_path / "cut.json").write_bytes(content)
        with pytest.raises(DataError, match=r"cut\.json: not valid JSON .*; fetch it"):
            read_json(tmp_path / "cut.json", "fetch it")
    assert read_name_list(write_json(tmp_path / "n.json", ["b", "a"]), "") == ["b", "a"]
    for wrong in ({"a": 0}, [], ["a", 1], ["a", ""]):
        with pytest.raises(DataError, match=r"n\.json: expected a list of names"):
            read_name_list(write_json(tmp_path / "n.json", wrong), "")
    with pytest.raises(DataError, match="1 names occur twice"):
        read_name_list(write_json(tmp_path / "n.json", ["a", "b", "a"]), "")


def truth() -> Content:
    a, b = [0, 0, 50, 60], [10, 5, 20, 6]
    return {
        "image_id": np.array([7, 9]),
        "hw": np.array([[60, 80], [40, 30]]),
        "offset": np.array([0, 3, 4]),
        "spo_labels": np.array([[149, 49, 0], [0, 3, 149], [149, 49, 0], [2, 0, 2]], dtype=np.int16),
        "so_boxes": np.array([a + b, b + a, a + b, [1, 2, 1, 9, *b]], dtype=np.float32),
    }


def test_the_test_truth_becomes_graphs(tmp_path: Path) -> None:
    np.savez(tmp_path / "t.npz", **truth())
    first, second = read_test_truth(tmp_path / "t.npz", 150, 50)
    assert (first.image, first.size_wh, second.image, second.size_wh) == ("7.jpg", (80, 60), "9.jpg", (30, 40))
    assert first.boxes_xyxy.tolist() == [[0, 0, 50, 60], [10, 5, 20, 6]]
    assert first.labels.tolist() == [149, 0]
    assert first.relations.tolist() == [[0, 49, 1], [1, 3, 0], [0, 49, 1]]  # the duplicate is kept
    assert second.boxes_xyxy.tolist() == [[1, 2, 1, 9], [10, 5, 20, 6]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spo_labels": None}, r"not a readable VG150 test truth"),
        ({"hw": np.zeros((3, 2))}, r"hw: expected numbers \(2, 2\), found float64 \(3, 2\)"),
        ({"hw": np.array([["a", "b"], ["c", "d"]])}, r"hw: expected numbers"),
        ({"image_id": np.array([{}, {}], dtype=object)}, r"not a readable VG150 test truth"),  # would be a pickle
        ({"hw": np.array([[60, 80], [0, 30]])}, r"hw: row 1: \[0, 30\] is no size"),
        ({"image_id": np.array([7, 7])}, r"image_id: expected 2 different numbers"),
        ({"offset": np.array([0, 3, 5])}, r"offset: expected to rise from 0 to 4"),
        ({"offset": np.array([0, 5, 4])}, r"offset: expected to rise from 0 to 4"),
        ({"spo_labels": np.array([[0, 50, 0]] * 4)}, r"spo_labels: row 0: .* found \[0, 50, 0\]"),
        ({"spo_labels": np.array([[0, 0, 0]] * 3 + [[0, 0, -1]])}, r"spo_labels: row 3: "),
        ({"so_boxes": np.array([[1, 1, 5, 5, 1, 9, 5, 5]] * 4)}, r"so_boxes: row 0: inverted box"),
        ({"so_boxes": np.full((4, 8), np.nan)}, r"so_boxes: row 0: inverted box"),
    ],
)
def test_a_bad_test_truth_is_named(tmp_path: Path, changes: Content, message: str) -> None:
    content = {name: values for name, values in (truth() | changes).items() if values is not None}
    np.savez(tmp_path / "bad.npz", **content)
    with pytest.raises(DataError, match=rf"bad\.npz: {message}.*; unpack"):
        read_test_truth(tmp_path / "bad.npz", 150, 50)


def test_a_damaged_test_truth(tmp_path: Path) -> None:
    np.savez(tmp_path / "t.npz", **truth())
    whole = (tmp_path / "t.npz").read_bytes()
    for cut in (0, 10, len(whole) // 2, len(whole) - 5):
        (tmp_path / "bad.npz").write_bytes(whole[:cut])
        with pytest.raises(DataError, match=r"bad\.npz: not a readable VG150 test truth"):
            read_test_truth(tmp_path / "bad.npz", 150, 50)
    with pytest.raises(DataError, match=r"gone\.npz: no such file"):
        read_test_truth(tmp_path / "gone.npz", 150, 50)


def test_zero_shot_triplets_change_base_and_order(tmp_path: Path) -> None:
    torch.save(torch.tensor([[1, 150, 50], [3, 2, 1]]), tmp_path / "z.pytorch")
    assert read_zero_shot(tmp_path / "z.pytorch", 150, 50).tolist() == [[0, 49, 149], [2, 0, 1]]


class Mischief:
    """What a pickle can do: run a command when it is read."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


def test_bad_zero_shot_files_are_named_and_run_nothing(tmp_path: Path) -> None:
    path = tmp_path / "z.pytorch"
    for content, message in (
        (torch.tensor([[1, 151, 50]]), r"row 0: \[1, 151, 50\] is out of range"),
        (torch.tensor([[1, 1, 0]]), r"row 0: .*out of range"),
        (torch.zeros(3, 2, dtype=torch.int64), r"expected whole numbers \[Z, 3\]"),
        (torch.ones(3, 3), r"expected whole numbers \[Z, 3\]"),
        ([1, 2, 3], r"expected whole numbers \[Z, 3\]"),
        (Mischief(tmp_path / "made"), r"not a readable tensor file"),
    ):
        torch.save(content, path)
        with pytest.raises(DataError, match=rf"z\.pytorch: {message}.*; unpack"):
            read_zero_shot(path, 150, 50)
    path.write_bytes(pickle.dumps(Mischief(tmp_path / "made"), protocol=2))
    with pytest.raises(DataError, match="not a readable tensor file"):
        read_zero_shot(path, 150, 50)
    assert not (tmp_path / "made").exists()
    path.unlink()
    with pytest.raises(DataError, match="no such file"):
        read_zero_shot(path, 150, 50)
