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

from data_modules import tiny_imagenet
from data_modules.errors import DataError
from data_modules.synthetic.tiny_imagenet import write_tiny_imagenet_world
from data_modules.tiny_imagenet import TinyImageNetDataModule

CLASSES, TRAIN, VAL = 6, 10, 4  # of each class


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("generated") / "tiny"
    return write_tiny_imagenet_world(root, num_classes=CLASSES, train_per_class=TRAIN, val_per_class=VAL)


@pytest.fixture
def own(world: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(world, tmp_path / "own"))


def make(root: Path, **options: Any) -> TinyImageNetDataModule:
    return TinyImageNetDataModule(root, **({"batch_size": 8, "seed": 0, "val_images": 12} | options))


def wnids(root: Path) -> list[str]:
    return (root / "tiny-imagenet-200" / "wnids.txt").read_text().split()


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).transpose(2, 0, 1)


def contents(loader: Any) -> set[bytes]:
    return {image.numpy().tobytes() for batch in loader for image in batch.images}


def test_batches_have_the_networks_format(world: Path) -> None:
    module = make(world)
    for loader, size in (
        (module.train_dataloader(), 48),
        (module.val_dataloader(), 12),
        (module.test_dataloader(), 24),
    ):
        batches = list(loader)
        assert sum(len(b.labels) for b in batches) == size
        for batch in batches:
            assert (batch.images.dtype, batch.labels.dtype) == (torch.float32, torch.int64)
            assert batch.images.shape == (len(batch.labels), 3, 64, 64)
            assert batch.labels.min() >= 0
            assert batch.labels.max() < CLASSES
            assert -2.2 < batch.images.min() < batch.images.max() < 2.7


def test_labels_follow_the_order_of_wnids_txt(world: Path) -> None:
    module = make(world, val_images=0, augment=False)
    ids = wnids(world)
    assert module.wnids == ids != sorted(ids)
    words = (world / "tiny-imagenet-200" / "words.txt").read_text().splitlines()
    named = dict(line.split("\t") for line in words)
    assert len(named) > CLASSES
    assert module.class_names == [named[wnid] for wnid in ids]
    folder = world / "tiny-imagenet-200" / "train"
    split = module.split("train")
    for position in (0, 9, 10, 37, 59):
        label, number = divmod(position, TRAIN)
        path = folder / ids[label] / "images" / f"{ids[label]}_{number}.JPEG"
        assert split.labels[position] == label
        assert np.array_equal(split.images.read([position])[0], pixels(path))


def test_testing_uses_the_annotated_val_folder(world: Path) -> None:
    rows = [line.split("\t") for line in (world / "tiny-imagenet-200/val/val_annotations.txt").read_text().splitlines()]
    batches = list(make(world, normalisation="dataset").test_dataloader())
    assert torch.cat([b.labels for b in batches]).tolist() == [wnids(world).index(row[1]) for row in rows]
    images = torch.cat([b.images for b in batches])
    for i in (0, 11, 23):
        raw = pixels(world / "tiny-imagenet-200" / "val" / "images" / rows[i][0]).astype(float)
        mean, std = np.array([0.4802, 0.4481, 0.3975]), np.array([0.2770, 0.2691, 0.2821])
        expected = (raw / 255 - mean[:, None, None]) / std[:, None, None]
        np.testing.assert_allclose(images[i].numpy(), expected, atol=1e-4)


def test_greyscale_images_become_rgb(world: Path) -> None:
    folder = world / "tiny-imagenet-200" / "train"
    grey = [p for p in folder.rglob("*.JPEG") if Image.open(p).mode == "L"]
    assert len(grey) == CLASSES
    split = make(world, val_images=0).split("train")
    image = split.images.read([7])[0]
    assert torch.equal(image[0], image[1])
    assert torch.equal(image[0], image[2])


