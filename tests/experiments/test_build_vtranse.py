from __future__ import annotations

from pathlib import Path

import torch

from experiments.run import execute
from experiments.runs import Run, in_order
from experiments.store import CHECKPOINT
from tests.experiments.workspace import PIXELS, Workspace, load, smoke_run


def weights(space: Workspace, run: Run) -> dict[str, torch.Tensor]:
    content: dict[str, torch.Tensor] = torch.load(space.store.folder(run) / CHECKPOINT, weights_only=True)["state_dict"]
    return content


def test_vtranse_is_trained_and_ranked_without_pixels(tmp_path: Path, generated: Path) -> None:
    space = Workspace(tmp_path, generated)
    run = smoke_run("reldn", "8", "vtranse")
    assert [r.stage_name for r in in_order([run])] == ["vtranse.training", "vtranse"]
    assert set(run.config["model"]) == {"visual"} and run.config["model"]["visual"] is False
    for each in in_order([run]):
        execute(each, space.machine)
    assert weights(space, run.needs["network"])["network.scale"].shape == (8 + 4,)
    record = space.store.record(run)
    assert record is not None and 0 <= record["metrics"]["relationship_free_k/R@50"] <= 1
    assert {r.config["vtranse"]["scores"] for r in runs_of("vtranse")} == {"sum", "product"}
    assert len(runs_of("vtranse.training")) == 1  # which both rank


def runs_of(stage: str) -> list[Run]:
    return [run for run in in_order(load("reldn", "table", "8", "smoke").runs) if run.stage_name == stage]


def test_vtranse_starts_from_the_detector_and_ranks_its_boxes(tmp_path: Path, generated: Path) -> None:
    space = Workspace(tmp_path, generated)
    run = smoke_run("reldn", "8", "vtranse", PIXELS)
    assert [r.stage_name for r in in_order([run])] == ["detector", "vtranse.training", "detections", "vtranse"]
    for each in in_order([run]):
        execute(each, space.machine)
    network, detector = weights(space, run.needs["network"]), weights(space, run.needs["detections"].needs["detector"])
    bodies = [key for key in detector if key.startswith("network.body.")]
    assert bodies
    for key in bodies:
        copy = network[key.replace("network.body.", "network.visual.detector.body.")]
        assert torch.equal(copy, detector[key])
    heads = [key for key in detector if key.startswith("network.roi_heads.box_head.")]
    assert heads and any(
        not torch.equal(network[key.replace("network.roi_heads.box_head.", "network.visual.head.")], detector[key])
        for key in heads
    )


def test_vtranse_of_both_papers_reads_neither_one_s_model() -> None:
    for paper, name in (("reldn", "8"), ("vrd_tensor", "2")):
        for stage in ("vtranse", "vtranse.training"):
            config = smoke_run(paper, name, stage).config
            assert config["vtranse"]["embedding_dim"] == 500 and set(config["model"]) == {"visual"}
