from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_modules.errors import DataError
from data_modules.scene_graph import ImageRelationBatch
from data_modules.synthetic.vg150 import write_vg150_world
from data_modules.synthetic.vg_proposals import write_vg_proposals_world
from data_modules.vg150 import VG150DataModule
from data_modules.vg_proposals import (
    AnnotatedImage,
    VGProposalsDataModule,
    build_graph,
    commonest_names,
    read_annotated_images,
)


def thing(object_id: int, box: tuple[int, int, int, int] = (0, 0, 9, 9), **more: Any) -> dict[str, Any]:
    return {"object_id": object_id, **dict(zip("xywh", box, strict=True)), **more}


OBJECTS = [
    {"image_id": 7, "objects": [thing(1, (5, 6, 10, 20), names=["Man ", "person"]), thing(2, names=["cup"])]},
    {"image_id": 8, "objects": [thing(3, names=["cup"], merged_object_ids=[30, 31])]},
    {"image_id": 9, "objects": []},
]
RELATIONSHIPS = [
    {
        "image_id": 7,
        "relationships": [
            {"predicate": "HOLDS", "subject": thing(1, name="man"), "object": thing(2, name="cup")},
            {"predicate": "has", "subject": thing(1, name="man"), "object": thing(99, (1, 2, 3, 4), name="Hat")},
        ],
    },
    {"image_id": 8, "relationships": [{"subject": thing(31, names=["cup"]), "object": thing(30, names=["cup"])}]},
]


def write(folder: Path, objects: Any = OBJECTS, relationships: Any = RELATIONSHIPS) -> tuple[Path, Path]:
    paths = folder / "objects.json", folder / "relationships.json"
    for path, content in zip(paths, (objects, relationships), strict=True):
        path.write_text(json.dumps(content))
    return paths


def test_objects_are_found_by_all_their_numbers(tmp_path: Path) -> None:
    images = read_annotated_images(*write(tmp_path))
    assert list(images) == [7, 8, 9]
    assert images[7].objects == [("man", (5, 6, 10, 20)), ("cup", (0, 0, 9, 9)), ("hat", (1, 2, 3, 4))]
    assert images[7].pairs == [(0, 1), (0, 2)]
    assert images[8].objects == [("cup", (0, 0, 9, 9))]
    assert images[8].pairs == [(0, 0)]
    assert images[9] == AnnotatedImage()


def test_graphs_keep_labelled_boxes_within_the_image_and_each_pair_once() -> None:
    objects = [
        ("man", (5, 6, 10, 20)),
        ("thing", (0, 0, 5, 5)),  # no label
        ("cup", (-3, 90, 10, 30)),  # past two borders
        ("cup", (100, 0, 5, 5)),  # begins behind the last column
        ("man", (0, 0, 0, 5)),  # nothing
        ("cup", (99, 99, 1, 1)),  # the last pixel
    ]
    pairs = [(0, 2), (2, 0), (0, 2), (0, 1), (3, 0), (0, 4), (5, 2)]
    graph, counts = build_graph("7.jpg", (100, 100), AnnotatedImage(objects, {}, pairs), {"cup": 0, "man": 1})
    assert graph.boxes_xyxy.tolist() == [[5, 6, 14, 25], [0, 90, 6, 99], [99, 99, 99, 99]]
    assert graph.labels.tolist() == [1, 0, 0]
    assert graph.relations.tolist() == [[0, 0, 1], [1, 0, 0], [2, 0, 1]]
    assert counts == {"boxes_cut": 1, "boxes_dropped": 2}
    empty, counts = build_graph("8.jpg", (9, 9), AnnotatedImage(), {})
    assert (empty.boxes_xyxy.shape, empty.labels.shape, empty.relations.shape) == ((0, 4), (0,), (0, 3))
    assert not counts


