"""The stages that runs are made of: what config they read, what they need first, and who builds them.

A stage either trains (it leaves a checkpoint) or evaluates (it leaves metrics). Its builder is named, not imported, so
that planning stays free of torch. Raise `version` when a fix changes numbers: older records then count as stale.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from experiments.config import Config, flatten, merge, nested
from experiments.errors import unknown
from experiments.schema import RelDNModelConfig, TripletModelConfig


@dataclass(frozen=True)
class Need:
    """A run that must be done first: its stage, and what its config changes of the asking run's full config."""

    stage: str
    override: Mapping[str, Any]


@dataclass(frozen=True)
class Stage:
    """One kind of run.

    Attributes:
        builder: `module:function` that returns (LightningDataModule, LightningModule).
        fits: Whether it trains; otherwise it only tests.
        sections: Top-level config sections that it reads; only they enter its name.
        ignored: Dotted keys of those sections that it does not read.
        needs: From the full config to the runs that must be done first, by the name the builder knows them under.
        version: Raised when a fix changes numbers.
        seen: Sections that it reads besides where the model sees pixels (`model.visual`).
    """

    builder: str
    fits: bool
    sections: tuple[str, ...]
    ignored: frozenset[str] = frozenset()
    needs: Callable[[Config], dict[str, Need]] = lambda config: {}
    version: int = 1
    seen: tuple[str, ...] = ()

    def project(self, config: Config) -> Config:
        """Return the part of a full config that this stage reads."""
        read = {s: config[s] for s in (*self.sections, *(self.seen if _sees(config) else ()))}
        ignored = self.ignored if _sees(config) else self.ignored | PIXEL_KEYS
        return nested({k: v for k, v in flatten(read) if k not in ignored})


PIXEL_KEYS = frozenset({"model.pool_size", "model.skips", "sampling.boxes", "optimizer.backbone_lr_factor"})
TRAINING_IGNORES = frozenset(
    {
        "data.proposals",
        "data.eval_split",
        "data.min_score",
        "data.nms",
        "trainer.limit_test_batches",
        "model.trained",
        "model.test_box_normalisation",
    }
)
EVALUATION_TRAINER = frozenset(
    {"trainer.max_epochs", "trainer.batch_size", "trainer.limit_train_batches", "trainer.gradient_clip_norm"}
)
EVALUATION_IGNORES = EVALUATION_TRAINER | {"data.flip", "data.train_boxes"}
DETECTOR_IGNORES = frozenset({"data.flip", "data.train_boxes", "data.proposals", "data.min_score", "data.nms"})
DETECTOR_SCHEDULE = ("max_epochs", "batch_size")
DETECTOR_OPTIMIZER = ("lr", "momentum", "weight_decay", "bias_lr_factor", "warmup_steps", "drops")
DETECTOR_MOVED = frozenset(f"detector.{key}" for key in (*DETECTOR_SCHEDULE, *DETECTOR_OPTIMIZER))
MODEL_KEYS = {f"model.{key.name}" for model in (TripletModelConfig, RelDNModelConfig) for key in fields(model)}
VTRANSE_IGNORES = frozenset(MODEL_KEYS - {"model.visual"})  # of its own settings it shares only whether it sees pixels


def _sees(config: Config) -> bool:
    """Return whether the model sees pixels."""
    return bool(config.get("model", {}).get("visual"))


def _detector(config: Config) -> Need:
    """Return the training of the detector on the whole data set, whose schedule stands in a section of its own."""
    settings = config["detector"]
    optimizer = {key: settings[key] for key in DETECTOR_OPTIMIZER}
    optimizer |= {"name": "sgd", "bias_weight_decay": False, "warmup_factor": 0.333333, "backbone_lr_factor": 1.0}
    trainer = {key: settings[key] for key in DETECTOR_SCHEDULE} | {"gradient_clip_norm": 0.0}
    data = {"eval_split": "test"} | ({"subset": "full"} if "subset" in config["data"] else {})
    return Need("detector", {"optimizer": optimizer, "trainer": trainer, "data": data})


def _boxes(config: Config) -> dict[str, Need]:
    """Return the detections that are ranked, or the detector that labels annotated boxes, where those are our own."""
    if config["evaluation"].get("labels") == "detector":
        return {"classifier": _detector(config)}
    if not str(config["data"]["proposals"]).startswith("faster_rcnn"):
        return {}
    return {"detections": Need("detections", {})}


def _initial(config: Config) -> dict[str, Need]:
    """Return the detector that a model which sees pixels starts from."""
    return {"detector": _detector(config)} if _sees(config) else {}


def _triplet_needs(config: Config) -> dict[str, Need]:
    """Return what the triplet network starts from: the detector, and itself trained on annotated boxes."""
    needs = _initial(config)
    if config["data"]["train_boxes"] == "ground_truth_then_proposals":
        needs["first"] = Need("vrd_tensor.triplet", {"data": {"train_boxes": "ground_truth"}})
    return needs


