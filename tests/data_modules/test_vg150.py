from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.callbacks import ModelCheckpoint

from data_modules.errors import DataError
from data_modules.scene_graph import ImageRelationBatch, RelationBatch, SceneGraph
from data_modules.synthetic.vg150 import write_vg150_world
from data_modules.vg150 import VG150DataModule, without_apart


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vg150_world(tmp_path_factory.mktemp("vg150") / "w", train_images=40, test_images=24)


@pytest.fixture
def own_world(world: Path, tmp_path: Path) -> Path:
    """A copy of the generated world that a test may damage."""
    return Path(shutil.copytree(world, tmp_path / "own"))


def make(root: Path, **options: Any) -> VG150DataModule:
    module = VG150DataModule(root, **({"batch_size": 4, "seed": 0, "val_images": 9} | options))
    module.setup()
    return module


def by_hand(root: Path, split: int) -> list[tuple[str, list[list[int]], list[int], list[list[int]]]]:
    """Name, boxes, labels and relations of the images of a split that have relations, with plain loops."""
    entries = json.loads((root / "image_data.json").read_text())
    names = [f"{e['image_id']}.jpg" for e in entries if e["image_id"] not in (1592, 1722, 4616, 4617)]
    with h5py.File(root / "VG-SGG.h5") as file:
        data = {key: file[key][()] for key in file}
    result = []
    for i, name in enumerate(names):
        first, last = int(data["img_to_first_box"][i]), int(data["img_to_last_box"][i])
        if data["split"][i] != split or data["img_to_first_rel"][i] < 0:
            continue
        boxes = []
        for x, y, w, h in data["boxes_1024"][first : last + 1].tolist():
            x1, y1 = int(x - w / 2), int(y - h / 2)
            boxes.append([x1, y1, x1 + w, y1 + h])
        rows = range(data["img_to_first_rel"][i], data["img_to_last_rel"][i] + 1)
        pairs = data["relationships"].tolist()
        relations = [[pairs[r][0] - first, int(data["predicates"][r, 0]) - 1, pairs[r][1] - first] for r in rows]
        result.append((name, boxes, [int(v) - 1 for v in data["labels"][first : last + 1, 0]], relations))
    return result


def listed(graphs: list[SceneGraph]) -> list[tuple[str, list[list[int]], list[int], list[list[int]]]]:
    return [(g.image, g.boxes_xyxy.tolist(), g.labels.tolist(), g.relations.tolist()) for g in graphs]


def test_splits_are_those_of_neural_motifs(world: Path) -> None:
    module = make(world)
    train = by_hand(world, 0)
    assert listed(module.val_graphs) == train[:9]
    assert listed(module.train_graphs) == train[9:]
    assert listed(module.test_graphs) == by_hand(world, 2)
    assert len(train) < 40  # some have no relation
    assert listed(make(world, val_images=0).train_graphs) == train
    assert make(world, val_images=0).val_dataloader() == []


def test_images_without_relations_are_trained_on_if_wanted(world: Path) -> None:
    some, more = make(world), make(world, keep_empty_train=True)
    added = [g for g in more.train_graphs if not len(g.relations)]
    assert len(added) > 0
    assert all(len(g.labels) for g in added)  # but never those without boxes
    assert [g.image for g in more.train_graphs if len(g.relations)] == [g.image for g in some.train_graphs]
    assert listed(more.val_graphs) == listed(some.val_graphs)
    assert listed(more.test_graphs) == listed(some.test_graphs)


def test_setup_twice_gives_the_same_split_and_no_image_is_in_two(world: Path) -> None:
    module = VG150DataModule(world, batch_size=4, seed=0, val_images=9)
    module.setup("fit")
    first = module.train_graphs
    module.setup("fit")
    module.setup("test")
    assert module.train_graphs is first
    assert listed(make(world, seed=5).train_graphs) == listed(first)  # the run's seed doesn't matter
    sides = [{g.image for g in side} for side in (first, module.val_graphs, module.test_graphs)]
    assert len(set.union(*sides)) == sum(map(len, sides))
    with pytest.raises(ValueError, match="val_images=40: there are 37 training images with relations"):
        make(world, val_images=40)


