from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import data_modules.coco as coco
from data_modules.coco import COCODataModule, read_instances
from data_modules.errors import DataError
from data_modules.synthetic.coco import write_coco_world


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read it, never write to it."""
    return write_coco_world(tmp_path_factory.mktemp("coco") / "world", 0, 8, 24, 12)


@pytest.fixture
def own_world(world: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(world, tmp_path / "own"))


def make(root: Path, **options: Any) -> COCODataModule:
    return COCODataModule(root, **({"batch_size": 4, "seed": 0, "short_side": 100, "long_side": 160} | options))


def write(path: Path, raw: Any) -> Path:
    path.write_text(json.dumps(raw))
    return path


def file(root: Path, part: str) -> Path:
    return root / "annotations" / f"instances_{part}.json"


def content(root: Path, part: str) -> dict[str, Any]:
    return json.loads(file(root, part).read_text())


def image_ids(root: Path, part: str) -> list[int]:
    return [image["id"] for image in content(root, part)["images"]]


def read_ids(module: COCODataModule, side: str = "train") -> list[int]:
    return [int(e.image) for e in (module.train_examples if side == "train" else module.test_examples)]


def test_minival_batches_hold_the_resized_images_and_their_objects(world: Path) -> None:
    module = make(world)
    module.setup("test")
    raw = content(world, "minival2014")
    names = {c["id"]: c["name"] for c in raw["categories"]}
    batches = list(module.test_dataloader())
    assert [int(e.image) for b in batches for e in b.examples] == [image["id"] for image in raw["images"]]
    crowds = 0
    for batch in batches:
        assert (batch.boxes_xyxy.dtype, batch.labels.dtype, batch.crowd.dtype) == (
            torch.float32,
            torch.int64,
            torch.bool,
        )
        assert not batch.difficult.any()
        for i, (example, image) in enumerate(zip(batch.examples, batch.images, strict=True)):
            expected = [a for a in raw["annotations"] if a["image_id"] == int(example.image)]
            width, height = Image.open(example.path).size
            assert example.size_wh == (width, height)
            own = batch.image_index == i
            assert [module.class_names[k] for k in batch.labels[own]] == [names[a["category_id"]] for a in expected]
            edges = [
                [a["bbox"][0], a["bbox"][1], a["bbox"][0] + a["bbox"][2], a["bbox"][1] + a["bbox"][3]] for a in expected
            ]
            scales = torch.tensor([image.shape[2] / width, image.shape[1] / height]).repeat(2)
            assert torch.allclose(batch.boxes_xyxy[own], torch.tensor(edges).view(-1, 4) * scales, atol=1e-3)
            assert batch.crowd[own].tolist() == [bool(a["iscrowd"]) for a in expected]
            assert example.areas.tolist() == [a["area"] for a in expected]
            assert 98 <= min(image.shape[1:]) <= 100
            assert -2.2 < image.min() < image.max() < 2.7
            crowds += sum(a["iscrowd"] for a in expected)
    assert crowds > 0


def test_sparse_category_ids_become_labels_from_0_to_79(world: Path) -> None:
    module = make(world)
    assert len(module.class_names) == 80
    assert (module.class_names[0], module.class_names[11], module.class_names[79]) == (
        "person",
        "stop sign",
        "toothbrush",
    )
    assert {int(k) for e in module.test_examples for k in e.labels} <= set(range(80))
    # The order is that of the ids, whatever the order of the file.
    raw = content(world, "minival2014")
    raw["categories"] = raw["categories"][::-1]
    assert read_instances(write(world.parent / "reversed.json", raw)).names == module.class_names


def test_training_parts(world: Path) -> None:
    expected = {
        "valminusminival2014": image_ids(world, "valminusminival2014"),
        "train2014": image_ids(world, "train2014"),
        "trainval35k": image_ids(world, "train2014") + image_ids(world, "valminusminival2014"),
    }
    for part, ids in expected.items():
        module = make(world, train_split=part, keep_empty_train=True)
        assert read_ids(module) == ids
        assert not set(ids) & set(read_ids(module, "test"))
        assert read_ids(module, "test") == image_ids(world, "minival2014")
    with pytest.raises(ValueError, match="train_split='val2014': expected one of"):
        make(world, train_split="val2014")


def test_images_without_a_target_are_not_trained_on(world: Path) -> None:
    raw = content(world, "valminusminival2014")
    with_target = {a["image_id"] for a in raw["annotations"] if not a["iscrowd"]}
    ids = read_ids(make(world))
    assert ids == [image["id"] for image in raw["images"] if image["id"] in with_target]
    assert len(ids) < len(raw["images"])
    names = [int(e.image) for b in make(world, flip=False).train_dataloader() for e in b.examples]
    assert sorted(names) == sorted(ids)
    assert names != ids


def test_a_resumed_loader_goes_on_with_the_next_batch(world: Path) -> None:
    def order(module: COCODataModule) -> list[list[str]]:
        return [[e.image for e in batch.examples] for batch in module.train_dataloader()]

    whole, resumed = make(world), make(world)
    resumed.start_step = 4
    assert order(resumed) == order(whole)[4:]


def remove_parts(root: Path) -> None:
    for part in ("minival2014", "valminusminival2014"):
        file(root, part).unlink()


def test_parts_are_put_together_from_a_list_of_minival_ids(own_world: Path) -> None:
    minival, rest = image_ids(own_world, "minival2014"), image_ids(own_world, "valminusminival2014")
    before = {int(e.image): e for m in [make(own_world)] for e in m.train_examples + m.test_examples}
    remove_parts(own_world)
    with pytest.raises(
        DataError, match=r"instances_minival2014\.json: no such file, nor minival2014_ids\.txt, nor the inst"
    ):
        make(own_world).setup("test")
    (own_world / "annotations" / "minival2014_ids.txt").write_text("".join(f"{i}\n" for i in minival))
    module = make(own_world, keep_empty_train=True)
    assert read_ids(module, "test") == minival
    assert sorted(read_ids(module)) == sorted(rest)
    for example in module.train_examples + module.test_examples:
        if int(example.image) in before:
            assert np.array_equal(example.boxes_xyxy, before[int(example.image)].boxes_xyxy)
    listed = {f["name"] for f in module.provenance()["files"]}
    assert listed == {"annotations/instances_val2014.json", "annotations/minival2014_ids.txt"}
    (own_world / "annotations" / "minival2014_ids.txt").write_text(f"{minival[0]}\n999999\n1\n")
    with pytest.raises(
        DataError, match=r"minival2014_ids\.txt: image 999999 and 1 others of it are in no instances_20xx"
    ):
        make(own_world).setup("test")
    for wrong in ("", "12 12", "a b"):
        (own_world / "annotations" / "minival2014_ids.txt").write_text(wrong)
        with pytest.raises(DataError, match=r"minival2014_ids\.txt: expected distinct image ids"):
            make(own_world).setup("test")


def as_2017(root: Path) -> None:
    """Divide and name everything as COCO 2017 does: val2017 is minival, train2017 all the rest."""
    val, train = content(root, "minival2014"), content(root, "train2014")
    rest = content(root, "valminusminival2014")
    train = train | {key: train[key] + rest[key] for key in ("images", "annotations")}
    for year, part in (("val2017", val), ("train2017", train)):
        (root / year).mkdir()
        for image in part["images"]:
            old = image["file_name"]
            image["file_name"] = f"{image['id']:012d}.jpg"
            (root / old.split("_")[1] / old).rename(root / year / image["file_name"])
        file(root, year).write_text(json.dumps(part))


def test_the_names_and_division_of_2017_are_read_too(own_world: Path) -> None:
    minival, rest = image_ids(own_world, "minival2014"), image_ids(own_world, "valminusminival2014")
    as_2017(own_world)
    remove_parts(own_world)
    module = make(own_world, keep_empty_train=True)  # instances_val2014.json is there still
    assert read_ids(module, "test") == minival
    assert sorted(read_ids(module)) == sorted(rest)
    assert {e.path.parent.name for e in module.train_examples} == {"train2017"}
    assert len(list(module.test_dataloader())) == 3
    file(own_world, "val2014").unlink()
    with pytest.raises(DataError, match=r"instances_valminusminival2014\.json: no such file, nor valminus"):
        make(own_world).setup("fit")
    (own_world / "annotations" / "valminusminival2014_ids.txt").write_text(" ".join(map(str, rest)))
    assert read_ids(make(own_world, keep_empty_train=True)) == rest


def test_a_scored_image_in_a_training_part_is_refused(own_world: Path) -> None:
    raw, minival = content(own_world, "valminusminival2014"), content(own_world, "minival2014")
    raw["images"].append(minival["images"][2])
    write(file(own_world, "valminusminival2014"), raw)
    message = rf"1 images are in another part too, {minival['images'][2]['id']} first: no image may be trained on and"
    with pytest.raises(DataError, match=message):
        make(own_world).setup("fit")


def test_parts_with_other_categories_are_refused(own_world: Path) -> None:
    raw = content(own_world, "valminusminival2014")
    raw["categories"][3]["name"] = "motorbike"
    write(file(own_world, "valminusminival2014"), raw)
    with pytest.raises(DataError, match=r"valminusminival2014\.json: other categories than .*minival2014\.json"):
        make(own_world).setup("fit")


def test_setup_twice_reads_once_and_no_more_than_its_stage_needs(own_world: Path) -> None:
    file(own_world, "valminusminival2014").unlink()
    module = make(own_world)
    module.setup("test")
    before = module.test_examples
    module.setup("test")
    assert module.test_examples is before
    assert module.splits == ("test",)


def test_missing_and_damaged_images(own_world: Path) -> None:
    first, second = (image["file_name"] for image in content(own_world, "minival2014")["images"][:2])
    path = own_world / "val2014" / first
    path.write_bytes(path.read_bytes()[:-150])
    with pytest.raises(DataError, match=rf"{first}: truncated or damaged image .*extract annotations_trainval2014"):
        next(iter(make(own_world).test_dataloader()))
    (own_world / "val2014" / second).unlink()
    with pytest.raises(DataError, match=rf"no image {second} and 0 others in any of val2014, train2014, val2017"):
        make(own_world).setup("test")


def test_provenance(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    provenance = make(world).provenance()
    json.dumps(provenance)
    assert provenance["official"] is False
    for entry in provenance["files"]:
        raw = (world / entry["name"]).read_bytes()
        assert (entry["bytes"], entry["sha256"]) == (len(raw), hashlib.sha256(raw).hexdigest())
    assert {f["name"] for f in provenance["files"]} == {
        "annotations/instances_minival2014.json",
        "annotations/instances_valminusminival2014.json",
    }
    counts = provenance["counts"]
    annotations = content(world, "valminusminival2014")["annotations"]
    assert (counts["train_images"], counts["test_images"], counts["flat_boxes_left_out"]) == (24, 12, 0)
    assert counts["train_objects"] == len(annotations)
    assert counts["train_ignored_objects"] == sum(a["iscrowd"] for a in annotations)
    sizes = {"valminusminival2014": 24, "minival2014": 12, "train2014": 8}
    monkeypatch.setattr(coco, "OFFICIAL_IMAGES", sizes)
    assert make(world, train_split="trainval35k").provenance()["official"] is True
    monkeypatch.setattr(coco, "OFFICIAL_IMAGES", sizes | {"minival2014": 13})
    assert make(world).provenance()["official"] is False
