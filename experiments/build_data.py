"""From a run's config to its DataModule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from data_modules.openimages import OpenImagesDataModule
from data_modules.relation_module import RelationDataModule
from data_modules.synthetic import openimages, vg150, vg200, vrd
from data_modules.synthetic.relation_classes import RelationKnobs
from data_modules.vg150 import VG150DataModule
from data_modules.vg200 import VG200DataModule
from data_modules.vrd import VRDDataModule
from experiments.config import Config, digest
from experiments.errors import ExperimentError, unknown
from experiments.run import Context
from experiments.runs import Run

TEST_BATCH = 16  # images; results do not depend on it
TEST_BATCH_PIXELS = 1  # padding beside an image would reach into its maps
DETECTIONS = "detections.npz"  # in the folder of a run that detects


@dataclass(frozen=True)
class RelationSet:
    """A relation data set: its folder under DATA_ROOT, its DataModule, and the writer of its generated world."""

    folder: str
    module: Callable[..., RelationDataModule]
    write: Callable[..., Path]
    version: int
    arguments: Callable[[Config], dict[str, Any]]


def _vrd(settings: Config) -> dict[str, Any]:
    return {
        "train_split": settings["train_split"],
        "eval_split": settings.get("eval_split", "test"),
        "held_out_images": held_out(settings["world"]),
        "flip": settings.get("flip", False),
        "image_size": settings["image_size"],
    }


def _vg150(settings: Config) -> dict[str, Any]:
    _check_splits(settings)
    source = settings["box_source"] or "h5"
    # RelDN trains on the 5,000 images too that neural-motifs holds out.
    return {"val_images": 0, "box_frame": "image", "annotations": source, "flip": _flip(settings)}


def _vg200(settings: Config) -> dict[str, Any]:
    _check_splits(settings)
    return {"flip": _flip(settings)}


def _openimages(settings: Config) -> dict[str, Any]:
    scored = "confusable" if settings.get("eval_split") == "special" else "all"
    _check_splits({**settings, "eval_split": "test"} if scored == "confusable" else settings)
    world = settings["world"]
    mini = {} if world["seed"] < 0 else {"mini_images": (world["train_images"] // 2, world["test_images"] // 2)}
    source = settings["box_source"] or "reldn"
    return {"source": source, "subset": settings["subset"], "scored": scored, "flip": _flip(settings), **mini}


def _flip(settings: Config) -> str:
    return "double" if settings.get("flip", False) else "none"


def _check_splits(settings: Config) -> None:
    if settings["train_split"] != "all" or settings.get("eval_split", "test") != "test":
        raise ExperimentError(
            f"data.dataset={settings['dataset']}: free k is chosen on held-out images of vrd alone; "
            "use evaluation.free_k=max"
        )


SETS = {
    "vrd": RelationSet("vrd", VRDDataModule, vrd.write_vrd_world, vrd.VERSION, _vrd),
    "vg150": RelationSet("vg150", VG150DataModule, vg150.write_vg150_world, vg150.VERSION, _vg150),
    "vg200": RelationSet("vg200", VG200DataModule, vg200.write_vg200_world, vg200.VERSION, _vg200),
    "openimages": RelationSet(
        "openimages-vrd", OpenImagesDataModule, openimages.write_openimages_world, openimages.VERSION, _openimages
    ),
}


def relation_data(run: Run, context: Context, sees: bool | None = None) -> RelationDataModule:
    """Return the relation data of a run, set up.

    Args:
        run: The run.
        context: This machine's folders.
        sees: Whether batches have images; None asks the config.

    Raises:
        ExperimentError: There is no such data set or knob, or it is not at hand.
        DataError: Its files are damaged.
    """
    settings: Config = run.config["data"]
    if settings["dataset"] not in SETS:
        raise unknown("data.dataset", settings["dataset"], SETS)
    chosen = SETS[settings["dataset"]]
    if sees is None:
        sees = bool(run.config.get("model", {}).get("visual")) or "classifier" in run.needs
    boxes = {"batch_size": run.config["trainer"]["batch_size"]} if run.stage.fits else _scored(run, context, sees)
    data = chosen.module(
        _root(chosen, settings, context, sees),
        seed=run.seed,
        **chosen.arguments(settings),
        **boxes,
        **(_pixels(run.config) if sees else {}),
    )
    data.nms = settings.get("nms", 1.0)
    data.setup()
    return data


def held_out(world: Config) -> int:
    """Return the number of held-out training images: 500 of VRD's 4,000, an eighth of a generated world's."""
    return 500 if world["seed"] < 0 else int(world["train_images"]) // 8


def _root(chosen: RelationSet, settings: Config, context: Context, sees: bool) -> Path:
    """Return the data set's folder, generated if the config asks for a world."""
    world = dict(settings["world"])
    if world["seed"] < 0:
        return context.machine.data(chosen.folder)
    if world["version"] != chosen.version:
        raise ExperimentError(
            f"data.world.version={world['version']}: the generator is at {chosen.version}; name that in the profile"
        )
    knobs, known = world.pop("knobs", {}), [field.name for field in fields(RelationKnobs)]
    for name in knobs:
        if name not in known:
            raise unknown("data.world.knobs:", name, known)
    root = context.machine.generated / f"{settings['dataset']}-{digest(settings['world'])}{'-images' if sees else ''}"
    world.pop("version")
    chosen.write(root, **world, with_images=sees, knobs=RelationKnobs(**knobs))
    return root


def _scored(run: Run, context: Context, sees: bool) -> dict[str, Any]:
    """Return the arguments that say which boxes are scored, and how many images at a time."""
    settings = run.config["data"]
    batch = {"batch_size": TEST_BATCH_PIXELS if sees else TEST_BATCH}
    proposals = settings.get("proposals", "ground_truth")
    if "detections" in run.needs:
        file = context.folders["detections"] / DETECTIONS
        return {**batch, "proposals": "file", "proposals_file": file, "min_score": settings["min_score"]}
    if proposals not in ("lu2016", "ground_truth"):
        raise ExperimentError(
            f"data.proposals={proposals}: expected lu2016, ground_truth, faster_rcnn_imagenet or faster_rcnn_coco"
        )
    return {**batch, "proposals": proposals, "min_score": settings.get("min_score", 0.0)}


def _pixels(config: Config) -> dict[str, Any]:
    """Return the arguments that say how images are read."""
    backbone = config["backbone"]
    return {
        "images": backbone["pixels"],
        "image_sides": (backbone["short_side"], backbone["long_side"]),
        "image_cache": config["data"]["image_cache"] or None,
        "num_workers": config["trainer"]["num_workers"],
    }