def test_relations_between_boxes_apart_are_dropped_where_boxes_are_detected(world: Path) -> None:
    whole, some = make(world), make(world, drop_apart_train=True)
    expected = []
    for name, boxes, labels, relations in by_hand(world, 0)[9:]:
        kept = []
        for s, p, o in relations:
            (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = boxes[s], boxes[o]
            if min(ax2, bx2) - max(ax1, bx1) + 1 > 0 and min(ay2, by2) - max(ay1, by1) + 1 > 0:
                kept.append([s, p, o])
        if kept:
            expected.append((name, boxes, labels, kept))
    assert listed(some.train_graphs) == expected
    assert sum(len(r[3]) for r in expected) < sum(len(g.relations) for g in whole.train_graphs)
    assert listed(some.val_graphs) == listed(whole.val_graphs)
    assert listed(some.test_graphs) == listed(whole.test_graphs)
    every = make(world, drop_apart_train=True, keep_empty_train=True)  # neural-motifs drops these too
    assert {g.image for g in some.train_graphs} <= {g.image for g in every.train_graphs}
    assert all(len(g.relations) for g in every.train_graphs)


def test_boxes_that_share_their_border_overlap() -> None:
    boxes = np.array([[0, 0, 9, 9], [9, 9, 20, 20], [10, 0, 20, 9], [0, 10, 9, 20]], dtype=np.float32)
    relations = np.array([[0, 0, 1], [0, 1, 2], [3, 2, 0], [0, 3, 0], [2, 4, 1]])
    graph = SceneGraph("a.jpg", (30, 30), boxes, np.zeros(4, dtype=np.int64), relations)
    assert without_apart(graph).relations[:, 1].tolist() == [0, 3, 4]
    assert without_apart(without_apart(graph)).relations.shape == (3, 3)


def test_the_first_images_alone(world: Path) -> None:
    module = make(world, max_images=20)
    train = by_hand(world, 0)
    assert (listed(module.val_graphs), listed(module.train_graphs)) == (train[:9], train[9:20])
    assert listed(module.test_graphs) == by_hand(world, 2)[:20]
    with pytest.raises(ValueError, match="max_images=0"):
        make(world, max_images=0)


def test_an_image_listed_twice_is_found(own_world: Path) -> None:
    path = own_world / "image_data.json"
    entries = json.loads(path.read_text())
    entries[-1]["image_id"] = entries[0]["image_id"]
    path.write_text(json.dumps(entries))
    with pytest.raises(DataError, match=r"image_data\.json: entry \d+: image_id 1500 occurs twice"):
        make(own_world)


def test_frames(world: Path) -> None:
    sizes = {
        f"{e['image_id']}.jpg": (e["width"], e["height"]) for e in json.loads((world / "image_data.json").read_text())
    }
    for square, own in zip(make(world).test_graphs, make(world, box_frame="image").test_graphs, strict=True):
        assert square.size_wh is not None
        assert max(square.size_wh) == 1024
        assert own.size_wh == sizes[own.image]
        np.testing.assert_allclose(square.boxes_xyxy, own.boxes_xyxy / max(own.size_wh) * 1024, rtol=1e-5)
        assert (own.boxes_xyxy[:, :2] >= 0).all()
        assert (own.boxes_xyxy[:, 2:] <= np.array(own.size_wh) + 1).all()
    with pytest.raises(ValueError, match="box_frame='512'"):
        make(world, box_frame="512")


def test_boxes_trained_on_are_cut_at_the_borders(own_world: Path) -> None:
    with h5py.File(own_world / "VG-SGG.h5", "r+") as file:
        boxes = file["boxes_1024"][()]
        boxes[:, 2:] += 200
        file["boxes_1024"][...] = boxes
    for clip in (True, False):
        module = make(own_world, clip_train_boxes=clip, batch_size=64)
        (batch,) = module.train_dataloader()
        ends = batch.boxes_xyxy[:, 2:] - batch.sizes_wh[batch.image_index]
        assert bool((ends > 0).any()) is not clip
        (scored,) = module.test_dataloader()
        assert (scored.boxes_xyxy[:, 2:] > scored.sizes_wh[scored.image_index]).any()


def test_training_batches(world: Path) -> None:
    module = make(world)
    graphs = {g.image: g for g in module.train_graphs}
    seen = []
    for batch in module.train_dataloader():
        assert type(batch) is RelationBatch
        assert (batch.boxes_xyxy.dtype, batch.labels.dtype, batch.relations.dtype) == (
            torch.float32,
            torch.int64,
            torch.int64,
        )
        assert batch.boxes_xyxy.min() >= 0
        assert batch.boxes_xyxy.max() <= 1024
        assert (batch.scores == 1).all()
        assert 0 <= int(batch.labels.min()) <= int(batch.labels.max()) < module.num_objects
        assert 0 <= int(batch.relations[:, 1].min()) <= int(batch.relations[:, 1].max()) < module.num_predicates
        for i, graph in enumerate(batch.graphs):
            seen.append(graph.image)
            own = (batch.image_index == i).nonzero()[:, 0]
            assert batch.labels[own].tolist() == graphs[graph.image].labels.tolist()
            rows = [r for r in batch.relations.tolist() if r[0] in own]
            triplets = [[int(batch.labels[s]), p, int(batch.labels[o])] for s, p, o in rows]
            assert triplets == graphs[graph.image].triplets.tolist()
    assert sorted(seen) == sorted(graphs)
    assert seen != list(graphs)


def test_duplicates_are_kept_in_validation_and_test_and_drawn_from_in_training(world: Path) -> None:
    module = make(world, one_predicate_per_pair=True, batch_size=64)
    pairs = sum(len(np.unique(g.relations[:, ::2], axis=0)) for g in module.train_graphs)
    assert pairs < sum(len(g.relations) for g in module.train_graphs)
    trained = module.train_dataloader()
    (first,), (second,) = trained, trained
    assert len(first.relations) == len(second.relations) == pairs
    assert {tuple(r) for r in first.relations.tolist()} != {tuple(r) for r in second.relations.tolist()}
    for loader, graphs in (
        (module.test_dataloader(), module.test_graphs),
        (module.val_dataloader(), module.val_graphs),
    ):
        (batch,) = loader
        assert len(batch.relations) == sum(len(g.relations) for g in graphs)
    rows = [
        tuple(r) for g in module.test_graphs for r in np.column_stack([np.full(len(g.relations), id(g)), g.relations])
    ]
    assert len(set(rows)) < len(rows)


def test_images_are_read_where_asked(world: Path) -> None:
    module = make(world, images="uint8", batch_size=24)
    (batch,) = module.test_dataloader()
    assert isinstance(batch, ImageRelationBatch)
    assert batch.images.values.dtype == torch.uint8
    checked = 0
    for i, (graph, image) in enumerate(zip(batch.graphs, batch.images, strict=True)):
        scale = image.shape[2] / float(batch.sizes_wh[i, 0])
        for x1, y1, x2, _ in (graph.boxes_xyxy * scale).round().astype(int):
            edge = image[:, max(y1 - 3, 0) : y1 + 4, max(x1, 0) : x2].float().amin(dim=(0, 1))
            checked += 1
            assert edge.min() < 80  # the dark upper edge of a drawn object
    assert checked > 80


@pytest.mark.parametrize("flip", ["double", "random"])
def test_mirrored_images_fit_their_boxes(world: Path, flip: str) -> None:
    options = {"images": "torchvision", "image_sides": (120, 120), "batch_size": 100}
    (plain,) = make(world, **options).train_dataloader()
    (batch,) = make(world, flip=flip, **options).train_dataloader()
    originals = {g.image: (g, image) for g, image in zip(plain.graphs, plain.images, strict=True)}
    assert len(batch.graphs) == len(plain.graphs) * (2 if flip == "double" else 1)
    mirrored = 0
    for graph, image in zip(batch.graphs, batch.images, strict=True):
        assert max(image.shape) == 120
        original, pixels = originals[graph.image]
        same = np.array_equal(graph.boxes_xyxy, original.boxes_xyxy)
        mirrored += not same
        difference = (image - (pixels if same else pixels.flip(2))).abs().mean()
        assert difference < 0.02
        if not same:
            assert original.size_wh is not None
            expected = original.size_wh[0] - original.boxes_xyxy[:, [2, 0]]
            np.testing.assert_allclose(graph.boxes_xyxy[:, [0, 2]], expected, atol=1e-3)
    assert 0 < mirrored < len(batch.graphs)


def test_images_in_two_folders_and_damaged_ones(own_world: Path) -> None:
    module = make(own_world, images="uint8", batch_size=24)
    name = module.test_graphs[0].image
    (own_world / "VG_100K_2").mkdir()
    path = own_world / "VG_100K" / name
    moved = path.rename(own_world / "VG_100K_2" / name)
    list(module.test_dataloader())
    content = moved.read_bytes()
    moved.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=rf"{name}: truncated or damaged image .*images2\.zip"):
        list(module.test_dataloader())
    Image.new("RGB", (64, 64)).save(moved)
    with pytest.raises(DataError, match=rf"{name}: 64 x 64 pixels don't fit the annotated size"):
        list(module.test_dataloader())
    moved.unlink()
    with pytest.raises(DataError, match=rf"VG_100K/{name}: no such image; extract images\.zip"):
        list(module.test_dataloader())


