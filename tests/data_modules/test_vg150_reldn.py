"""VG150 from RelDN's JSON files, and detections in place of annotated boxes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_modules.detections_file import write_detections
from data_modules.errors import DataError
from data_modules.scene_graph import Detections, ImageRelationBatch, SceneGraph
from data_modules.synthetic.vg150 import write_vg150_world
from data_modules.vg150 import OFFICIAL_COUNTS, VG150DataModule


def number(graph: SceneGraph) -> int:
    return int(Path(graph.image).stem)


def write_reldn(root: Path) -> None:
    """Write RelDN's files beside those of Xu et al.; images in a shuffled order, classes in an order of their own."""
    module = VG150DataModule(root, 4, 0, val_images=0, box_frame="image", keep_empty_train=True)
    ids = {label: 1000 - label for label in range(module.num_objects)}  # RelDN's code sorts them
    classes = module.object_names[::-1]
    (root / "objects.json").write_text(json.dumps(classes))
    (root / "predicates.json").write_text(json.dumps(module.predicate_names))
    for side, graphs in (("train", module.train_graphs), ("val", module.test_graphs)):
        relations: dict[str, Any] = {}
        content: dict[str, list[Any]] = {"images": [], "annotations": [], "categories": []}
        for i in np.random.default_rng(0).permutation(len(graphs)):
            graph = graphs[i]
            assert graph.size_wh is not None
            size = dict(zip(("width", "height"), graph.size_wh, strict=True))
            content["images"].append({"id": number(graph), "file_name": graph.image} | size)
            ends = []
            for (x1, y1, x2, y2), label in zip(graph.boxes_xyxy.tolist(), graph.labels.tolist(), strict=True):
                box = {"bbox": [x1, y1, x2 - x1 + 1, y2 - y1 + 1], "category_id": ids[label]}
                content["annotations"].append({"image_id": number(graph)} | box)
                ends.append({"category": module.num_objects - 1 - label, "bbox": [y1, y2, x1, x2]})
            relations[graph.image] = [
                {"subject": ends[s], "predicate": p, "object": ends[o]} for s, p, o in graph.relations.tolist()
            ]
        content["categories"] = [{"id": ids[i], "name": name} for i, name in enumerate(module.object_names)]
        (root / f"rel_annotations_{side}.json").write_text(json.dumps(relations))
        (root / f"detections_{side}.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_vg150_world(tmp_path_factory.mktemp("vg150") / "w", train_images=40, test_images=24)
    write_reldn(root)
    return root


def make(root: Path, **options: Any) -> VG150DataModule:
    defaults: dict[str, Any] = {"batch_size": 4, "seed": 0, "val_images": 9, "box_frame": "image"}
    module = VG150DataModule(root, **(defaults | options))
    module.setup()
    return module


def described(module: VG150DataModule, graph: SceneGraph) -> tuple[set[Any], list[Any]]:
    """The nodes of an image, and the relations in their order, by names and boxes."""
    boxes = [tuple(round(v, 2) for v in box) for box in graph.boxes_xyxy.tolist()]
    nodes = [(module.object_names[label], *box) for label, box in zip(graph.labels, boxes, strict=True)]
    return set(nodes), [(nodes[s], module.predicate_names[p], nodes[o]) for s, p, o in graph.relations.tolist()]


def test_both_releases_tell_of_the_same_graphs(world: Path) -> None:
    ours = make(world, annotations="reldn_json", keep_empty_train=True, val_images=0)
    theirs = make(world, keep_empty_train=True, val_images=0)
    assert ours.object_names == theirs.object_names[::-1]
    for side in ("train_graphs", "test_graphs"):
        found = getattr(ours, side)
        assert [number(g) for g in found] == sorted(number(g) for g in getattr(theirs, side))
        by_name = {g.image: g for g in found}
        for graph in getattr(theirs, side):
            mine = by_name[graph.image]
            assert mine.size_wh == graph.size_wh
            assert described(ours, mine) == described(theirs, graph)
            related = np.unique(mine.relations[:, ::2])
            assert related.tolist() == list(range(len(related)))  # before the nodes without relations


def test_splits_and_provenance(world: Path) -> None:
    module = make(world, annotations="reldn_json")
    theirs = make(world, val_images=0)
    related = sorted(number(g) for g in theirs.train_graphs)
    assert [number(g) for g in module.val_graphs] == related[:9]
    assert [number(g) for g in module.train_graphs] == related[9:]
    record = module.provenance()
    assert record["official"] is False
    assert {f["name"] for f in record["files"]} == {
        "objects.json",
        "predicates.json",
        *(f"{kind}_{side}.json" for kind in ("rel_annotations", "detections") for side in ("train", "val")),
    }
    assert record["counts"]["file_split_0_related"] == len(related)
    only_test = VG150DataModule(world, 4, 0, box_frame="image", annotations="reldn_json")
    only_test.setup("test")
    assert {Path(f["name"]).name for f in only_test.provenance()["files"]} >= {"detections_val.json"}
    assert "detections_train.json" not in {f["name"] for f in only_test.provenance()["files"]}
    with pytest.raises(ValueError, match="box_frame='image'"):
        make(world, annotations="reldn_json", box_frame="1024")
    with pytest.raises(ValueError, match="annotations='xml'"):
        make(world, annotations="xml")


def test_official_counts_are_recognised(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for options in ({"annotations": "reldn_json"}, {}):
        module = make(world, **options)
        counts = {key.removeprefix("file_"): n for key, n in module.provenance()["counts"].items() if "file_" in key}
        monkeypatch.setattr("data_modules.vg150.OFFICIAL_COUNTS", OFFICIAL_COUNTS | counts)
        assert module.provenance()["official"] is True
        monkeypatch.setattr("data_modules.vg150.OFFICIAL_COUNTS", OFFICIAL_COUNTS | counts | {"split_2_related": 1})
        assert module.provenance()["official"] is False


def test_batches_with_pixels(world: Path) -> None:
    module = make(world, annotations="reldn_json", images="uint8", flip="double", batch_size=100)
    (batch,) = module.train_dataloader()
    assert isinstance(batch, ImageRelationBatch)
    originals = {g.image: g for g in module.train_graphs}
    assert len(batch.graphs) == 2 * len(originals)
    for graph, image in zip(batch.graphs, batch.images, strict=True):
        assert graph.size_wh == (image.shape[2], image.shape[1])
        first = originals[graph.image].boxes_xyxy
        if not np.array_equal(first, graph.boxes_xyxy):  # pixels counted from 0 to W - 1
            np.testing.assert_allclose(graph.boxes_xyxy[:, 0], image.shape[2] - 1 - first[:, 2], atol=1e-3)


def test_files_that_do_not_fit_are_named(world: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(world, tmp_path / "own"))
    content = json.loads((own / "detections_val.json").read_text())
    content["categories"][0]["name"] = "other"
    (own / "detections_val.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"detections_val\.json: its categories differ from the data set's"):
        make(own, annotations="reldn_json")
    shutil.copy(own / "rel_annotations_train.json", own / "rel_annotations_val.json")
    shutil.copy(own / "detections_train.json", own / "detections_val.json")
    with pytest.raises(DataError, match=r"images are in both train and test"):
        make(own, annotations="reldn_json", val_images=0)
    (own / "predicates.json").write_text('{"on": 1}')
    with pytest.raises(DataError, match=r"predicates\.json: expected a list of names.*RelDN"):
        make(own, annotations="reldn_json")
    (own / "rel_annotations_train.json").unlink()
    (own / "predicates.json").write_text('["on"]')
    with pytest.raises(DataError, match=r"rel_annotations_train\.json: no such file"):
        make(own, annotations="reldn_json")


def write_proposals(path: Path, module: VG150DataModule, graphs: list[SceneGraph]) -> dict[str, Detections]:
    """Write moved boxes in pixels of the images as detections; one image has none."""
    rng = np.random.default_rng(0)
    records = {}
    for i, graph in enumerate(graphs):
        assert graph.size_wh is not None
        n = 0 if i == 3 else len(graph.labels)
        boxes = np.clip(graph.boxes_xyxy[:n] + rng.integers(-3, 4, (n, 4)), 0, np.array(graph.size_wh * 2) - 1)
        boxes[:, 2:] = np.maximum(boxes[:, :2], boxes[:, 2:])
        records[graph.image] = Detections(boxes.astype(np.float32), graph.labels[:n], rng.random(n))
    sizes = [graph.size_wh for graph in graphs if graph.size_wh is not None]
    write_detections(path, module.object_names, list(records), sizes, list(records.values()))
    return records


def test_detections_are_scored_without_knowing_the_relations(world: Path, tmp_path: Path) -> None:
    annotated = make(world)
    path = tmp_path / "d.npz"
    records = write_proposals(path, annotated, annotated.test_graphs + annotated.val_graphs)
    options: dict[str, Any] = {"proposals": "file", "proposals_file": path, "batch_size": 100}
    module = make(world, min_score=0.3, **options)
    for loader, graphs in (
        (module.test_dataloader(), annotated.test_graphs),
        (module.val_dataloader(), annotated.val_graphs),
    ):
        (batch,) = loader
        assert [g.image for g in batch.graphs] == [g.image for g in graphs]
        assert batch.relations.shape == (0, 3)
        assert sum(len(g.relations) for g in batch.graphs) == sum(len(g.relations) for g in graphs) > 10
        for i, graph in enumerate(graphs):
            own, record = batch.image_index == i, records[graph.image]
            kept = record.scores >= 0.3
            assert np.array_equal(batch.boxes_xyxy[own].numpy(), record.boxes_xyxy[kept])
            assert batch.labels[own].tolist() == record.labels[kept].tolist()
            assert batch.scores[own].tolist() == record.scores[kept].tolist()
    assert 0 < sum(len(d.scores) for d in module.detections) < sum(len(r.scores) for r in records.values())
    # Training images keep their annotated nodes.
    (batch,) = module.train_dataloader()
    (expected,) = make(world, batch_size=100).train_dataloader()
    assert torch.equal(batch.boxes_xyxy, expected.boxes_xyxy)
    assert torch.equal(batch.relations, expected.relations)
    provenance = module.provenance()
    assert provenance["proposals"] == "file"
    assert provenance["files"][-1]["name"] == "d.npz"
    assert provenance["counts"]["test_detections"] == sum(len(d.scores) for d in module.detections)
    # In the frame of 1024 pixels they are as much larger as the annotated boxes.
    large = make(world, box_frame="1024", **options)
    sizes = {g.image: g.size_wh for g in annotated.test_graphs}
    for graph, found in zip(large.test_graphs, large.detections, strict=True):
        size = sizes[graph.image]
        assert size is not None
        expected_boxes = records[graph.image].boxes_xyxy * (1024 / max(size))
        np.testing.assert_allclose(found.boxes_xyxy, expected_boxes, rtol=1e-5)


def write_coco(path: Path, module: VG150DataModule, records: dict[str, Detections]) -> None:
    ids = {name: 1000 - i for i, name in enumerate(module.object_names[::-1])}  # those of write_reldn
    rows = [
        {
            "image_id": int(Path(image).stem),
            "category_id": ids[module.object_names[label]],
            "bbox": [x1, y1, x2 - x1 + 1, y2 - y1 + 1],
            "score": score,
        }
        for image, d in records.items()
        for (x1, y1, x2, y2), label, score in zip(
            d.boxes_xyxy.tolist(), d.labels.tolist(), d.scores.tolist(), strict=True
        )
    ]
    path.write_text(json.dumps(rows))


def test_a_coco_list_serves_too(world: Path, tmp_path: Path) -> None:
    reldn = make(world, annotations="reldn_json", val_images=0)
    records = write_proposals(tmp_path / "d.npz", reldn, reldn.test_graphs)
    write_coco(tmp_path / "d.json", reldn, records)
    options: dict[str, Any] = {"val_images": 0, "proposals": "file", "proposals_file": tmp_path / "d.json"}
    module = make(world, annotations="reldn_json", **options)
    for graph, found in zip(module.test_graphs, module.detections, strict=True):
        assert np.array_equal(found.boxes_xyxy, records[graph.image].boxes_xyxy)
        assert found.labels.tolist() == records[graph.image].labels.tolist()
        assert found.scores.tolist() == records[graph.image].scores.tolist()
    # Classes go by their names: the files of Xu et al. have them in another order.
    others = make(world, proposals_index="detections_val.json", **options)
    for graph, found in zip(others.test_graphs, others.detections, strict=True):
        names = [reldn.object_names[label] for label in records[graph.image].labels]
        assert [others.object_names[label] for label in found.labels] == names
    assert [f["name"] for f in others.provenance()["files"][-2:]] == ["d.json", "detections_val.json"]
    with pytest.raises(ValueError, match=r"d\.json: name the annotations it is for as proposals_index"):
        make(world, **options)


def test_detections_that_do_not_fit_stop_the_setup(world: Path, tmp_path: Path) -> None:
    annotated = make(world)
    path = tmp_path / "d.npz"
    write_proposals(path, annotated, annotated.test_graphs)
    options: dict[str, Any] = {"proposals": "file", "proposals_file": path}
    with pytest.raises(DataError, match=r"d\.npz: 9 of 9 images, as .* are not in the file"):
        make(world, **options)
    make(world, val_images=0, **options)
    with pytest.raises(DataError, match=r"d\.npz: object_names: the detector knows other classes"):
        make(world, val_images=0, annotations="reldn_json", **options)
    with pytest.raises(DataError, match=r"gone\.npz: no such file"):
        make(world, val_images=0, proposals="file", proposals_file="gone.npz")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"proposals": "lu2016"}, "proposals='lu2016': expected one of"),
        ({"proposals": "file"}, "proposals='file', proposals_file=None: 'file' needs a file"),
        ({"proposals_file": "d.npz"}, "proposals_file=d.npz: 'file' needs a file, and nothing else takes one"),
        ({"min_score": 1.5}, "min_score=1.5: expected a fraction"),
    ],
)
def test_contradictory_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VG150DataModule("unread", 4, 0, **options)
