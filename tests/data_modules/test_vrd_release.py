"""The release itself: counts that its readers must find, and agreement between its files."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import loadmat

from data_modules.scene_graph import SceneGraph
from data_modules.vrd import VRDDataModule
from data_modules.vrd_files import (
    estimate_size,
    image_size,
    open_image,
    read_annotations,
    read_image_order,
    read_lu_detections,
    read_lu_ground_truth,
    read_lu_predictions,
    read_names,
    with_image_size,
)

pytestmark = pytest.mark.real_data


def same(a: SceneGraph, b: SceneGraph) -> bool:
    return a.image == b.image and all(
        np.array_equal(getattr(a, name), getattr(b, name)) for name in ("boxes_xyxy", "labels", "relations")
    )


def test_the_release_has_the_published_counts(data_root: Path) -> None:
    folder = data_root / "vrd" / "json_dataset"
    started = time.process_time()  # other processes may slow the clock on the wall
    splits = {s: read_annotations(folder / f"annotations_{s}.json", 100, 70) for s in ("train", "test")}
    assert time.process_time() - started < 2
    found = {}
    for split, graphs_by_image in splits.items():
        graphs = list(graphs_by_image.values())
        found[split] = (
            len(graphs),
            sum(len(g.relations) for g in graphs),
            sum(len(g.relations) > 0 for g in graphs),
            sum(len(g.labels) for g in graphs),
            sum(len(g.relations) - len(np.unique(g.relations, axis=0)) for g in graphs),
            sum((g.boxes_xyxy[g.relations[:, 0]] == g.boxes_xyxy[g.relations[:, 2]]).all(axis=1).sum() for g in graphs),
            sum(len(np.unique(g.boxes_xyxy, axis=0)) < len(g.labels) for g in graphs),
        )
    assert found["train"] == (4000, 30355, 3780, 26430, 494, 105, 120)
    assert found["test"] == (1000, 7638, 955, 6735, 160, 34, 35)
    assert len(read_names(folder / "objects.json")) == 100
    assert len(read_names(folder / "predicates.json")) == 70


def test_the_matlab_files_agree_with_the_json(data_root: Path) -> None:
    folder = data_root / "vrd" / "lu2016"
    annotations = read_annotations(data_root / "vrd" / "json_dataset" / "annotations_test.json", 100, 70)
    order = read_image_order(folder / "imagePath.mat")
    assert all(same(g, annotations[g.image]) for g in read_lu_ground_truth(folder / "gt.mat", order))
    for name, variable in (("objects", "objectListN"), ("predicates", "relationListN")):
        listed = ["".join(cell) for cell in loadmat(folder / f"{variable}.mat")[variable].ravel()]
        assert listed == read_names(data_root / "vrd" / "json_dataset" / f"{name}.json")


def test_the_proposals_and_predictions_of_lu_et_al(data_root: Path) -> None:
    folder = data_root / "vrd" / "lu2016"
    counts = [len(d.labels) for d in read_lu_detections(folder / "objectDetRCNN.mat", 100, 1000)]
    assert (sum(counts), counts.count(0), sum(n < 2 for n in counts), max(counts)) == (7221, 48, 62, 23)
    predictions = read_lu_predictions(folder / "relationship_det_result.mat", 1000)
    # One row for every ordered pair of detections, the best first.
    assert [len(p.scores) for p in predictions] == [n * (n - 1) for n in counts]
    assert all((np.diff(p.scores[:, 0]) <= 0).all() for p in predictions)


def test_real_images_hold_their_boxes_and_the_estimate_of_their_size_is_close(data_root: Path) -> None:
    root = data_root / "vrd"
    path = root / "json_dataset" / "annotations_test.json"
    annotations = read_annotations(path, 100, 70)
    order = read_image_order(root / "lu2016" / "imagePath.mat")
    found = dict(zip(order, read_lu_detections(root / "lu2016" / "objectDetRCNN.mat", 100), strict=True))
    folder = root / "sg_dataset" / "sg_test_images"
    images = sorted(p.name for p in folder.iterdir())
    errors = []
    for name in images:
        size = image_size(folder, name)
        assert with_image_size(annotations[name], size, path).size_wh == size
        assert (found[name].boxes_xyxy[:, 2:] <= size).all()
        estimate = np.array(estimate_size(name, found[name].boxes_xyxy))
        errors.append(np.abs(estimate - size) / size)
    assert len(images) >= 60
    assert open_image(folder, images[0]).mode == "RGB"
    np.testing.assert_allclose(np.mean(errors, axis=0), [0.051, 0.052], atol=1e-3)


def test_the_data_module_reads_the_release(data_root: Path) -> None:
    options: dict[str, Any] = {"root": data_root / "vrd", "batch_size": 64, "seed": 0, "image_size": "box_extent"}
    module = VRDDataModule(**options, proposals="lu2016", flip=True)
    provenance = module.provenance()
    assert provenance["official"] is True
    assert (provenance["train_images"], provenance["train_relations"]) == (3780, 30355)
    assert (provenance["test_images"], provenance["test_relations"]) == (1000, 7638)
    assert sum(len(d.labels) for d in module.detections) == 7221
    assert sum(len(b.graphs) for b in module.train_dataloader()) == 2 * 3780
    assert sum(len(b.scores) for b in module.test_dataloader()) == 7221
    held_out = VRDDataModule(**options, train_split="held_in", eval_split="held_out")
    assert len(held_out.test_graphs) == 500
    assert not {g.image for g in held_out.test_graphs} & {g.image for g in held_out.train_graphs}
    assert len(VRDDataModule(**options, keep_empty_train=True).train_graphs) == 4000