def test_names_and_provenance(world: Path) -> None:
    module = make(world)
    assert (module.num_objects, module.num_predicates) == (20, 12)
    assert module.object_names[:2] == ["walker 1", "platform 1"]
    assert module.predicate_names[0] == "holding"
    record = module.provenance()
    assert record["dataset"] == "VG150"
    assert record["official"] is False
    assert [f["name"] for f in record["files"]] == ["image_data.json", "VG-SGG.h5", "VG-SGG-dicts.json"]
    for file in record["files"]:
        content = (world / file["name"]).read_bytes()
        assert (file["bytes"], file["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    train, test = by_hand(world, 0), by_hand(world, 2)
    assert record["counts"]["test_relations"] == sum(len(r[3]) for r in test)
    assert (record["counts"]["train_images"], record["counts"]["val_images"]) == (len(train) - 9, 9)
    assert (record["counts"]["file_images"], record["counts"]["file_split_2"]) == (64, 24)
    json.dumps(record)


@pytest.mark.parametrize("name", ["image_data.json", "VG-SGG.h5", "VG-SGG-dicts.json"])
def test_a_missing_file_is_named(own_world: Path, name: str) -> None:
    (own_world / name).unlink()
    with pytest.raises(DataError, match=rf"{name}: no such file"):
        make(own_world)


def test_files_of_different_releases_are_found(own_world: Path) -> None:
    path = own_world / "image_data.json"
    entries = json.loads(path.read_text())
    path.write_text(json.dumps(entries[1:]))
    with pytest.raises(DataError, match=r"VG-SGG\.h5: split holds 64 images, image_data\.json 63"):
        make(own_world)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flip": "twice"}, "flip='twice'"),
        ({"images": "jpeg"}, "images='jpeg'"),
        ({"image_sides": (10, 5)}, "0 < short side <= long side"),
        ({"val_images": -1}, "val_images=-1"),
    ],
)
def test_impossible_arguments_are_refused(world: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(world, **options)


class Recorder(pl.LightningModule):
    """Notes images, boxes and relations of every batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[Any, ...]] = []

    def training_step(self, batch: RelationBatch, batch_idx: int) -> torch.Tensor:
        boxes, relations = batch.boxes_xyxy.tolist(), batch.relations.tolist()
        self.seen.append((tuple(g.image for g in batch.graphs), boxes, relations))
        return self.weight * batch.boxes_xyxy.sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def trainer(**options: Any) -> pl.Trainer:
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return pl.Trainer(accelerator="cpu", devices=1, **quiet, **options)


def test_training_goes_on_where_its_checkpoint_ended_with_the_same_draws(world: Path, tmp_path: Path) -> None:
    options = {"batch_size": 8, "flip": "random", "one_predicate_per_pair": True}
    whole, first, second = Recorder(), Recorder(), Recorder()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer(max_epochs=3, enable_checkpointing=False).fit(whole, datamodule=make(world, **options))
        keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=6, save_top_k=-1)
        trainer(max_steps=6, callbacks=[keep]).fit(first, datamodule=make(world, **options))
        longer = trainer(max_epochs=3, enable_checkpointing=False)
        module = make(world, **options)
        longer.fit(second, datamodule=module, ckpt_path=tmp_path / "step=6.ckpt", weights_only=False)
    assert len(whole.seen) == 12
    assert first.seen + second.seen == whole.seen
    assert len({str(batch) for batch in whole.seen}) == 12


def test_memory_is_pinned_where_there_is_a_gpu(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert make(world, images="uint8").train_dataloader().pin_memory is torch.cuda.is_available()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    module = make(world, images="uint8", num_workers=1)
    for loader in (module.train_dataloader(), module.val_dataloader(), module.test_dataloader()):
        assert not isinstance(loader, list)
        assert (loader.pin_memory, loader.persistent_workers) == (True, True)


@pytest.mark.slow
def test_worker_processes_give_the_same_batches(world: Path) -> None:
    options = {"flip": "random", "one_predicate_per_pair": True, "images": "uint8"}
    alone, helped = make(world, **options).train_dataloader(), make(world, num_workers=2, **options).train_dataloader()
    for _ in range(2):
        for a, b in zip(alone, helped, strict=True):
            assert torch.equal(a.boxes_xyxy, b.boxes_xyxy)
            assert torch.equal(a.relations, b.relations)
            assert torch.equal(a.images.values, b.images.values)


@pytest.mark.slow
def test_twenty_thousand_images(tmp_path: Path) -> None:
    root = write_vg150_world(tmp_path / "w", train_images=14_000, test_images=6_000, with_images=False)
    module = make(root, val_images=1000)
    assert len(module.val_graphs) == 1000
    assert 13_000 < len(module.train_graphs) + 1000 < 14_000
    assert 5_000 < len(module.test_graphs) < 6_000
