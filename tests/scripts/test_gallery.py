"""The contact sheets: every data set has one, of the same bytes each time, and boxes are where the readers say."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_modules.errors import DataError
from data_modules.synthetic.coco import write_coco_world
from data_modules.synthetic.sbd import write_sbd_world
from data_modules.synthetic.vg150 import write_vg150_world
from data_modules.synthetic.voc import write_voc_world
from data_modules.synthetic.vrd import write_vrd_world
from data_modules.vg150 import VG150DataModule
from data_modules.voc_detection import VOCDetectionDataModule
from data_modules.voc_segmentation import VOCSegmentationDataModule
from data_modules.vrd import VRDDataModule
from experiments.drawing import COLOURS, INK, PAPER, font, wrapped
from scripts import gallery
from scripts.gallery_data import detection_pictures, relation_pictures, segmentation_pictures
from scripts.gallery_draw import Picture, draw_picture, zoomed
from scripts.gallery_sheet import Sheet, draw_sheet

NAMES = [entry.name for entry in gallery.ENTRIES]
GROUND = (120, 120, 120)


def plain(width: int = 200, height: int = 100, **content: Any) -> Picture:
    return Picture(np.full((height, width, 3), 120, dtype=np.uint8), **content)


def pixel(image: Image.Image, x: float, y: float) -> Any:
    return image.getpixel((int(x), int(y)))


# Drawing


@pytest.mark.parametrize("scale", [1, 3])
def test_a_box_is_drawn_on_its_edges(scale: int) -> None:
    boxes = np.array([[40.0, 30, 90, 70], [120, 10, 180, 50]])
    drawn = draw_picture(plain(boxes_xyxy=boxes, names=("a", "b")), (200 * scale, 100 * scale), 10)
    assert drawn.size == (200 * scale, 100 * scale)
    for colour, (x1, y1, x2, y2) in zip(COLOURS, scale * boxes, strict=False):
        for x, y in ((x1, (y1 + y2) / 2), (x2, (y1 + y2) / 2), (x2 - 5, y2), (x2 - 5, y1)):
            assert colour in (pixel(drawn, x, y), pixel(drawn, x - 1, y), pixel(drawn, x, y - 1))
        assert pixel(drawn, (x1 + x2) / 2, (y1 + y2) / 2) == GROUND
        assert pixel(drawn, x2 + 8, y2 + 8) == GROUND


def test_dashed_boxes_have_gaps() -> None:
    def share(dashed: bool) -> float:
        picture = plain(boxes_xyxy=np.array([[20.0, 20, 180, 80]]), names=("a",), dashed=(dashed,))
        row = np.asarray(draw_picture(picture, (200, 100), 10))[80, 25:175]
        return float((row == COLOURS[0]).all(axis=1).mean())

    assert share(False) == 1
    assert 0.3 < share(True) < 0.8


def test_an_arrow_points_at_its_object() -> None:
    boxes = np.array([[10.0, 60, 60, 110], [240, 60, 290, 110]])

    def ink(arrow: tuple[int, str, int]) -> list[int]:
        drawn = draw_picture(plain(300, 170, boxes_xyxy=boxes, names=("", ""), arrows=(arrow,)), (300, 170), 10)
        colour = (np.asarray(drawn)[:, 70:225] == COLOURS[arrow[0]]).all(axis=2)
        outside = np.asarray(drawn)[62:108, 242:288] if arrow[0] == 0 else np.asarray(drawn)[62:108, 12:58]
        assert (outside == COLOURS[arrow[0]]).all(axis=2).any()  # its head
        return np.flatnonzero(colour.any(axis=1)).tolist()

    there, back = ink((0, "", 1)), ink((1, "", 0))
    assert there and back
    assert max(there) < min(back) or max(back) < min(there)  # bent to different sides


def test_labels_do_not_cover_one_another_where_there_is_room() -> None:
    boxes = np.array([[150.0, 100, 250, 200], [152, 102, 252, 202], [154, 104, 254, 204]])
    picture = plain(400, 300, boxes_xyxy=boxes, names=("first", "second", "third"), arrows=((0, "near", 1),))
    drawn = np.asarray(draw_picture(picture, (400, 300), 12))
    for name, colour in zip(picture.names, COLOURS, strict=False):
        area = (drawn == colour).all(axis=2)
        label = (round(font(12).getlength(name)) + 8) * 17
        assert area.sum() > 0.55 * label  # what isn't hidden: ink of the letters
    assert (drawn == PAPER).all(axis=2).sum() > 100


def test_label_maps_show_void_background_and_classes() -> None:
    labels = np.zeros((100, 200), dtype=np.uint8)
    labels[20:80, 20:80], labels[20:80, 120:180], labels[:10] = 1, 8, 255  # two classes of one colour
    names = tuple(f"class {i}" for i in range(21))
    drawn = draw_picture(plain(labels=labels, label_names=names), (406, 100), 9)
    assert drawn.size == (406, 100)
    assert pixel(drawn, 100, 50) == GROUND  # the image itself on the left
    assert pixel(drawn, 206 + 100, 5) == PAPER
    first, second = pixel(drawn, 206 + 30, 70), pixel(drawn, 206 + 130, 70)
    assert len({first, second, pixel(drawn, 206 + 100, 50), PAPER}) == 4


def test_a_picture_is_cut_to_its_boxes() -> None:
    boxes = np.array([[300.0, 200, 340, 260], [310, 210, 330, 240]])
    image = np.random.default_rng(0).integers(0, 256, (400, 600, 3), dtype=np.uint8)
    cut = zoomed(Picture(image, boxes_xyxy=boxes, names=("a", "b")), 4 / 3)
    assert cut.boxes_xyxy is not None
    height, width = cut.image.shape[:2]
    assert width < 600 and height < 400
    assert width / height == pytest.approx(4 / 3, abs=0.02)
    for before, after in zip(boxes.astype(int), cut.boxes_xyxy.astype(int), strict=True):
        old, new = (i[b[1] : b[3], b[0] : b[2]] for i, b in ((image, before), (cut.image, after)))
        assert np.array_equal(old, new)
    whole = zoomed(Picture(image, boxes_xyxy=np.array([[0.0, 0, 600, 400]]), names=("a",)), 4 / 3)
    assert whole.image.shape == image.shape
    assert zoomed(plain(), 1).image.shape == (100, 200, 3)


def test_text_is_wrapped_and_nothing_is_cut_off() -> None:
    lines = wrapped("plain words of an ordinary caption", 90, 13)
    assert " ".join(lines) == "plain words of an ordinary caption"
    assert len(lines) > 2
    assert all(font(13).getlength(line) <= 90 for line in lines)
    pictures = (plain(caption=(("a caption in two lines or more", INK, False),)), plain(50, 100))
    sheet = draw_sheet(Sheet("Title", ("What is shown.",), pictures, 2, (120, 90)))
    pixels = np.asarray(sheet)
    assert (pixels[:, :20] == 255).all() and (pixels[:, -20:] == 255).all()
    assert (pixels[:20] == 255).all() and (pixels[-20:] == 255).all()


# From the readers


def test_boxes_come_from_the_detection_reader(tmp_path: Path) -> None:
    root = write_voc_world(tmp_path / "voc", 0, 2, 2, 6)
    module = VOCDetectionDataModule(root, 2, 0, short_side=300, long_side=500, pixels="unit")
    pictures = detection_pictures(module, 6)
    assert len(pictures) == 6
    probed = 0
    for picture, example in zip(pictures, module.test_examples, strict=True):
        assert picture.boxes_xyxy is not None
        height, width = picture.image.shape[:2]
        raw = np.asarray(Image.open(example.path).resize((width, height)), dtype=float)
        assert np.abs(raw - picture.image).mean() < 6
        scale = np.tile(np.array([width, height]) / example.size_wh, 2)
        assert np.allclose(picture.boxes_xyxy, example.boxes_xyxy * scale, atol=1e-3)
        drawn = np.asarray(draw_picture(picture, (width, height), 8))
        number = len(picture.names) - 1  # the others' edges may lie below another box or a label
        x1, y1, x2, y2 = picture.boxes_xyxy[number].round().astype(int).tolist() if number >= 0 else (0, 0, 0, 0)
        if number >= 0 and not picture.dashed[number] and y1 > 5 and y2 < height - 5:
            probed += 1
            edge = drawn[y2 - 2 : y2 + 2, x1 + 3 : x2 - 3] == COLOURS[number % len(COLOURS)]
            assert edge.all(axis=2).any(axis=0).mean() > 0.5
    assert probed


def test_relations_come_from_the_relation_readers(tmp_path: Path) -> None:
    vrd = VRDDataModule(write_vrd_world(tmp_path / "vrd", train_images=4, test_images=24), 8, 0, images="uint8")
    vg = VG150DataModule(
        write_vg150_world(tmp_path / "vg", train_images=12, test_images=24), 8, 0, val_images=0, images="uint8"
    )
    for module in (vrd, vg):
        pictures = {p.caption[0][0].split(":")[0]: p for p in relation_pictures(module, 9)}
        graphs = {g.image: g for g in module.test_graphs if g.image in pictures}
        assert len(pictures) == len(graphs) == 9
        for name, picture in pictures.items():
            graph = graphs[name]
            assert picture.arrows
            for subject, names, other in picture.arrows:
                wanted = {tuple(row) for row in graph.triplets.tolist()}
                kinds = [picture.names[end].split(" / ") for end in (subject, other)]
                for predicate in names.split(", "):
                    assert any(
                        module.object_names[s] in kinds[0]
                        and module.predicate_names[p] == predicate
                        and module.object_names[o] in kinds[1]
                        for s, p, o in wanted
                    )


def test_relation_boxes_lie_on_the_drawn_objects(tmp_path: Path) -> None:
    """Objects are more colourful than the ground: inside a box, just beyond its edges, colour begins."""
    module = VRDDataModule(write_vrd_world(tmp_path / "vrd", train_images=4, test_images=24), 8, 0, images="uint8")
    better = 0
    pictures = relation_pictures(module, 9)
    for picture in pictures:
        assert picture.boxes_xyxy is not None
        colourful = np.ptp(picture.image.astype(int), axis=2)
        x1, y1, x2, y2 = picture.boxes_xyxy[0].round().astype(int)
        shifted = colourful[max(y1 - (y2 - y1), 0) : y1, x1:x2]
        better += not shifted.size or colourful[y1:y2, x1:x2].mean() > shifted.mean() + 10
    assert better >= 7


def test_label_maps_come_from_both_sources(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    root = write_sbd_world(tmp_path / "sbd", 0, 8, 3, 2, 12)
    module = VOCSegmentationDataModule(root, 4, 0, input_size=None, pixels="unit")
    pictures = segmentation_pictures(module, 6)
    assert [p.caption[0][0].split(": ")[1] for p in pictures] == ["VOC, void white", "SBD, without void"] * 3
    for picture in pictures:
        assert picture.labels is not None
        assert picture.labels.shape == picture.image.shape[:2]
        assert (255 in picture.labels) == ("void white" in picture.caption[0][0])


# The command


def test_sheets_are_the_same_to_the_byte(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("first", "second"):
        assert gallery.main(["--out", str(tmp_path / folder), "--only", "cifar100_noisy", "coco"]) == 0
    printed = capsys.readouterr().out.split()
    assert printed == [str(tmp_path / f / f"{n}.jpg") for f in ("first", "second") for n in ("coco", "cifar100_noisy")]
    for name in ("coco", "cifar100_noisy"):
        first, second = ((tmp_path / folder / f"{name}.jpg").read_bytes() for folder in ("first", "second"))
        assert first == second
        assert Image.open(io.BytesIO(first)).width > 1000


def test_the_default_folder_is_that_of_generated_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENERATED_DIR", str(tmp_path / "made"))
    assert gallery.main(["--only", "coco"]) == 0
    assert [p.name for p in (tmp_path / "made" / "gallery").iterdir()] == ["coco.jpg"]


def test_real_data_is_drawn_where_it_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_coco_world(tmp_path / "data" / "coco", 0, 2, 4, 3)
    write_vrd_world(tmp_path / "data" / "vrd", train_images=4, test_images=12, with_images=False)
    arguments = [
        "--data-root",
        str(tmp_path / "data"),
        "--out",
        str(tmp_path / "out"),
        "--only",
        "coco",
        "vrd",
        "mit67",
    ]
    assert gallery.main(arguments) == 0
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"coco.jpg", "vrd.jpg"}
    assert "mit67: left out: " in capsys.readouterr().out
    vrd = next(entry for entry in gallery.ENTRIES if entry.name == "vrd")
    sheet = gallery.sheet_of(vrd, tmp_path / "data" / "vrd", "Real data", may_lack_images=True)
    assert sheet.lines[0].endswith("The images are missing.")
    assert all((picture.image == 225).all() for picture in sheet.pictures)
    with pytest.raises(DataError):
        gallery.sheet_of(vrd, tmp_path / "data" / "vrd", "Real data")
    assert gallery.main([*arguments[:-3], "mit67"]) == 1
    with pytest.raises(SystemExit):
        gallery.main([*arguments, "--overview", str(tmp_path / "overview.jpg")])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:VOC and SBD label")
def test_every_data_set_has_a_sheet_and_all_are_in_the_overview(tmp_path: Path) -> None:
    overview = tmp_path / "overview.jpg"
    assert gallery.main(["--out", str(tmp_path / "sheets"), "--overview", str(overview)]) == 0
    assert sorted(p.stem for p in (tmp_path / "sheets").iterdir()) == sorted(NAMES)
    assert sorted(name for row in gallery.OVERVIEW_ROWS for name in row) == sorted(NAMES)
    wanted = "vrd vg150 vg200 vg_proposals openimages voc_detection voc_segmentation coco cifar10 cifar100 "
    assert set(NAMES) == set((wanted + "cifar100_noisy tiny_imagenet mit67").split())
    assert overview.stat().st_size < 300_000
    for path in (tmp_path / "sheets").iterdir():
        pixels = np.asarray(Image.open(path))
        assert min(pixels.shape[:2]) > 900
        assert pixels.std() > 30
