from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from data_modules.errors import DataError
from data_modules.mit67 import OFFICIAL_SHA256, MIT67DataModule, read_lists
from data_modules.scene_graph import RaggedImages
from data_modules.synthetic.mit67 import write_mit67_world

MEAN, STD = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("generated") / "mit67"
    return write_mit67_world(root, num_classes=4, train_per_class=6, test_per_class=3, short_side=40)


@pytest.fixture
def own(world: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(world, tmp_path / "own"))


def make(root: Path, **options: Any) -> MIT67DataModule:
    return MIT67DataModule(root, **({"batch_size": 5, "seed": 0} | options))


def listed(root: Path, name: str) -> list[str]:
    return (root / f"{name}Images.txt").read_text().split("\n")


def test_crops_have_the_networks_format(world: Path) -> None:
    module = make(world, size="crop224", val_images=6)
    for loader, sizes in (
        (module.train_dataloader(), [5, 5, 5, 3]),
        (module.val_dataloader(), [5, 1]),
        (module.test_dataloader(), [5, 5, 2]),
    ):
        batches = list(loader)
        assert [len(b.labels) for b in batches] == sizes
        for batch in batches:
            assert (batch.images.dtype, batch.labels.dtype) == (torch.float32, torch.int64)
            assert batch.images.shape == (len(batch.labels), 3, 224, 224)
            assert batch.labels.min() >= 0
            assert batch.labels.max() < 4
            assert -2.2 < batch.images.min() < batch.images.max() < 2.7


def test_whole_images_are_not_padded(world: Path) -> None:
    module = make(world, size="short600")
    for batch in module.test_dataloader():
        assert isinstance(batch.images, RaggedImages)
        assert len(batch.images) == len(batch.labels)
        for image in batch.images:
            assert image.dtype == torch.float32
            assert min(image.shape[1:]) == 600
            assert max(image.shape[1:]) <= 900
        assert batch.images.values.numel() == sum(3 * h * w for _, h, w in batch.images.shapes)
        assert len(set(batch.images.shapes)) > 1


@pytest.mark.parametrize("size", ["crop224", "short600"])
def test_the_evaluated_pixels_are_the_files(world: Path, size: Any) -> None:
    names = listed(world, "Test")
    classes = sorted({name.split("/")[0] for name in listed(world, "Train")})
    (batch,) = make(world, size=size, batch_size=12).test_dataloader()
    steps = [v2.Resize(256), v2.CenterCrop(224)] if size == "crop224" else [v2.Resize(600, max_size=1000)]
    for name, image, label in zip(names, batch.images, batch.labels, strict=True):
        pixels = np.array(Image.open(world / "Images" / name).convert("RGB"))
        raw = v2.Compose(steps)(torch.from_numpy(pixels).permute(2, 0, 1))
        expected = (raw.numpy() - MEAN[:, None, None]) / STD[:, None, None]
        np.testing.assert_allclose(image.numpy(), expected, atol=1e-5)
        assert label == classes.index(name.split("/")[0])


def test_a_detector_may_want_blue_first(world: Path) -> None:
    rgb, bgr = (make(world, pixels=p).split("test").images.read([0])[0] for p in ("unit", "relnet"))
    assert torch.equal(rgb, bgr)  # decoded alike, scaled apart
    first, second = (next(iter(make(world, pixels=p).test_dataloader())).images[0] for p in ("unit", "relnet"))
    mean = torch.tensor([103.06, 115.90, 123.15]).view(3, 1, 1)
    torch.testing.assert_close(second, first.flip(0) * 255 - mean, rtol=1e-5, atol=1e-3)