def test_the_commonest_names() -> None:
    names = ["b", "c", "c", "a", "d", "b"]
    assert commonest_names([AnnotatedImage([(n, (0, 0, 1, 1)) for n in names])], 3) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda o, r: o[0].pop("objects"), r"objects\.json: entry 0: expected image_id and a list 'objects'"),
        (lambda o, r: r[1].update(image_id=7), r"relationships\.json: entry 1: image_id 7 occurs twice"),
        (lambda o, r: r[1].update(image_id="8"), r"relationships\.json: entry 1: expected image_id and a list"),
        (lambda o, r: o[0]["objects"][1].pop("w"), r"objects\.json: image 7: objects\[1\]: .*x, y, w, h, .*None, 9\]"),
        (lambda o, r: o[0]["objects"][1].update(x=1.5), r"objects\.json: image 7: objects\[1\]: .*found \[1\.5"),
        (
            lambda o, r: o[0]["objects"][1].pop("names"),
            r"image 7: objects\[1\]: expected a name or names, found \[None\]",
        ),
        (lambda o, r: o[0]["objects"][1].pop("object_id"), r"image 7: objects\[1\]: expected whole numbers object_id"),
        (lambda o, r: o[0]["objects"].append(3), r"image 7: objects\[2\]: expected an object, found 3"),
        (lambda o, r: o[1]["objects"][0].update(merged_object_ids=7), r"image 8: objects\[0\]: .*merged_object_ids"),
        (
            lambda o, r: r[0]["relationships"][1].pop("object"),
            r"image 7: relationships\[1\]\.object: expected an object",
        ),
        (
            lambda o, r: r[0]["relationships"][1]["object"].pop("h"),
            r"image 7: relationships\[1\]\.object: .*x, y, w, h",
        ),
    ],
)
def test_a_bad_entry_is_named(tmp_path: Path, change: Callable[[Any, Any], Any], message: str) -> None:
    objects, relationships = copy.deepcopy((OBJECTS, RELATIONSHIPS))
    change(objects, relationships)
    with pytest.raises(DataError, match=rf"{message}.*visualgenome\.org"):
        read_annotated_images(*write(tmp_path, objects, relationships))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vg_proposals_world(tmp_path_factory.mktemp("vg") / "w", num_images=60)


@pytest.fixture(scope="module")
def vg150_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("vg150") / "w"
    return write_vg150_world(root, train_images=40, test_images=24, with_images=False)


def make(root: Path, **options: Any) -> VGProposalsDataModule:
    defaults: dict[str, Any] = {"batch_size": 4, "seed": 0, "source": "json", "max_objects": 20}
    module = VGProposalsDataModule(root, **(defaults | options))
    module.setup()
    return module


def test_the_split_is_drawn_with_its_own_seed(world: Path) -> None:
    module = make(world)
    train, test = ({g.image for g in side} for side in (module.train_graphs, module.test_graphs))
    assert not train & test
    assert 38 <= len(train) <= 42  # 42 of 60, without those that hold no box
    assert all(len(g.relations) for g in module.test_graphs)
    assert any(not len(g.relations) for g in module.train_graphs)
    assert all(len(g.relations) for g in make(world, keep_empty_train=False).train_graphs)
    assert {g.image for g in make(world, seed=9).train_graphs} == train
    assert {g.image for g in make(world, split_seed=9).train_graphs} != train
    assert module.val_dataloader() == []


def test_names_are_the_commonest_of_the_training_images(world: Path, tmp_path: Path) -> None:
    module = make(world, max_objects=5)
    content = json.loads((world / "objects.json").read_text())
    names = {f"{e['image_id']}.jpg": [o["names"][0].strip().lower() for o in e["objects"]] for e in content}
    everything = [n for image in module.train_graphs for n in names[image.image]]
    assert set(module.object_names) <= set(everything)
    least = min(everything.count(n) for n in module.object_names)
    assert least >= max(everything.count(n) for n in set(everything) - set(module.object_names)) - 3
    assert module.object_names == sorted(module.object_names)
    assert not any(name.startswith("thing") for name in make(world).object_names)  # rare names
    own = Path(shutil.copytree(world, tmp_path / "own"))
    dicts = {"label_to_idx": {"walker 1": 2, "tool 1": 1}, "predicate_to_idx": {"on": 1}}
    (own / "VG-SGG-dicts.json").write_text(json.dumps(dicts))
    assert make(own).object_names == ["tool 1", "walker 1"]
    assert {int(v) for g in make(own).train_graphs for v in g.labels} == {0, 1}


