from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_modules.detections_file import read_detections
from data_modules.vrd import VRDDataModule
from experiments.build_detector import DETECTIONS
from experiments.errors import ExperimentError
from experiments.run import execute
from experiments.runs import Run, in_order
from experiments.store import CHECKPOINT
from tests.experiments.workspace import PIXELS, Workspace, smoke_run


def state(space: Workspace, run: Run, prefix: str = "network.") -> dict[str, Any]:
    content = torch.load(space.store.folder(run) / CHECKPOINT, weights_only=True)["state_dict"]
    return {key.removeprefix(prefix): value for key, value in content.items() if key.startswith(prefix)}


def test_relation_models_start_from_the_detector_and_rank_its_boxes(tmp_path: Path, generated: Path) -> None:
    space = Workspace(tmp_path, generated)
    run = smoke_run("reldn", "8", "reldn", PIXELS)
    stages = [r.stage_name for r in in_order([run])]
    assert stages == ["detector", "reldn.training", "detections", "reldn"]
    for each in in_order([run]):
        execute(each, space.machine)
    detector, network = state(space, run.needs["detections"].needs["detector"]), state(space, run.needs["network"])
    body = {key.removeprefix("body."): value for key, value in detector.items() if key.startswith("body.")}
    for key, value in body.items():
        assert torch.equal(network[f"visual.detector.body.{key}"], value)  # frozen
    assert any(not torch.equal(network[f"visual.relation_body.{key}"], value) for key, value in body.items())
    assert not any("rpn" in key for key in network)
    record = space.store.record(run)
    assert record is not None and record["data"]["proposals"] == "file"
    assert any(file["name"] == DETECTIONS for file in record["data"]["files"]), record["data"]["files"]
    path = space.store.folder(run.needs["detections"]) / DETECTIONS
    (world,) = generated.glob("vrd-*-images")
    data = VRDDataModule(world, batch_size=1, seed=0)
    found = read_detections(path, data.object_names)
    assert set(found.detections) == {graph.image for graph in data.test_graphs}
    metrics = space.store.record(run.needs["detections"])["metrics"]  # type: ignore[index]
    assert {"mAP", "mAP@0.5"} <= metrics.keys() and all(0 <= value <= 1 for value in metrics.values())


def test_a_triplet_network_is_trained_on_annotated_boxes_before_proposals(tmp_path: Path, generated: Path) -> None:
    override = PIXELS | {"model.labels": False, "data.train_boxes": "ground_truth_then_proposals"}
    run = smoke_run("vrd_tensor", "1", "vrd_tensor", override).needs["triplet"]
    assert [r.stage_name for r in in_order([run])] == ["detector", "vrd_tensor.triplet", "vrd_tensor.triplet"]
    assert run.needs["first"].config["data"]["train_boxes"] == "ground_truth"
    space = Workspace(tmp_path, generated)
    for each in in_order([run]):
        execute(each, space.machine)
    first, second, detector = state(space, run.needs["first"]), state(space, run), state(space, run.needs["detector"])
    key = "pixels.detector.body.stages.0.0.weight"
    assert torch.equal(first[key], second[key]) and torch.equal(first[key], detector["body.stages.0.0.weight"])
    assert not torch.equal(first["predicate_branch.0.weight"], second["predicate_branch.0.weight"])


def test_a_model_without_pixels_has_no_proposals(tmp_path: Path, generated: Path) -> None:
    run = smoke_run("reldn", "8", "reldn.training", {"data.train_boxes": "proposals"})
    with pytest.raises(ExperimentError, match=r"train_boxes=proposals: a model without pixels takes .*ground_truth"):
        execute(run, Workspace(tmp_path, generated).machine)


def test_boxes_that_nobody_detects_are_an_error(tmp_path: Path, generated: Path) -> None:
    run = smoke_run("reldn", "8", "reldn", {"data.proposals": "yolo"})
    space = Workspace(tmp_path, generated)
    for need in in_order(run.needs.values()):
        execute(need, space.machine)
    with pytest.raises(ExperimentError, match=r"data\.proposals=yolo: expected lu2016, ground_truth, faster_rcnn"):
        execute(run, space.machine)


def test_detections_of_images_that_a_limit_left_out_are_empty(tmp_path: Path, generated: Path) -> None:
    run = smoke_run("reldn", "8", "detections", PIXELS)
    space = Workspace(tmp_path, generated)
    for each in in_order([run]):
        execute(each, space.machine)
    with np.load(space.store.folder(run) / DETECTIONS) as file:
        counts = np.diff(file["offsets"])
    assert len(counts) == 8 and not counts[2:].any()  # two batches of one image