def test_training_images_are_mirrored_and_cropped_at_random(world: Path) -> None:
    module = make(world, size="crop224")
    loader = module.train_dataloader()
    epochs = [{int(i): image for b in loader for i, image in zip(b.index, b.images, strict=True)} for _ in range(2)]
    assert epochs[0].keys() == epochs[1].keys() == set(range(24))
    assert sum(torch.equal(epochs[0][i], epochs[1][i]) for i in range(24)) < 5
    again = {
        int(i): image
        for b in make(world, size="crop224", batch_size=3).train_dataloader()
        for i, image in zip(b.index, b.images, strict=True)
    }
    assert all(torch.equal(again[i], epochs[0][i]) for i in range(24))
    # Every crop lies in its resized image, mirrored or not.
    plain = module.split("train").images.read(range(24))
    for i, raw in enumerate(plain[:6]):
        crop = torch.round(epochs[0][i] * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1))
        height, width = raw.shape[1] - 224, raw.shape[2] - 224
        found = any(
            torch.equal(raw[:, y : y + 224, x : x + 224], c)
            for c in (crop.to(torch.uint8), crop.flip(2).to(torch.uint8))
            for y in range(height + 1)
            for x in range(width + 1)
            if torch.equal(raw[:, y, x : x + 224], c[:, 0])
        )
        assert found


@pytest.mark.parametrize("size", ["crop224", "short600"])
def test_the_cache_gives_the_same_batches(world: Path, tmp_path: Path, size: Any) -> None:
    plain, cached = make(world, size=size), make(world, size=size, cache_dir=tmp_path, num_workers=0)
    for name in ("train_dataloader", "test_dataloader"):
        for a, b in zip(getattr(plain, name)(), getattr(cached, name)(), strict=True):
            assert torch.equal(a.labels, b.labels)
            assert all(torch.equal(x, y) for x, y in zip(a.images, b.images, strict=True))


def test_a_resident_set_needs_one_size(world: Path) -> None:
    with pytest.raises(ValueError, match="resident=True needs images of one size"):
        make(world, resident=True).train_dataloader()


def test_the_lists_decide_and_no_test_image_enters_training(world: Path) -> None:
    module = make(world, size="crop224", val_images=6)
    train, test = listed(world, "Train"), listed(world, "Test")
    assert (len(train), len(test)) == (24, 12)
    assert len(list((world / "Images").rglob("*.jpg"))) > 36  # others are in neither list
    used = {module.split("train").images.names[row] for row in module.split("train").rows}
    held_out = {module.split("val").images.names[row] for row in module.split("val").rows}
    assert used | held_out == {f"Images/{name}" for name in train}
    assert not used & held_out
    assert module.split("test").images.names == tuple(f"Images/{name}" for name in test)
    assert not (used | held_out) & set(module.split("test").images.names)
    assert module.split("val").rows.tolist() == make(world, val_images=6, seed=3).split("val").rows.tolist()
    assert make(world).val_dataloader() == []
    first = module.split("train")
    module.setup("test")
    assert module.split("train") is first


def test_class_names_are_sorted(world: Path) -> None:
    module = make(world)
    assert module.class_names == sorted({name.split("/")[0] for name in listed(world, "Train")})
    assert module.num_classes == 4


def test_training_goes_on_at_the_start_step(world: Path) -> None:
    loader = make(world, size="crop224").train_dataloader()
    expected = [b.images for _ in range(2) for b in loader]
    module = make(world, size="crop224")
    module.start_step = 7
    for a, b in zip(module.train_dataloader(), expected[7:], strict=True):
        assert torch.equal(a.images, b)


def test_provenance(world: Path) -> None:
    provenance = make(world, val_images=4).provenance()
    json.dumps(provenance)
    assert {f["name"] for f in provenance["files"]} == set(OFFICIAL_SHA256)
    assert provenance["official"] is False
    assert [provenance[f"{s}_images"] for s in ("train", "val", "test")] == [20, 4, 12]


def test_lines_may_end_in_any_way(world: Path, own: Path) -> None:
    for name in OFFICIAL_SHA256:
        path = own / name
        path.write_bytes(path.read_text().replace("\n", " \r\n").encode() + b"\r\n\r\n")
    assert read_lists(own)[0][0] == read_lists(world)[0][0]


