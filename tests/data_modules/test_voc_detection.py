from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning_fabric.utilities.apply_func import move_data_to_device
from PIL import Image

import data_modules.voc_detection as voc_detection
from data_modules.detection import DetectionBatch
from data_modules.errors import DataError
from data_modules.synthetic.voc import write_voc_world
from data_modules.voc_detection import VOCDetectionDataModule
from data_modules.voc_files import VOC_CLASSES, read_annotation


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read it, never write to it."""
    root = tmp_path_factory.mktemp("voc") / "world"
    return write_voc_world(root, train_images=16, val_images=6, test_images=10, voc2012_images=12)


@pytest.fixture
def own_world(world: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(world, tmp_path / "own"))


def make(root: Path, **options: Any) -> VOCDetectionDataModule:
    return VOCDetectionDataModule(root, **({"batch_size": 4, "seed": 0, "short_side": 120, "long_side": 180} | options))


def ids(root: Path, name: str, year: str = "VOC2007") -> list[str]:
    return (root / "VOCdevkit" / year / "ImageSets" / "Main" / f"{name}.txt").read_text().split()


def oracle_objects(root: Path, image: str, year: str = "VOC2007") -> list[tuple[list[int], str, int]]:
    """Boxes as the XML spells them, names and difficult flags, by regular expressions."""
    text = (root / "VOCdevkit" / year / "Annotations" / f"{image}.xml").read_text()
    text = re.sub(r"<part>.*?</part>", "", text, flags=re.DOTALL)
    found = []
    for entry in re.findall(r"<object>(.*?)</object>", text, flags=re.DOTALL):
        box = [int(re.search(rf"<{f}>(\d+)</{f}>", entry)[1]) for f in ("xmin", "ymin", "xmax", "ymax")]  # type: ignore[index]
        name, difficult = (re.search(rf"<{f}>(\w+)</{f}>", entry)[1] for f in ("name", "difficult"))  # type: ignore[index]
        found.append((box, name, int(difficult)))
    return found


def test_test_batches_hold_the_resized_images_and_their_objects(world: Path) -> None:
    module = make(world)
    module.setup("test")
    batches = list(module.test_dataloader())
    assert [len(b.examples) for b in batches] == [4, 4, 2]
    assert [e.image for b in batches for e in b.examples] == ids(world, "test")
    for batch in batches:
        assert isinstance(batch, DetectionBatch)
        n = len(batch.labels)
        dtypes = (torch.float32, torch.int64, torch.bool, torch.bool, torch.int64)
        columns = (batch.boxes_xyxy, batch.labels, batch.difficult, batch.crowd, batch.image_index)
        assert tuple(c.dtype for c in columns) == dtypes
        assert all(len(c) == n for c in columns)
        assert batch.scales_xy.shape == (len(batch.examples), 2)
        assert not batch.crowd.any()
        for i, (example, image) in enumerate(zip(batch.examples, batch.images, strict=True)):
            width, height = Image.open(example.path).size
            scale = min(120 / min(width, height), 180 / max(width, height))
            assert image.dtype == torch.float32
            assert image.shape[0] == 3
            assert abs(image.shape[1] - scale * height) <= 1
            assert abs(image.shape[2] - scale * width) <= 1
            assert -2.2 < image.min() < image.max() < 2.7
            assert image.std() > 0.3
            expected = oracle_objects(world, example.image)
            own = batch.image_index == i
            assert [VOC_CLASSES[k] for k in batch.labels[own]] == [name for _, name, _ in expected]
            assert batch.difficult[own].tolist() == [bool(d) for _, _, d in expected]
            edges = [[x1 - 1, y1 - 1, x2, y2] for (x1, y1, x2, y2), _, _ in expected]
            assert example.boxes_xyxy.tolist() == edges
            factor = torch.tensor([image.shape[2] / width, image.shape[1] / height])
            assert torch.allclose(batch.scales_xy[i], factor)
            assert torch.allclose(batch.boxes_xyxy[own], torch.tensor(edges) * factor.repeat(2), atol=1e-3)
    assert sum(len(b.labels) for b in batches) > 20


def test_training_batches_come_in_another_order_and_never_from_the_test_images(world: Path) -> None:
    module = make(world, flip=False)
    names = [e.image for b in module.train_dataloader() for e in b.examples]
    assert sorted(names) == ids(world, "trainval")
    assert names != ids(world, "trainval")
    assert not set(names) & set(ids(world, "test"))
    assert names == [e.image for b in make(world, flip=False).train_dataloader() for e in b.examples]
    assert names != [e.image for b in make(world, flip=False, seed=1).train_dataloader() for e in b.examples]


def test_a_resumed_loader_goes_on_with_the_next_batch(world: Path) -> None:
    def names(module: VOCDetectionDataModule) -> list[list[str]]:
        loader = module.train_dataloader()
        return [[e.image for e in batch.examples] for _ in range(2) for batch in loader]

    whole = names(make(world))
    resumed = make(world)
    resumed.start_step = 13  # of 11 batches an epoch: the third of the second epoch
    assert names(resumed)[:9] == whole[13:]
    attached = make(world)
    progress = SimpleNamespace(total=SimpleNamespace(processed=13))
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress))
    attached.trainer = SimpleNamespace(fit_loop=loop, limit_train_batches=1.0, global_rank=0, world_size=1)  # type: ignore[assignment]
    assert names(attached)[:9] == whole[13:]


def test_every_image_is_trained_on_plain_and_mirrored(world: Path) -> None:
    module = make(world, batch_size=100)
    (batch,) = module.train_dataloader()
    assert len(batch.examples) == 2 * len(module.train_examples)
    for example in module.train_examples:
        first, second = (e.boxes_xyxy for e in batch.examples if e.image == example.image)
        width = example.size_wh[0]
        assert second.tolist() == [[width - x2, y1, width - x1, y2] for x1, y1, x2, y2 in first.tolist()]


def change(root: Path, image: str, old: str, new: str, year: str = "VOC2007") -> None:
    path = root / "VOCdevkit" / year / "Annotations" / f"{image}.xml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def test_an_image_of_difficult_objects_alone_is_no_training_image_unless_wanted(own_world: Path) -> None:
    image = ids(own_world, "trainval")[0]
    change(own_world, image, "<difficult>0</difficult>", "<difficult>1</difficult>")
    kept = [e.image for e in make(own_world).train_examples]
    assert kept == [i for i in ids(own_world, "trainval") if any(not d for _, _, d in oracle_objects(own_world, i))]
    assert image not in kept
    whole = make(own_world, keep_empty_train=True).train_examples
    assert [e.image for e in whole] == ids(own_world, "trainval")
    assert whole[0].ignored.all()
    counts = make(own_world).provenance()["counts"]
    assert counts["train_images"] == 22  # as they were read
    objects = [o for i in ids(own_world, "trainval") for o in oracle_objects(own_world, i)]
    assert counts["train_objects"] == len(objects)
    assert counts["train_ignored_objects"] == sum(d for _, _, d in objects)


def test_2012_adds_images_whose_parts_are_no_objects(world: Path) -> None:
    names = [e.image for e in make(world, years="07+12").train_examples]
    assert names == ids(world, "trainval") + ids(world, "trainval", "VOC2012")
    parts = 0
    for image in ids(world, "trainval", "VOC2012"):
        year = world / "VOCdevkit" / "VOC2012"
        example, content = read_annotation(year, image)
        assert len(example.labels) == len(oracle_objects(world, image, "VOC2012"))
        assert content == (year / "Annotations" / f"{image}.xml").read_bytes()
        parts += content.count(b"<part>")
    assert parts > 0


def test_splits_for_choosing_settings(world: Path) -> None:
    module = make(world, train_split="train", eval_split="val")
    assert [e.image for e in module.train_examples] == ids(world, "train")
    assert [e.image for e in module.test_examples] == ids(world, "val")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eval_split": "val"}, "would score images that are trained on"),
        ({"eval_split": "val", "train_split": "train", "years": "07+12"}, r"years='07\+12'"),
        ({"years": "12"}, "years='12': expected one of"),
        ({"train_split": "test"}, "train_split='test'"),
        ({"eval_split": "trainval"}, "eval_split='trainval'"),
        ({"pixels": "bgr"}, "pixels='bgr'"),
        ({"short_side": 200}, "short_side=200, long_side=180"),
    ],
)
def test_contradictory_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(Path("unread"), **options)


def test_setup_reads_a_side_once_and_no_more_than_its_stage_needs(own_world: Path) -> None:
    module = make(own_world)
    module.setup("fit")
    module.setup("test")
    before = module.train_examples, module.test_examples
    module.setup()
    assert all(a is b for old, new in zip(before, (module.train_examples, module.test_examples), strict=True)
               for a, b in zip(old, new, strict=True))  # fmt: skip
    for image in ids(own_world, "trainval"):
        (own_world / "VOCdevkit" / "VOC2007" / "Annotations" / f"{image}.xml").unlink()
    scoring = make(own_world)
    scoring.setup("test")
    assert scoring.splits == ("test",)
    assert set(scoring.provenance()["counts"]) == {"test_images", "test_objects", "test_ignored_objects"}
    with pytest.raises(DataError, match=r"Annotations/\d{6}\.xml: no such file; extract the devkit"):
        make(own_world).setup("fit")


def test_an_image_in_both_lists_is_refused_on_either_side(own_world: Path) -> None:
    lists = own_world / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main"
    image = ids(own_world, "trainval")[3]
    (lists / "test.txt").write_text("\n".join([*ids(own_world, "test"), image]))
    for stage in ("fit", "test"):
        with pytest.raises(DataError, match=rf"1 images of VOC2007/\w+\.txt are in it too, '{image}' first.*scored"):
            make(own_world).setup(stage)


def test_provenance(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = make(world)
    provenance = module.provenance()
    assert provenance["dataset"] == "VOC detection"
    assert provenance["official"] is False
    files = {f["name"]: f for f in provenance["files"]}
    assert set(files) == {
        "VOC2007/trainval.txt",
        "VOC2007/trainval: Annotations/*.xml",
        "VOC2007/test.txt",
        "VOC2007/test: Annotations/*.xml",
    }
    year = world / "VOCdevkit" / "VOC2007"
    content = b"".join((year / "Annotations" / f"{image}.xml").read_bytes() for image in ids(world, "test"))
    assert files["VOC2007/test: Annotations/*.xml"]["sha256"] == hashlib.sha256(content).hexdigest()
    assert files["VOC2007/test: Annotations/*.xml"]["bytes"] == len(content)
    listed = (year / "ImageSets" / "Main" / "test.txt").read_bytes()
    assert files["VOC2007/test.txt"] == {
        "name": "VOC2007/test.txt",
        "bytes": len(listed),
        "sha256": hashlib.sha256(listed).hexdigest(),
    }
    json.dumps(provenance)
    kept = {
        name: sum(not d for i in ids(world, name) for _, _, d in oracle_objects(world, i))
        for name in ("trainval", "test")
    }
    counts = {"VOC2007/trainval": (22, kept["trainval"]), "VOC2007/test": (10, kept["test"])}
    monkeypatch.setattr(voc_detection, "OFFICIAL_COUNTS", counts)
    assert make(world).provenance()["official"] is True
    monkeypatch.setattr(voc_detection, "OFFICIAL_COUNTS", counts | {"VOC2007/test": (10, kept["test"] + 1)})
    assert make(world).provenance()["official"] is False


def test_missing_and_damaged_images(own_world: Path) -> None:
    folder = own_world / "VOCdevkit" / "VOC2007" / "JPEGImages"
    first, second, third = ids(own_world, "test")[:3]
    (folder / f"{first}.jpg").write_bytes((folder / f"{first}.jpg").read_bytes()[:-200])
    module = make(own_world, batch_size=1)
    with pytest.raises(DataError, match=rf"{first}\.jpg: truncated or damaged image .*extract the devkit"):
        next(iter(module.test_dataloader()))
    change(own_world, second, "<width>", "<width>1")
    with pytest.raises(DataError, match=rf"{second}\.jpg: the image has \d+ x \d+ pixels, its annotations say 1\d+ x"):
        make(own_world).test_dataloader().dataset[1]
    (folder / f"{third}.jpg").unlink()
    with pytest.raises(DataError, match=rf"{third}\.jpg: no such image, nor 0 others of VOC2007/test\.txt; extract"):
        make(own_world).setup("test")


def test_a_batch_moves_as_a_whole(world: Path) -> None:
    batch = next(iter(make(world).test_dataloader()))
    moved = move_data_to_device(batch, torch.device("meta"))  # as a Trainer does it
    tensors = (moved.images.values, moved.boxes_xyxy, moved.labels, moved.difficult, moved.crowd, moved.scales_xy)
    assert all(t.device.type == "meta" for t in (*tensors, moved.image_index, moved.ignored))
    assert moved.examples is batch.examples
    assert batch.ignored.tolist() == (batch.difficult | batch.crowd).tolist()


@pytest.mark.slow
def test_workers_give_the_same_batches(world: Path) -> None:
    plain, workers = make(world), make(world, num_workers=2)
    loaders = plain.train_dataloader(), workers.train_dataloader()
    assert loaders[1].persistent_workers
    for _ in range(2):
        for a, b in zip(*loaders, strict=True):
            assert torch.equal(a.images.values, b.images.values)
            assert [e.image for e in a.examples] == [e.image for e in b.examples]
