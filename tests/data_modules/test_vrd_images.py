"""VRD with pixels: the oddities of its image files, mirroring, resizing and damaged files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data_modules.errors import DataError
from data_modules.scene_graph import ImageRelationBatch, RelationBatch
from data_modules.vrd import VRDDataModule

SIZE = (50, 30)
# Annotated name, name on the disk, format of its content; the release has all of these cases.
FILES = [
    ("1_o.jpg", "1_o.jpg", "PNG"),
    ("2_o.png", "2_o.png", "PNG"),
    ("3_o.jpg", "3_o.gif", "GIF"),
    ("4_b.jpg", "4_b.jpg", "PNG"),
]


def box(image: int) -> tuple[int, int, int, int]:
    """The subject's box, counted from 1, the last column and row included; the first one fills a corner."""
    return (1, 1, 10, 12) if image == 0 else (5 + image, 3, 20, 30)


def picture(image: int) -> Image.Image:
    """A black image, white where the subject's box is."""
    pixels = np.zeros((SIZE[1], SIZE[0], 3), dtype=np.uint8)
    x1, y1, x2, y2 = box(image)
    pixels[y1 - 1 : y2, x1 - 1 : x2] = 255
    return Image.fromarray(pixels)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "vrd"
    (folder / "json_dataset").mkdir(parents=True)
    for name, content in (("objects", ["a", "b"]), ("predicates", ["on"])):
        (folder / "json_dataset" / f"{name}.json").write_text(json.dumps(content))
    for side in ("train", "test"):
        images = folder / "sg_dataset" / f"sg_{side}_images"
        images.mkdir(parents=True)
        annotations = {}
        for i, (name, file, kind) in enumerate(FILES):
            x1, y1, x2, y2 = box(i)
            subject = {"category": 0, "bbox": [y1, y2, x1, x2]}
            relation = {"predicate": 0, "subject": subject, "object": {"category": 1, "bbox": [1, 30, 1, 50]}}
            annotations[f"{side}{name}"] = [relation]
            later = {"save_all": True, "append_images": [Image.new("RGB", SIZE, "red")]} if kind == "GIF" else {}
            picture(i).save(images / f"{side}{file}", kind, **later)
        (folder / "json_dataset" / f"annotations_{side}.json").write_text(json.dumps(annotations))
    return folder


def make(root: Path, **options: Any) -> VRDDataModule:
    defaults: dict[str, Any] = {"batch_size": 8, "seed": 0, "images": "uint8"}
    return VRDDataModule(root, **(defaults | options))


def white(image: torch.Tensor) -> list[int]:
    """The box around white pixels, counted from 1, the last column and row included."""
    rows, columns = (image.min(dim=0).values > 200).nonzero().T
    return [int(columns.min()) + 1, int(rows.min()) + 1, int(columns.max()) + 1, int(rows.max()) + 1]


@pytest.mark.parametrize("side", ["train", "test"])
def test_pixels_are_those_of_the_boxes(root: Path, side: str) -> None:
    module = make(root)
    (batch,) = module.train_dataloader() if side == "train" else module.test_dataloader()
    assert isinstance(batch, ImageRelationBatch)
    assert batch.images.values.dtype == torch.uint8
    assert batch.sizes_wh.tolist() == [list(SIZE)] * 4
    assert len(batch.relations) == 4
    assert sorted(g.image for g in batch.graphs) == [f"{side}{name}" for name, _, _ in FILES]
    for i, (graph, image) in enumerate(zip(batch.graphs, batch.images, strict=True)):
        own = batch.boxes_xyxy[batch.image_index == i]
        assert white(image) == own[0].tolist() == list(box([f"{side}{n}" for n, _, _ in FILES].index(graph.image)))


def test_mirrored_pixels_are_those_of_mirrored_boxes(root: Path) -> None:
    (batch,) = make(root, flip=True).train_dataloader()
    assert len(batch.graphs) == 8
    for i, image in enumerate(batch.images):
        assert white(image) == batch.boxes_xyxy[batch.image_index == i][0].tolist()
    assert len({tuple(white(image)) for image in batch.images}) == 8


def test_resized_and_scaled_pixels(root: Path) -> None:
    module = make(root, images="torchvision", image_sides=(60, 80), batch_size=4)
    (batch,) = module.test_dataloader()
    assert batch.images.values.dtype == torch.float32
    assert batch.images.shapes == ((3, 48, 80),) * 4
    for i, image in enumerate(batch.images):
        factor = 80 / float(batch.sizes_wh[i, 0])
        x1, y1, x2, y2 = ((batch.boxes_xyxy[batch.image_index == i][0] - torch.tensor([1, 1, 0, 0])) * factor).tolist()
        inside = image[:, round(y1) + 1 : round(y2) - 1, round(x1) + 1 : round(x2) - 1]
        assert inside.amin() > 2  # (1 - mean) / std


