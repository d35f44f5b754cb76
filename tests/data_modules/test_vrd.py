from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from scipy.io import loadmat, savemat

from data_modules.errors import DataError
from data_modules.scene_graph import RelationBatch
from data_modules.vrd import OFFICIAL_SHA256, VRDDataModule


def make(root: Path, **options: Any) -> VRDDataModule:
    module = VRDDataModule(root, **({"batch_size": 4, "seed": 0, "held_out_images": 15} | options))
    module.setup()
    return module


@pytest.fixture
def own_world(vrd_world: Path, tmp_path: Path) -> Path:
    """A copy of the generated world that a test may damage."""
    return Path(shutil.copytree(vrd_world, tmp_path / "own"))


def train_annotations(root: Path) -> dict[str, list[dict[str, Any]]]:
    return json.loads((root / "json_dataset" / "annotations_train.json").read_text())


def test_training_leaves_out_images_without_relations_unless_told_otherwise(vrd_world: Path) -> None:
    content = train_annotations(vrd_world)
    names = [name for name, relations in content.items() if relations]
    assert len(names) < len(content)
    assert [g.image for g in make(vrd_world).train_graphs] == names
    assert [g.image for g in make(vrd_world, keep_empty_train=True).train_graphs] == list(content)


def test_the_held_out_images_are_the_last_of_the_file(vrd_world: Path) -> None:
    content = train_annotations(vrd_world)
    module = make(vrd_world, train_split="held_in", eval_split="held_out")
    assert [g.image for g in module.test_graphs] == list(content)[25:]
    assert [g.image for g in module.train_graphs] == [name for name in list(content)[:25] if content[name]]
    on_test = make(vrd_world, train_split="held_in")
    assert len(on_test.test_graphs) == 24
    with pytest.raises(ValueError, match="held_out_images=40: there are 40 training images"):
        make(vrd_world, train_split="held_in", held_out_images=40)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eval_split": "held_out", "train_split": "held_in", "proposals": "lu2016"}, "test images only"),
        ({"eval_split": "held_out"}, "would score images that are trained on"),
        ({"proposals": "lu"}, r"proposals='lu': expected one of"),
        ({"train_split": "half"}, "train_split='half'"),
        ({"eval_split": "val"}, "eval_split='val'"),
        ({"image_size": "none"}, "image_size='none'"),
    ],
)
def test_contradictory_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VRDDataModule("unread", batch_size=1, seed=0, **options)


def test_test_images_follow_the_matlab_order_where_that_is_there(own_world: Path) -> None:
    path = own_world / "lu2016" / "imagePath.mat"
    order = [str(cell[0]) for cell in loadmat(path)["imagePath"].ravel()]
    json_order = list(json.loads((own_world / "json_dataset" / "annotations_test.json").read_text()))
    assert [g.image for g in make(own_world).test_graphs] == order
    path.unlink()
    assert [g.image for g in make(own_world).test_graphs] == json_order
    with pytest.raises(DataError, match=r"imagePath\.mat: no such file"):
        make(own_world, proposals="lu2016")


def test_training_batches_hold_annotated_nodes_and_their_relations(vrd_world: Path) -> None:
    module = make(vrd_world)
    graphs = {g.image: g for g in module.train_graphs}
    seen = []
    for batch in module.train_dataloader():
        assert isinstance(batch, RelationBatch)
        assert (batch.scores == 1).all()
        assert (batch.image_index.diff() >= 0).all()
        for i, graph in enumerate(batch.graphs):
            seen.append(graph.image)
            own = (batch.image_index == i).nonzero()[:, 0]
            expected = graphs[graph.image]
            assert torch.equal(batch.boxes_xyxy[own], torch.tensor(expected.boxes_xyxy))
            assert batch.labels[own].tolist() == expected.labels.tolist()
            assert tuple(batch.sizes_wh[i].tolist()) == expected.size_wh
            rows = [r for r in batch.relations.tolist() if r[0] in own]
            triplets = [[int(batch.labels[s]), p, int(batch.labels[o])] for s, p, o in rows]
            assert triplets == expected.triplets.tolist()
    assert sorted(seen) == sorted(graphs)
    assert seen != list(graphs)


def test_detections_are_scored_without_knowing_the_relations(vrd_world: Path) -> None:
    module = make(vrd_world, proposals="lu2016", batch_size=5)
    batches = list(module.test_dataloader())
    assert [g.image for b in batches for g in b.graphs] == [g.image for g in module.test_graphs]
    assert all(b.relations.shape == (0, 3) for b in batches)
    assert sum(len(g.relations) for b in batches for g in b.graphs) > 100
    boxes = np.concatenate([d.boxes_xyxy for d in module.detections])
    scores = np.concatenate([d.scores for d in module.detections])
    assert np.array_equal(torch.cat([b.boxes_xyxy for b in batches]).numpy(), boxes)
    assert np.array_equal(torch.cat([b.scores for b in batches]).numpy(), scores)
    first = loadmat(vrd_world / "lu2016" / "objectDetRCNN.mat")["detection_labels"][0, 0]
    assert (module.detections[0].labels + 1).tolist() == first.ravel().tolist()