def test_batches_hold_pairs(world: Path) -> None:
    module = make(world, images="relnet", image_sides=(120, 200), flip="double")
    assert module.predicate_names == ["related"]
    total = 0
    for batch in module.train_dataloader():
        assert isinstance(batch, ImageRelationBatch)
        assert (batch.relations[:, 1] == 0).all()
        assert len(torch.unique(batch.relations, dim=0)) == len(batch.relations)
        assert float(batch.boxes_xyxy.min()) >= 0
        assert (batch.boxes_xyxy[:, 2:] <= batch.sizes_wh[batch.image_index] - 1).all()
        total += len(batch.graphs)
    assert total == 2 * len(module.train_graphs)
    record = module.provenance()
    assert (record["official"], record["source"], record["split"]) == (False, "json", "drawn")
    assert record["counts"]["boxes_dropped"] >= 50  # one of no width in every image that isn't empty
    assert record["counts"]["boxes_cut"] > 0
    assert [f["name"] for f in record["files"]] == ["image_data.json", "objects.json", "relationships.json"]


def test_relations_agree_with_the_scenes(world: Path) -> None:
    """Every annotated pair is found again, whichever number or file names its ends."""
    content = json.loads((world / "relationships.json").read_text())
    module = make(world)
    found = {g.image: len(g.relations) for g in [*module.train_graphs, *module.test_graphs]}
    total = 0
    for entry in content:
        boxes = [
            tuple(tuple(r[end][k] for k in "xywh") for end in ("subject", "object")) for r in entry["relationships"]
        ]
        assert found.get(f"{entry['image_id']}.jpg", 0) >= len(set(boxes)) - 2  # labels of one box may differ
        total += len(set(boxes))
    assert sum(found.values()) >= total > 200


def test_vg150_files_serve_too(vg150_world: Path) -> None:
    module = make(vg150_world, source="vg150")
    original = VG150DataModule(vg150_world, 4, 0, val_images=0, box_frame="image", keep_empty_train=True)
    assert module.object_names == original.object_names
    for mine, theirs in ((module.train_graphs, original.train_graphs), (module.test_graphs, original.test_graphs)):
        assert [g.image for g in mine] == [g.image for g in theirs]
        for a, b in zip(mine, theirs, strict=True):
            assert np.array_equal(a.boxes_xyxy, b.boxes_xyxy)
            pairs = [(s, 0, o) for s, _, o in b.relations.tolist()]
            assert [tuple(r) for r in a.relations.tolist()] == list(dict.fromkeys(pairs))
    assert any(
        len(a.relations) < len(b.relations) for a, b in zip(module.test_graphs, original.test_graphs, strict=True)
    )
    assert any(not len(g.relations) for g in module.train_graphs)
    record = VGProposalsDataModule(vg150_world, 4, 0).provenance()  # reads what it needs
    assert (record["source"], record["split"], record["official"]) == ("vg150", "VG-SGG.h5", False)
    assert "VG-SGG.h5" in [f["name"] for f in record["files"]]
    list(module.train_dataloader())


def test_unknown_images_and_arguments_are_refused(world: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(world, tmp_path / "own"))
    entries = json.loads((own / "image_data.json").read_text())
    (own / "image_data.json").write_text(json.dumps([e for e in entries if e["image_id"] != 1531]))
    with pytest.raises(DataError, match=r"objects\.json: 1 images aren't in image_data\.json, as 1531"):
        make(own)
    with pytest.raises(ValueError, match="source='xml'"):
        make(world, source="xml")
    with pytest.raises(ValueError, match=r"train_fraction=1\.0"):
        make(world, train_fraction=1.0)


def test_a_resumed_loader_goes_on(world: Path) -> None:
    loader = make(world).train_dataloader()
    whole = [[g.image for g in b.graphs] for _ in range(2) for b in loader]
    module = make(world)
    module.start_step = 12
    assert [[g.image for g in b.graphs] for b in module.train_dataloader()] == whole[12:]