def _free_k_choice(stage_name: str, config: Config) -> dict[str, Need]:
    """Return the run that chooses the free k: the same model without the held-out training images, scored on them."""
    if config["evaluation"]["free_k"] != "cross_validated":
        return {}
    held_out = {
        "proposals": "ground_truth",
        "train_split": "held_in",
        "eval_split": "held_out",
        "min_score": 0.0,
        "nms": 1.0,
    }
    return {"choice": Need(stage_name, {"data": held_out, "evaluation": {"free_k": "max"}})}


def _vrd_tensor_needs(config: Config) -> dict[str, Need]:
    needs = {"triplet": Need("vrd_tensor.triplet", {}), **_boxes(config), **_free_k_choice("vrd_tensor", config)}
    if config["scoring"]["selector"]:
        needs["selector"] = Need("vrd_tensor.selector", {})
    return needs


STAGES: dict[str, Stage] = {
    "vrd_tensor": Stage(
        builder="experiments.build:triplet_scoring",
        fits=False,
        sections=("data", "model", "scoring", "evaluation", "trainer"),
        seen=("backbone",),
        ignored=EVALUATION_IGNORES,
        needs=_vrd_tensor_needs,
    ),
    "vrd_tensor.triplet": Stage(
        builder="experiments.build:triplet_training",
        fits=True,
        sections=("data", "model", "loss", "optimizer", "trainer"),
        seen=("backbone",),
        ignored=TRAINING_IGNORES,
        needs=_triplet_needs,
    ),
    "vrd_tensor.selector": Stage(
        builder="experiments.build:selector_training",
        fits=True,
        sections=("data", "model", "selector", "optimizer", "trainer"),
        seen=("backbone",),
        ignored=TRAINING_IGNORES,
        needs=lambda config: {"triplet": Need("vrd_tensor.triplet", {})},
    ),
    "reldn": Stage(
        builder="experiments.build:reldn_scoring",
        fits=False,
        sections=("data", "model", "evaluation", "trainer"),
        seen=("backbone",),
        ignored=EVALUATION_IGNORES,
        needs=lambda config: {
            **({"network": Need("reldn.training", {})} if config["model"]["trained"] else {}),
            **_boxes(config),
            **_free_k_choice("reldn", config),
        },
    ),
    "reldn.training": Stage(
        builder="experiments.build:reldn_training",
        fits=True,
        sections=("data", "model", "sampling", "loss", "optimizer", "trainer"),
        seen=("backbone",),
        ignored=TRAINING_IGNORES,
        needs=_initial,
    ),
    "frequency": Stage(
        builder="experiments.build:frequency_scoring",
        fits=False,
        sections=("data", "frequency", "evaluation", "trainer"),
        ignored=EVALUATION_IGNORES,
        needs=lambda config: {**_boxes(config), **_free_k_choice("frequency", config)},
    ),
    "vtranse": Stage(
        builder="experiments.build_vtranse:vtranse_scoring",
        fits=False,
        sections=("data", "model", "vtranse", "evaluation", "trainer"),
        seen=("backbone",),
        ignored=EVALUATION_IGNORES | VTRANSE_IGNORES | {"vtranse.lr", "vtranse.weight_decay"},
        needs=lambda config: {
            "network": Need("vtranse.training", {}),
            **_boxes(config),
            **_free_k_choice("vtranse", config),
        },
    ),
    "vtranse.training": Stage(
        builder="experiments.build_vtranse:vtranse_training",
        fits=True,
        sections=("data", "model", "vtranse", "trainer"),
        seen=("backbone",),
        ignored=TRAINING_IGNORES | VTRANSE_IGNORES | {"data.train_boxes", "vtranse.scores"},
        needs=_initial,
    ),
    "detector": Stage(
        builder="experiments.build_detector:detector_training",
        fits=True,
        sections=("data", "backbone", "detector", "optimizer", "trainer"),
        ignored=DETECTOR_IGNORES | DETECTOR_MOVED | {"data.eval_split", "trainer.limit_test_batches"},
    ),
    "detections": Stage(
        builder="experiments.build_detector:detections",
        fits=False,
        sections=("data", "backbone", "detector", "trainer"),
        ignored=DETECTOR_IGNORES | DETECTOR_MOVED | EVALUATION_TRAINER,
        needs=lambda config: {"detector": _detector(config)},
    ),
    "precomputed": Stage(
        builder="experiments.build:precomputed_scoring",
        fits=False,
        sections=("data", "precomputed", "evaluation", "trainer"),
        ignored=EVALUATION_IGNORES
        | {"data.proposals", "data.min_score", "data.nms", "evaluation.pairs", "evaluation.free_k"},
    ),
}


def stage(name: str) -> Stage:
    """Return the stage of that name.

    Raises:
        ExperimentError: There is none.
    """
    if name not in STAGES:
        raise unknown("method", name, STAGES)
    return STAGES[name]


def methods_of(config: Config) -> list[str]:
    """Return the stages that a full config has all sections of."""
    return [name for name, stage in STAGES.items() if set(stage.sections) <= config.keys()]


def needed(name: str, config: Config) -> dict[str, tuple[str, Config]]:
    """Return the stage and the full config of every run that a run of stage `name` needs."""
    return {key: (n.stage, merge(config, n.override)) for key, n in stage(name).needs(config).items()}