def test_annotated_nodes_are_scored_with_their_relations(vrd_world: Path) -> None:
    module = make(vrd_world, proposals="ground_truth", batch_size=24)
    (batch,) = module.test_dataloader()
    assert len(batch.relations) == sum(len(g.relations) for g in batch.graphs) > 100
    triplets = np.concatenate([g.triplets for g in batch.graphs])
    s, p, o = batch.relations.T
    assert np.array_equal(torch.stack([batch.labels[s], p, batch.labels[o]], dim=1).numpy(), triplets)
    assert all((d.scores == 1).all() for d in module.detections)


def test_weak_detections_are_dropped(vrd_world: Path) -> None:
    whole = make(vrd_world, proposals="lu2016").detections
    kept = make(vrd_world, proposals="lu2016", min_score=0.6).detections
    assert sum(len(d.scores) for d in kept) < sum(len(d.scores) for d in whole)
    for a, b in zip(whole, kept, strict=True):
        assert b.scores.tolist() == [score for score in a.scores.tolist() if score >= 0.6]
        assert b.boxes_xyxy.tolist() == a.boxes_xyxy[a.scores >= 0.6].tolist()
        assert b.labels.tolist() == a.labels[a.scores >= 0.6].tolist()


def test_without_images_sizes_come_from_the_boxes_that_the_model_gets(own_world: Path) -> None:
    shutil.rmtree(own_world / "sg_dataset")
    with pytest.raises(DataError, match=r"sg_train_images.*no such image.*sg_dataset\.zip"):
        make(own_world)
    module = make(own_world, image_size="box_extent", proposals="lu2016")
    assert all(g.size_wh is None for g in module.train_graphs + module.test_graphs)
    (batch,) = make(own_world, image_size="box_extent", proposals="lu2016", batch_size=24).test_dataloader()
    for i, size in enumerate(batch.sizes_wh.tolist()):
        ends = batch.boxes_xyxy[batch.image_index == i, 2:]
        expected = ends.max(dim=0).values.tolist() if len(ends) else [1.0, 1.0]
        if batch.graphs[i].image.endswith("_b.jpg"):
            expected = [1024.0 if v == max(expected) else v for v in expected]
        assert size == expected
    # The annotated boxes of the test images would have given other sizes.
    (annotated,) = make(own_world, image_size="box_extent", batch_size=24).test_dataloader()
    assert not torch.equal(annotated.sizes_wh, batch.sizes_wh)


def test_flipping_doubles_the_training_images(vrd_world: Path) -> None:
    plain, flipped = make(vrd_world, batch_size=500), make(vrd_world, batch_size=500, flip=True)
    (before,), (after,) = plain.train_dataloader(), flipped.train_dataloader()
    assert len(after.graphs) == 2 * len(before.graphs)
    assert len(flipped.train_graphs) == len(plain.train_graphs)
    centres: dict[str, list[float]] = {}
    for i, graph in enumerate(after.graphs):
        boxes = after.boxes_xyxy[after.image_index == i]
        assert np.array_equal(boxes.numpy(), graph.boxes_xyxy)
        centres.setdefault(graph.image, []).append(float(boxes[:, [0, 2]].mean()))
        centres[graph.image].append(float(after.sizes_wh[i, 0]))
    for first, width, second, _ in centres.values():
        assert first + second == pytest.approx(width + 1)
    assert len(list(flipped.test_dataloader())) == len(list(plain.test_dataloader()))


def test_setup_may_be_called_again_and_properties_call_it(vrd_world: Path) -> None:
    module = VRDDataModule(vrd_world, batch_size=4, seed=0)
    assert (module.num_objects, module.num_predicates) == (20, 12)
    assert module.object_names[:2] == ["walker 1", "platform 1"]
    assert module.predicate_names[0] == "holding"
    graphs = module.train_graphs
    module.setup("fit")
    module.setup("test")
    assert all(a is b for a, b in zip(graphs, module.train_graphs, strict=True))


def test_provenance_lists_the_files_that_were_read(vrd_world: Path) -> None:
    provenance = make(vrd_world, proposals="lu2016").provenance()
    assert {f["name"] for f in provenance["files"]} == set(OFFICIAL_SHA256)
    for file in provenance["files"]:
        content = (vrd_world / file["name"]).read_bytes()
        assert file["bytes"] == len(content)
        assert file["sha256"] == hashlib.sha256(content).hexdigest()
    assert provenance["official"] is False
    assert provenance["test_images"] == 24
    relations = [r for rows in train_annotations(vrd_world).values() for r in rows]
    assert provenance["train_relations"] == len(relations)
    json.dumps(provenance)
    held_out = make(vrd_world, train_split="held_in", eval_split="held_out").provenance()
    assert {Path(f["name"]).name for f in held_out["files"]} == {
        "objects.json",
        "predicates.json",
        "annotations_train.json",
    }