@pytest.mark.parametrize("deep", [True, False])
def test_a_val_folder_sorted_by_class_is_read_too(world: Path, own: Path, deep: bool) -> None:
    val = own / "tiny-imagenet-200" / "val"
    rows = [line.split("\t") for line in (val / "val_annotations.txt").read_text().splitlines()]
    for name, wnid, *_ in rows:
        folder = val / wnid / "images" if deep else val / wnid
        folder.mkdir(parents=True, exist_ok=True)
        (val / "images" / name).rename(folder / name)
    (val / "images").rmdir()
    (val / "val_annotations.txt").unlink()
    a, b = (next(iter(make(root, batch_size=24).test_dataloader())) for root in (world, own))
    order = sorted(range(24), key=lambda i: (wnids(world).index(rows[i][1]), int(rows[i][0][4:-5])))
    assert torch.equal(a.images[order], b.images)
    assert torch.equal(a.labels[order], b.labels)
    make(own).provenance()


def test_cache_and_resident_give_the_same_batches(world: Path, tmp_path: Path) -> None:
    plain = make(world)
    others = [
        make(world, **o)
        for o in ({"cache_dir": tmp_path}, {"resident": True}, {"cache_dir": tmp_path, "resident": True})
    ]
    for name in ("train_dataloader", "val_dataloader", "test_dataloader"):
        loaders = [getattr(m, name)() for m in (plain, *others)]
        for _ in range(2):
            for first, *rest in zip(*loaders, strict=True):
                for batch in rest:
                    assert torch.equal(batch.images, first.images)
                    assert torch.equal(batch.labels, first.labels)
                    assert torch.equal(batch.index, first.index)
    assert len([p for p in tmp_path.iterdir() if p.is_dir()]) == 2  # train and val


def test_training_images_are_only_mirrored(world: Path) -> None:
    augmented, plain = make(world), make(world, augment=False)
    known = {b.images[i].numpy().tobytes() for b in plain.train_dataloader() for i in range(len(b.labels))}
    mirrored = 0
    for batch in augmented.train_dataloader():
        for image in batch.images:
            straight = image.numpy().tobytes() in known
            assert straight or image.flip(2).contiguous().numpy().tobytes() in known
            mirrored += not straight
    assert 10 < mirrored < 38


@pytest.mark.parametrize("resident", [False, True])
def test_no_validation_or_test_image_enters_training(world: Path, resident: bool) -> None:
    module = make(world, resident=resident, augment=False)
    train, val, test = (
        contents(loader) for loader in (module.train_dataloader(), module.val_dataloader(), module.test_dataloader())
    )
    assert (len(train), len(val), len(test)) == (48, 12, 24)
    assert not train & val
    assert not (train | val) & test


def test_splits(world: Path) -> None:
    def held_out(**options: Any) -> list[int]:
        return make(world, **options).split("val").rows.tolist()

    assert held_out() == held_out(seed=1) == held_out(num_workers=1)
    assert held_out() != held_out(split_seed=1)
    assert held_out(resplit_per_run=True) != held_out(resplit_per_run=True, seed=1)
    assert np.bincount(make(world, stratified=True).split("val").labels).tolist() == [2] * CLASSES
    module = make(world)
    first = module.split("train")
    module.setup("fit")
    assert module.split("train") is first


def test_training_goes_on_at_the_start_step(world: Path) -> None:
    whole = make(world).train_dataloader()
    expected = [b.images for _ in range(2) for b in whole]
    module = make(world)
    module.start_step = 8
    resumed = list(module.train_dataloader())
    assert len(resumed) == 4
    for a, b in zip(resumed, expected[8:], strict=True):
        assert torch.equal(a.images, b)