def edit(name: str, change: Callable[[list[str]], list[str]]) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        path = root / f"{name}Images.txt"
        path.write_text("\n".join(change(path.read_text().split("\n"))))

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda r: (r / "TrainImages.txt").unlink(), r"TrainImages\.txt: no such file; fetch TrainImages\.txt"),
        (lambda r: (r / "TestImages.txt").write_text("\n\n"), r"TestImages\.txt: lists no images"),
        (lambda r: (r / "TestImages.txt").write_bytes(b"\xff\xfe"), r"TestImages\.txt: not a readable text file"),
        (edit("Train", lambda n: [n[0], "../secret.jpg"]), r"line 2: expected category/file, found '\.\./secret\.jpg'"),
        (edit("Train", lambda n: [n[0], "", "/etc/passwd"]), r"line 3: expected category/file, found '/etc/passwd'"),
        (edit("Train", lambda n: ["a\\b.jpg", *n]), r"line 1: expected category/file"),
        (edit("Train", lambda n: [*n, n[0]]), r"TrainImages\.txt: lists 1 images twice"),
        (edit("Test", lambda n: [*n, "elsewhere/a.jpg"]), r"'elsewhere/a\.jpg': no training image is of this category"),
        (lambda r: shutil.rmtree(r / "Images"), r"lacks 24 of 24 listed images, e\.g\. 'Images/.*; extract indoorCVPR"),
        (lambda r: next((r / "Images").rglob("*_0001_*.jpg")).unlink(), r"lacks 1 of 24 listed images"),
    ],
)
def test_damaged_lists_are_named(own: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(own)
    with pytest.raises(DataError, match=message):
        make(own).setup()


def test_an_image_in_both_lists_is_refused(own: Path) -> None:
    both = listed(own, "Train")[3]
    (own / "TestImages.txt").write_text("\n".join([*listed(own, "Test"), both]))
    with pytest.raises(DataError, match=rf"TestImages\.txt: {both!r} is a training image too"):
        make(own).setup()


def test_a_truncated_image_is_named(own: Path) -> None:
    path = own / "Images" / listed(own, "Test")[4]
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=rf"{path.name}: truncated or damaged image .*extract indoorCVPR_09\.tar"):
        list(make(own, size="crop224").test_dataloader())


def test_impossible_arguments_are_refused(world: Path) -> None:
    with pytest.raises(ValueError, match="size='crop'"):
        make(world, size="crop")
    with pytest.raises(ValueError, match="pixels='rgb'"):
        make(world, pixels="rgb")
    with pytest.raises(ValueError, match="val_images=24: there are 24 training images"):
        make(world, val_images=24).setup()


@pytest.mark.real_data
def test_the_official_lists(data_root: Path) -> None:
    root = data_root / "mit67"
    if not (root / "TrainImages.txt").is_file():
        pytest.skip("DATA_ROOT holds no mit67 lists")
    (train, train_labels), (test, test_labels), classes = read_lists(root)
    assert (len(train), len(test), len(classes)) == (5360, 1340, 67)
    assert (classes[0], classes[-1]) == ("airport_inside", "winecellar")
    # Not exactly 80 and 20 of each.
    assert (np.bincount(train_labels).min(), np.bincount(train_labels).max()) == (77, 83)
    assert (np.bincount(test_labels).min(), np.bincount(test_labels).max()) == (17, 23)
    assert sum(" " in name for name in train + test) == 6


@pytest.mark.real_data
def test_images_named_by_the_official_lists(data_root: Path, tmp_path: Path) -> None:
    root = data_root / "mit67"
    if not (root / "TrainImages.txt").is_file():
        pytest.skip("DATA_ROOT holds no mit67 lists")
    for name in OFFICIAL_SHA256:
        shutil.copy(root / name, tmp_path / name)
    (train, _), (test, _), _ = read_lists(tmp_path)
    picture = tmp_path / "picture.png"
    Image.new("L", (30, 20), 7).save(picture)
    for name in train + test:
        path = tmp_path / "Images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.hardlink_to(picture)
    module = make(tmp_path, size="crop224")
    assert module.provenance()["official"] is True
    assert len(next(iter(module.train_dataloader())).labels) == 5
    assert len(module.test_dataloader()) == 268