def damage_json(root: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = root / "json_dataset" / "annotations_train.json"
    content = json.loads(path.read_text())
    change(next(rows[0] for rows in content.values() if rows))
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda r: r["subject"].update(category=20),
            r"annotations_train\.json: .*subject\.category: .*0 to 19, found 20",
        ),
        (lambda r: r["object"].update(bbox=[9, 3, 1, 2]), r"object\.bbox: expected 0 <= ymin <= ymax"),
        (lambda r: r["object"].update(bbox=[1, 9999, 1, 2]), r"relation 0, object: box .* outside the image"),
    ],
)
def test_bad_annotations_stop_the_setup(own_world: Path, change: Callable[[dict[str, Any]], Any], message: str) -> None:
    damage_json(own_world, change)
    with pytest.raises(DataError, match=message):
        make(own_world)


def test_proposals_of_another_data_set_stop_the_setup(own_world: Path) -> None:
    path = own_world / "lu2016" / "objectDetRCNN.mat"
    content = {k: v for k, v in loadmat(path).items() if k.startswith("detection")}
    savemat(path, {k: v[:, :-1] for k, v in content.items()})
    with pytest.raises(DataError, match=r"objectDetRCNN\.mat: .* holds 23 images, the annotations hold 24"):
        make(own_world, proposals="lu2016")
    content["detection_bboxes"][0, 0] = content["detection_bboxes"][0, 0].astype(np.int64) + 5000
    savemat(path, content)
    with pytest.raises(DataError, match=r"objectDetRCNN\.mat: image .* reaches outside the image"):
        make(own_world, proposals="lu2016")


def test_an_image_order_of_another_data_set_stops_the_setup(own_world: Path) -> None:
    path = own_world / "lu2016" / "imagePath.mat"
    order = loadmat(path)["imagePath"]
    savemat(path, {"imagePath": order[:, :-1]})
    with pytest.raises(DataError, match=r"imagePath\.mat: names 23 images, .*annotations_test\.json holds 24"):
        make(own_world)
    order[0, 0] = np.array(["other.jpg"])
    savemat(path, {"imagePath": order})
    with pytest.raises(DataError, match=r"in only one of them: .*other\.jpg"):
        make(own_world)


@pytest.mark.parametrize("name", ["objects.json", "predicates.json", "annotations_train.json", "annotations_test.json"])
def test_a_missing_file_is_named(own_world: Path, name: str) -> None:
    (own_world / "json_dataset" / name).unlink()
    with pytest.raises(DataError, match=rf"{name}: no such file; re-extract"):
        make(own_world)


class Recorder(pl.LightningModule):
    """Notes the images of every batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[str, ...]] = []

    def training_step(self, batch: RelationBatch, batch_idx: int) -> torch.Tensor:
        self.seen.append(tuple(g.image for g in batch.graphs))
        return self.weight * batch.boxes_xyxy.sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def trainer(**options: Any) -> pl.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return pl.Trainer(accelerator="cpu", devices=1, **quiet, **options)


def test_training_goes_on_where_its_checkpoint_ended(vrd_world: Path, tmp_path: Path) -> None:
    whole, first, second = Recorder(), Recorder(), Recorder()
    trainer(max_epochs=2, enable_checkpointing=False).fit(whole, datamodule=make(vrd_world, batch_size=8))
    keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=3, save_top_k=-1)
    trainer(max_steps=3, callbacks=[keep]).fit(first, datamodule=make(vrd_world, batch_size=8))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*not resumable")
        longer = trainer(max_epochs=2, enable_checkpointing=False)
        module = make(vrd_world, batch_size=8)
        longer.fit(second, datamodule=module, ckpt_path=tmp_path / "step=3.ckpt", weights_only=False)
    assert len(first.seen) == 3
    assert first.seen + second.seen == whole.seen


def test_the_start_step_may_be_set(vrd_world: Path) -> None:
    whole = [tuple(g.image for g in b.graphs) for b in make(vrd_world).train_dataloader()]
    module = make(vrd_world)
    module.start_step = 4
    assert [tuple(g.image for g in b.graphs) for b in module.train_dataloader()] == whole[4:]


def test_loaders_leave_the_global_random_state_alone(vrd_world: Path) -> None:
    module = make(vrd_world)
    before = torch.get_rng_state()
    list(module.train_dataloader())
    list(module.test_dataloader())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
def test_worker_processes_give_the_same_batches(vrd_world: Path) -> None:
    alone, helped = make(vrd_world), make(vrd_world, num_workers=2)
    for a, b in zip(alone.train_dataloader(), helped.train_dataloader(), strict=True):
        assert torch.equal(a.boxes_xyxy, b.boxes_xyxy)
        assert torch.equal(a.relations, b.relations)