def test_provenance(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    provenance = make(world).provenance()
    json.dumps(provenance)
    names = [f["name"] for f in provenance["files"]]
    assert names == [f"tiny-imagenet-200/{n}" for n in ("wnids.txt", "words.txt", "val/val_annotations.txt")]
    sizes = [provenance[f"{split}_images"] for split in ("train", "val", "test")]
    assert sizes == [48, 12, 24]
    assert provenance["official"] is False
    monkeypatch.setattr(tiny_imagenet, "OFFICIAL_COUNTS", (CLASSES, 60, 24))
    assert make(world).provenance()["official"] is True


def first_wnid(root: Path) -> str:
    return wnids(root.parent)[0]


def edit(name: str, change: Callable[[str], str]) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        path = root / name.format(wnid=first_wnid(root))
        path.write_text(change(path.read_text()))

    return damage


def remove(name: str) -> Callable[[Path], None]:
    return lambda root: (root / name.format(wnid=first_wnid(root))).unlink()


def stray(root: Path) -> None:
    folder = root / "train" / first_wnid(root) / "images"
    shutil.copy(folder / f"{first_wnid(root)}_0.JPEG", folder / "other.JPEG")


BOXES = "train/{wnid}/{wnid}_boxes.txt"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove("wnids.txt"), r"wnids\.txt: no such file; extract tiny-imagenet-200\.zip again"),
        (remove("words.txt"), r"words\.txt: no such file"),
        (remove(BOXES), r"_boxes\.txt: no such file"),
        (remove("val/val_annotations.txt"), r"val_annotations\.txt: no such file"),
        (remove("train/{wnid}/images/{wnid}_3.JPEG"), r"images lacks 1 images, e\.g\. n\d+_3\.JPEG"),
        (remove("val/images/val_5.JPEG"), r"val_annotations\.txt: .*images lacks 1 images, e\.g\. val_5\.JPEG"),
        (stray, r"_boxes\.txt: .*images holds, unlisted, 1 images, e\.g\. other\.JPEG"),
        (edit("wnids.txt", lambda t: ""), r"wnids\.txt: is empty"),
        (edit("wnids.txt", lambda t: f"{t}\n{t.split()[0]}"), r"wnids\.txt: 1 ids occur twice"),
        (edit("wnids.txt", lambda t: f"../..\n{t}"), r"wnids\.txt: '\.\./\.\.' is no WordNet id"),
        (edit("words.txt", lambda t: "n00000000\tnothing\n"), r"words\.txt: has no line for n\d{8}"),
        (edit(BOXES, lambda t: t.replace("\t", " ", 1)), r"_boxes\.txt: line 1: expected 5 columns"),
        (edit(BOXES, lambda t: t + t.splitlines()[0] + "\n"), r"_boxes\.txt: lists 1 images twice"),
        (
            edit("val/val_annotations.txt", lambda t: "\n" + t + "val_9\n"),
            r"line 26: expected 6 columns, found \['val_9'\]",
        ),
        (
            edit("val/val_annotations.txt", lambda t: t.replace("\tn", "\tm", 1)),
            r"val_annotations\.txt: image val_0\.JPEG: 'm\d+' isn't in wnids\.txt",
        ),
        (lambda root: shutil.rmtree(root / "val" / "images"), r"holds no \.JPEG, and there is no val/images"),
        (lambda root: (root / "words.txt").write_bytes(b"\xff\xfe\xff"), r"words\.txt: not a readable text file"),
    ],
)
def test_damaged_files_are_named(own: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(own / "tiny-imagenet-200")
    with pytest.raises(DataError, match=message):
        make(own).setup()


@pytest.mark.parametrize("options", [{}, {"resident": True}, {"cache_dir": "cache"}])
def test_damaged_images_are_named(own: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    if "cache_dir" in options:
        options = {"cache_dir": tmp_path / "cache"}
    path = next((own / "tiny-imagenet-200" / "train").rglob("*_4.JPEG"))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=rf"{path.name}: truncated or damaged image .*extract tiny-imagenet"):
        list(make(own, val_images=0, **options).train_dataloader())
    Image.new("RGB", (64, 63)).save(path)
    with pytest.raises(DataError, match=rf"{path.name}: expected \(64, 64\) pixels, found \(64, 63\)"):
        list(make(own, val_images=0, **options).train_dataloader())


def test_impossible_arguments_are_refused(world: Path) -> None:
    with pytest.raises(ValueError, match="normalisation='cifar'"):
        make(world, normalisation="cifar")
    with pytest.raises(ValueError, match="val_images=60: there are 60 training images"):
        make(world, val_images=60).setup()


@pytest.mark.slow
def test_worker_processes_give_the_same_batches(world: Path, tmp_path: Path) -> None:
    alone = make(world).train_dataloader()
    helped = make(world, num_workers=2, cache_dir=tmp_path).train_dataloader()
    for _ in range(2):
        for a, b in zip(alone, helped, strict=True):
            assert torch.equal(a.images, b.images)