def test_a_cache_gives_the_same_pixels(root: Path, tmp_path: Path) -> None:
    options = {"flip": True, "image_sides": (60, 80)}
    plain, cached = make(root, **options), make(root, image_cache=tmp_path / "cache", **options)
    for a, b in zip(plain.train_dataloader(), cached.train_dataloader(), strict=True):
        assert [g.image for g in a.graphs] == [g.image for g in b.graphs]
        assert torch.equal(a.images.values, b.images.values)
    shutil.rmtree(root / "sg_dataset" / "sg_test_images")
    with pytest.raises(DataError, match="no such image"):
        make(root, image_cache=tmp_path / "cache", **options).test_dataloader()


def test_held_out_images_lie_among_the_training_images(root: Path) -> None:
    module = make(root, train_split="held_in", eval_split="held_out", held_out_images=2)
    (batch,) = module.test_dataloader()
    assert [g.image for g in batch.graphs] == ["train3_o.jpg", "train4_b.jpg"]
    assert white(batch.images[0]) == list(box(2))


def test_damaged_images_are_named(root: Path) -> None:
    module = make(root)
    module.setup()
    folder = root / "sg_dataset" / "sg_test_images"
    content = (folder / "test1_o.jpg").read_bytes()
    (folder / "test1_o.jpg").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"test1_o\.jpg: truncated or damaged image .*sg_dataset\.zip"):
        list(module.test_dataloader())
    Image.new("RGB", (9, 9)).save(folder / "test1_o.jpg", "PNG")
    with pytest.raises(DataError, match=r"test1_o\.jpg: 9 x 9 pixels don't fit the annotated size \(50, 30\)"):
        list(module.test_dataloader())
    (folder / "test1_o.jpg").write_bytes(content)
    (folder / "test3_o.gif").unlink()
    with pytest.raises(DataError, match=r"test3_o\.jpg: no such image, nor one of that stem"):
        list(module.test_dataloader())


def test_pixels_need_sizes_and_no_pixels_no_images(root: Path) -> None:
    with pytest.raises(ValueError, match="image_size='box_extent' is for use without images"):
        make(root, image_size="box_extent")
    with pytest.raises(ValueError, match="images='jpeg'"):
        make(root, images="jpeg")
    (batch,) = make(root, images="none").test_dataloader()
    assert type(batch) is RelationBatch


@pytest.mark.slow
def test_worker_processes_give_the_same_pixels(vrd_world: Path) -> None:
    options: dict[str, Any] = {"flip": True, "image_sides": (60, 90), "batch_size": 7}
    alone, helped = make(vrd_world, **options), make(vrd_world, num_workers=2, **options)
    loaders = alone.train_dataloader(), helped.train_dataloader()
    for _ in range(2):
        for a, b in zip(*loaders, strict=True):
            assert torch.equal(a.boxes_xyxy, b.boxes_xyxy)
            assert torch.equal(a.relations, b.relations)
            assert torch.equal(a.images.values, b.images.values)


@pytest.mark.real_data
def test_real_images(data_root: Path, tmp_path: Path) -> None:
    """The 60 test images that are at hand, with the release's annotations of them."""
    folder = data_root / "vrd" / "sg_dataset" / "sg_test_images"
    shutil.copytree(data_root / "vrd" / "json_dataset", tmp_path / "json_dataset")
    (tmp_path / "sg_dataset").mkdir()
    (tmp_path / "sg_dataset" / "sg_test_images").symlink_to(folder)
    path = tmp_path / "json_dataset" / "annotations_test.json"
    whole = json.loads(path.read_text())
    names = sorted(p.name for p in folder.iterdir())
    path.write_text(json.dumps({name: whole[name] for name in names}))
    module = VRDDataModule(tmp_path, 16, 0, images="torchvision", image_sides=(600, 1000))
    module.setup("test")  # the training images aren't there
    seen = 0
    for batch in module.test_dataloader():
        assert isinstance(batch, ImageRelationBatch)
        assert -2.2 < float(batch.images.values.min()) < float(batch.images.values.max()) < 2.7
        for i, image in enumerate(batch.images):
            height, width = image.shape[1:]
            assert min(height, width) == 600 or max(height, width) == 1000
            assert width / height == pytest.approx(float(batch.sizes_wh[i, 0] / batch.sizes_wh[i, 1]), rel=0.01)
            seen += 1
    assert seen == len(names) >= 60
