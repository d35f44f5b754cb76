"""From a run's config to its detector: training it, detecting with it, and starting other models from it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from data_modules.detections_file import write_detections
from data_modules.relation_module import RelationDataModule
from data_modules.scene_graph import Detections
from experiments.build_data import DETECTIONS, relation_data
from experiments.config import Config
from experiments.errors import ExperimentError
from experiments.run import Context
from experiments.runs import Run
from lit_modules.detector import Detector
from lit_modules.layers.faster_rcnn import FasterRCNN
from lit_modules.layers.proposals import PRESETS

Built = tuple[RelationDataModule, pl.LightningModule]


def detector_training(run: Run, context: Context) -> Built:
    """Build the training of the detector on annotated objects."""
    data = relation_data(run, context, sees=True)
    return data, _detector(run, context, data)


def detections(run: Run, context: Context) -> tuple[RelationDataModule, pl.LightningModule, Callable[[], None]]:
    """Build the detection of objects in the scored images, which ends with a file of them in the run's folder."""
    data = relation_data(run, context, sees=True)
    module = _detector(run, context, data)
    module.network.load_state_dict(weights(context, "detector", "network."))
    limited = run.config["trainer"]["limit_test_batches"] >= 0
    return data, module, partial(_write, context.folder / DETECTIONS, data, module, limited)


def trained_detector(run: Run, context: Context, data: RelationDataModule, need: str = "detector") -> FasterRCNN:
    """Return the detector that a run needs, with its trained weights."""
    return detecting(run.needs[need].config, context, data.num_objects, need).network


def detecting(config: Config, context: Context, num_objects: int, need: str = "detector") -> Detector:
    """Return a module that detects, with the trained weights of a needed run of this config."""
    module = Detector(num_objects, **_architecture(config), optimizer={})
    module.network.load_state_dict(weights(context, need, "network."))
    return module


def body_settings(backbone: Config) -> Config:
    """Return the body's name and the arguments of `build_body`."""
    settings = {"name": backbone["body"], "frozen_stages": backbone["frozen_stages"]}
    if backbone["widths"]:
        settings["channels" if backbone["body"] == "vgg16" else "widths"] = backbone["widths"]
    return settings


def head_settings(backbone: Config) -> Config:
    """Return the RoI head's name and the arguments of `build_roi_head`."""
    settings = {"name": backbone["head"], "style": backbone["roi_align"]}
    return settings | ({"hidden_dim": backbone["head_dim"]} if backbone["head_dim"] else {})


def weights(context: Context, need: str, prefix: str) -> dict[str, Tensor]:
    """Return the part of a needed run's weights whose names begin with `prefix`, without it.

    Raises:
        ExperimentError: The checkpoint is missing or unreadable.
    """
    path = context.checkpoints[need]
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    except Exception as error:  # torch raises many kinds for a damaged file
        raise ExperimentError(
            f"{path}: not a readable checkpoint ({error}); delete its folder and try again"
        ) from error
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _detector(run: Run, context: Context, data: RelationDataModule) -> Detector:
    file = run.config["backbone"]["weights"]
    return Detector(
        data.num_objects,
        **_architecture(run.config),
        optimizer=run.config.get("optimizer", {}),
        weights=context.machine.data("weights") / file if file and run.stage.fits else None,
        one_label_per_box=run.config["detector"]["one_label_per_box"],
    )


def _architecture(config: Config) -> dict[str, Any]:
    settings = dict(PRESETS[config["detector"]["preset"]])
    if config["detector"]["anchor_sizes"]:
        settings["anchor_sizes"] = tuple(config["detector"]["anchor_sizes"])
    return {
        "body": body_settings(config["backbone"]),
        "head": head_settings(config["backbone"]),
        "settings": settings,
    }


def _write(path: Path, data: RelationDataModule, module: Detector, limited: bool) -> None:
    graphs = data.test_graphs
    sizes = [graph.size_wh for graph in graphs]
    nothing = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0))
    # A limit leaves images out. Without one every image has a record, and a lacking one is an error.
    detected = {graph.image: nothing for graph in graphs if limited} | module.detected
    found = [detected[graph.image] for graph in graphs]
    write_detections(path, data.object_names, [g.image for g in graphs], [s for s in sizes if s], found)
