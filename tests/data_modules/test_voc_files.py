from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_modules.errors import DataError
from data_modules.voc_files import read_annotation, read_ids, read_label_map, voc_palette, write_label_map


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("</annotation>", "", "broken XML"),
        ("<width>100</width>", "", "size/width: expected a number, found ''"),
        ("<width>100</width>", "<width>0</width>", r"size: expected a width and a height in pixels, found \[0\.0, 80"),
        ("<name>dog</name>", "<name>wolf</name>", "object 1, name: unknown class 'wolf'"),
        ("<name>dog</name>", "", "object 1, name: unknown class ''"),
        ("<difficult>1</difficult>", "<difficult>2</difficult>", "object 1, difficult: expected 0 or 1, found '2'"),
        ("<xmin>21</xmin>", "<xmin>x</xmin>", "object 1, bndbox/xmin: expected a number, found 'x'"),
        ("<xmin>21</xmin>", "<xmin>nan</xmin>", "object 1, bndbox/xmin: expected a number, found 'nan'"),
        ("<ymax>40</ymax>", "", "object 1, bndbox/ymax: expected a number, found ''"),
        ("<xmin>21</xmin>", "<xmin>31</xmin>", r"object 1, bndbox: inverted box .* = \[31\.0, 10\.0, 30\.0, 40\.0\]"),
        ("<ymin>10</ymin>", "<ymin>41</ymin>", "object 1, bndbox: inverted box"),
        ("<xmax>30</xmax>", "<xmax>102</xmax>", r"object 1, bndbox: .*reaches outside the image of \(100, 80\)"),
        ("<ymin>10</ymin>", "<ymin>-1</ymin>", "object 1, bndbox: .*reaches outside"),
    ],
)
def test_a_bad_annotation_is_named_with_its_file_object_and_field(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    text = write_xml(tmp_path)
    assert old in text
    (tmp_path / "Annotations" / "000007.xml").write_text(text.replace(old, new))
    with pytest.raises(DataError, match=rf"000007\.xml: {message}.*extract the devkit's archive again"):
        read_annotation(tmp_path, "000007")


def write_xml(year: Path) -> str:
    def entry(name: str, difficult: str, x1: float, y1: float, x2: float, y2: float) -> str:
        box = f"<bndbox><xmax>{x2}</xmax><xmin>{x1}</xmin><ymin>{y1}</ymin><ymax>{y2}</ymax></bndbox>"
        return f"<object><name>{name}</name>{difficult}{box}</object>"

    text = (
        "<annotation><size><width>100</width><height>80</height><depth>3</depth></size>"
        + entry("person", "", 1, 1, 100, 80)
        + entry("dog", "<difficult>1</difficult>", 21, 10, 30, 40)
        + entry("tvmonitor", "<difficult>0</difficult>", 45.7, 50, 45.7, 50)
        + "</annotation>"
    )
    (year / "Annotations").mkdir(exist_ok=True)
    (year / "Annotations" / "000007.xml").write_text(text)
    return text


def test_boxes_become_edges(tmp_path: Path) -> None:
    write_xml(tmp_path)
    example, _ = read_annotation(tmp_path, "000007")
    assert example.size_wh == (100, 80)
    expected = np.array([[0, 0, 100, 80], [20, 9, 30, 40], [44.7, 49, 45.7, 50]], dtype=np.float32)
    assert np.array_equal(example.boxes_xyxy, expected)
    assert example.labels.tolist() == [14, 11, 19]
    assert example.difficult.tolist() == [False, True, False]  # a missing flag means no
    assert example.areas.tolist() == pytest.approx([8000, 310, 1], rel=1e-4)
    assert (example.boxes_xyxy.dtype, example.labels.dtype, example.areas.dtype) == (np.float32, np.int64, np.float32)
    assert (example.difficult.dtype, example.crowd.tolist()) == (np.bool_, [False] * 3)
    path = tmp_path / "Annotations" / "000007.xml"
    path.write_text(path.read_text().replace("<ymax>80</ymax>", "<ymax>81</ymax>"))  # a pixel too far: cut off
    assert read_annotation(tmp_path, "000007")[0].boxes_xyxy[0].tolist() == [0, 0, 100, 80]


def test_an_image_without_objects(tmp_path: Path) -> None:
    (tmp_path / "Annotations").mkdir()
    text = "<annotation><size><width>100</width><height>80</height></size></annotation>"
    (tmp_path / "Annotations" / "1.xml").write_text(text)
    example, _ = read_annotation(tmp_path, "1")
    assert (example.boxes_xyxy.shape, example.labels.shape, example.ignored.shape) == ((0, 4), (0,), (0,))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no image ids"),
        ("000001\n000002\n000001\n", "1 ids occur twice, '000001' first"),
        ("000001\n000002 -1\n", "entry 1: expected one image id a line, found '000002 -1'"),
        ("../000001\n", "entry 0: expected one image id"),
    ],
)
def test_bad_lists(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "trainval.txt"
    path.write_text(content)
    with pytest.raises(DataError, match=rf"trainval\.txt: {message}"):
        read_ids(path)
    path.unlink()
    with pytest.raises(DataError, match=r"trainval\.txt: no such file; extract the devkit"):
        read_ids(path)


def test_windows_line_ends_and_blank_lines_are_no_ids(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"000001\r\n\r\n000002 \r\n")
    assert read_ids(tmp_path / "a.txt") == ["000001", "000002"]


def test_label_maps_are_read_as_ids(tmp_path: Path) -> None:
    labels = np.array([[0, 20, 255], [7, 0, 1]], dtype=np.uint8)
    write_label_map(tmp_path / "a.png", labels)
    with Image.open(tmp_path / "a.png") as image:
        assert (image.mode, image.size) == ("P", (3, 2))
        # VOC's published colours: background, tvmonitor, void, car, background, aeroplane.
        colours = [[0, 0, 0], [0, 64, 128], [224, 224, 192], [128, 128, 128], [0, 0, 0], [128, 0, 0]]
        assert np.asarray(image.convert("RGB")).reshape(-1, 3).tolist() == colours
    read = read_label_map(tmp_path / "a.png")
    assert (read.dtype, read.tolist()) == (np.uint8, labels.tolist())
    Image.fromarray(labels).save(tmp_path / "grey.png")  # as in SegmentationClassAug
    assert np.array_equal(read_label_map(tmp_path / "grey.png"), labels)
    small = Image.fromarray(np.array([[0, 3], [2, 1]], dtype=np.uint8))
    small.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0, 9, 9, 9])
    small.save(tmp_path / "bits.png", bits=2)  # two bits a pixel
    assert read_label_map(tmp_path / "bits.png").tolist() == [[0, 3], [2, 1]]
    assert voc_palette().shape == (256, 3)


def test_bad_label_maps(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    labels = np.zeros((4, 5), dtype=np.uint8)
    for illegal in (21, 254):
        labels[2, 3] = illegal
        Image.fromarray(labels).save(path)
        with pytest.raises(DataError, match=rf"a\.png: illegal ids \[{illegal}\], first at row 2, column 3; .*extract"):
            read_label_map(path)
    write_label_map(path, np.zeros((4, 5), dtype=np.uint8))
    with Image.open(path) as image:
        image.convert("RGB").save(tmp_path / "colours.png")
    with pytest.raises(DataError, match=r"colours\.png: .*found mode 'RGB'"):
        read_label_map(tmp_path / "colours.png")
    noise = np.random.default_rng(0).integers(0, 21, (40, 50), dtype=np.uint8)
    write_label_map(path, noise)
    path.write_bytes(path.read_bytes()[:1200])
    with pytest.raises(DataError, match=r"a\.png: truncated or damaged label map"):
        read_label_map(path)
    path.unlink()
    with pytest.raises(DataError, match=r"a\.png: no such label map"):
        read_label_map(path)
