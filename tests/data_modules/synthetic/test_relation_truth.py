from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_modules.errors import DataError
from data_modules.synthetic.openimages import write_openimages_world
from data_modules.synthetic.relation_classes import RelationKnobs
from data_modules.synthetic.relation_truth import TrueScene, read_truth
from data_modules.synthetic.vg150 import write_vg150_world
from data_modules.synthetic.vg200 import write_vg200_world
from data_modules.synthetic.vg_proposals import write_vg_proposals_world
from data_modules.synthetic.vrd import write_vrd_world
from data_modules.vg150 import VG150DataModule
from data_modules.vrd import VRDDataModule

SPLITS = {"train_images": 40, "test_images": 24}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read it, never write to it."""
    knobs = RelationKnobs(hidden=0.3, multimodality=0.5)
    return write_vrd_world(tmp_path_factory.mktemp("truth") / "w", **SPLITS, with_images=False, knobs=knobs)


def rows(scene: TrueScene, annotated: bool) -> set[tuple[Any, ...]]:
    graph = scene.graph
    nodes = [(*box, label) for box, label in zip(graph.boxes_xyxy.tolist(), graph.labels.tolist(), strict=True)]
    chosen = graph.relations[scene.annotated == annotated].tolist()
    return {(nodes[s], p, nodes[o]) for s, p, o in chosen}


def test_the_truth_holds_all_that_is_annotated_and_more(world: Path) -> None:
    module = VRDDataModule(world, batch_size=8, seed=0, image_size="box_extent", keep_empty_train=True)
    graphs = {g.image: g for g in [*module.train_graphs, *module.test_graphs]}
    truth = read_truth(world)
    assert {scene.graph.image for scene in truth} == set(graphs)
    told = untold = mistakes = 0
    for scene in truth:
        graph = graphs[scene.graph.image]
        nodes = [(*b, label) for b, label in zip(graph.boxes_xyxy.tolist(), graph.labels.tolist(), strict=True)]
        given = {(nodes[s], p, nodes[o]) for s, p, o in graph.relations.tolist()}
        known, unknown = rows(scene, True), rows(scene, False)
        assert known <= given
        mistakes += len(given - known)
        assert not given & unknown
        told, untold = told + len(known), untold + len(unknown)
        assert len(known | unknown) == len(scene.graph.relations)  # each once
    assert mistakes < 0.05 * told  # second categories
    assert 0.25 < told / (told + untold) < 0.4  # 0.7 of what people annotate


def test_records_are_typed(world: Path) -> None:
    scene = max(read_truth(world), key=lambda s: len(s.graph.relations))
    graph = scene.graph
    assert (graph.boxes_xyxy.dtype, graph.boxes_xyxy.shape) == (np.float32, (len(graph.labels), 4))
    assert (graph.relations.dtype, graph.labels.dtype) == (np.int64, np.int64)
    assert (scene.annotated.dtype, scene.ambiguous.dtype) == (np.bool_, np.bool_)
    assert scene.annotated.shape == (len(graph.relations),)
    assert scene.ambiguous.shape == graph.labels.shape
    assert graph.size_wh is not None
    assert graph.boxes_xyxy.min() >= 1
    assert (graph.boxes_xyxy[:, 2:] <= np.array(graph.size_wh)).all()
    share = np.concatenate([s.ambiguous for s in read_truth(world)]).mean()
    assert 0.35 < share < 0.65


WORLDS: list[tuple[Callable[..., Path], dict[str, int]]] = [
    (write_vg150_world, SPLITS),
    (write_vg200_world, SPLITS),
    (write_vg_proposals_world, {"num_images": 64}),
    (write_openimages_world, SPLITS),
]


@pytest.mark.parametrize(("write", "size"), WORLDS, ids=["vg150", "vg200", "json", "openimages"])
def test_every_world_tells_its_truth_and_knows_its_knobs(
    write: Callable[..., Path], size: dict[str, int], tmp_path: Path
) -> None:
    root = write(tmp_path / "w", **size, with_images=False, knobs=RelationKnobs(hidden=0.5))
    manifest = json.loads((root / "manifest.json").read_text())
    assert (manifest["hidden"], manifest["proximity"], manifest["version"]) == (0.5, RelationKnobs().proximity, 2)
    truth = read_truth(root)
    assert len(truth) == 64
    assert all(scene.graph.image.endswith(".jpg") for scene in truth)
    annotated = np.concatenate([scene.annotated for scene in truth])
    assert len(annotated) > 500
    assert 0.15 < annotated.mean() < 0.3
    other = write(tmp_path / "other", **size, with_images=False)
    assert np.concatenate([scene.annotated for scene in read_truth(other)]).mean() > 1.5 * annotated.mean()
    with pytest.raises(DataError, match="holds something else than the world"):
        write(root, **size, with_images=False)


def test_names_are_those_of_the_readers(tmp_path: Path) -> None:
    root = write_vg150_world(tmp_path / "w", **SPLITS, with_images=False)
    module = VG150DataModule(root, 8, 0, val_images=0, box_frame="image")
    truth = {scene.graph.image: scene for scene in read_truth(root)}
    for graph in [*module.train_graphs, *module.test_graphs]:
        scene = truth[graph.image]
        known = {tuple(t) for t in scene.graph.triplets[scene.annotated].tolist()}
        assert known <= {tuple(t) for t in graph.triplets.tolist()}
        assert graph.size_wh == scene.graph.size_wh


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("predicates"), r"expected objects, predicates and images \(KeyError\('predicates'\)\)"),
        (lambda c: c["images"][1].pop("labels"), r"images\[1\]: KeyError\('labels'\)"),
        (lambda c: c["images"][1].update(boxes=[[1, 2, 3]]), r"images\[1\]: ValueError"),
        (lambda c: c["images"][0]["labels"].append(0), r"images\[0\]: lists of different lengths"),
        (lambda c: c["images"][0].update(relations=[[0, 12, 0]]), r"images\[0\]: relations: predicate: .* 0 to 11"),
        (lambda c: c["images"][0].update(relations=[[0, 1, 99]]), r"images\[0\]: relations: box: .* found 99"),
        (lambda c: c["images"][0].update(labels=[20]), r"images\[0\]: labels: expected 0 to 19, found 20"),
    ],
)
def test_a_damaged_truth_is_named(
    world: Path, tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    content = json.loads((world / "truth.json").read_text())
    change(content)
    (tmp_path / "truth.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=rf"truth\.json: {message}.*remove the generated world"):
        read_truth(tmp_path)
    (tmp_path / "truth.json").unlink()
    with pytest.raises(DataError, match=r"truth\.json: no such file"):
        read_truth(tmp_path)
