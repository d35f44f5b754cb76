"""The stages that runs are made of: what config they read, what they need first, and who builds them.

A stage either trains (it leaves a checkpoint) or evaluates (it leaves metrics). Its builder is named, not imported, so
that planning stays free of torch. Raise `version` when a fix changes numbers: older records then count as stale.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from experiments.config import Config, flatten, merge, nested
from experiments.errors import unknown


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
    """

    builder: str
    fits: bool
    sections: tuple[str, ...]
    ignored: frozenset[str] = frozenset()
    needs: Callable[[Config], dict[str, Need]] = lambda config: {}
    version: int = 1

    def project(self, config: Config) -> Config:
        """Return the part of a full config that this stage reads."""
        read = {s: config[s] for s in self.sections}
        return nested({k: v for k, v in flatten(read) if k not in self.ignored})


TRAINING_IGNORES = frozenset(
    {
        "data.proposals",
        "data.eval_split",
        "data.min_score",
        "trainer.limit_test_batches",
        "model.test_box_normalisation",
    }
)
EVALUATION_TRAINER = frozenset(
    {"trainer.max_epochs", "trainer.batch_size", "trainer.limit_train_batches", "trainer.gradient_clip_norm"}
)
EVALUATION_IGNORES = EVALUATION_TRAINER | {"data.flip", "data.train_boxes"}


def _free_k_choice(stage_name: str, config: Config) -> dict[str, Need]:
    """Return the run that chooses the free k: the same model without the held-out training images, scored on them."""
    if config["evaluation"]["free_k"] != "cross_validated":
        return {}
    held_out = {"proposals": "ground_truth", "train_split": "held_in", "eval_split": "held_out", "min_score": 0.0}
    return {"choice": Need(stage_name, {"data": held_out, "evaluation": {"free_k": "max"}})}


def _vrd_tensor_needs(config: Config) -> dict[str, Need]:
    needs = {"triplet": Need("vrd_tensor.triplet", {}), **_free_k_choice("vrd_tensor", config)}
    if config["scoring"]["selector"]:
        needs["selector"] = Need("vrd_tensor.selector", {})
    return needs


STAGES: dict[str, Stage] = {
    "vrd_tensor": Stage(
        builder="experiments.build:triplet_scoring",
        fits=False,
        sections=("data", "model", "scoring", "evaluation", "trainer"),
        ignored=EVALUATION_IGNORES,
        needs=_vrd_tensor_needs,
    ),
    "vrd_tensor.triplet": Stage(
        builder="experiments.build:triplet_training",
        fits=True,
        sections=("data", "model", "loss", "optimizer", "trainer"),
        ignored=TRAINING_IGNORES,
    ),
    "vrd_tensor.selector": Stage(
        builder="experiments.build:selector_training",
        fits=True,
        sections=("data", "model", "selector", "optimizer", "trainer"),
        ignored=TRAINING_IGNORES,
        needs=lambda config: {"triplet": Need("vrd_tensor.triplet", {})},
    ),
    "reldn": Stage(
        builder="experiments.build:reldn_scoring",
        fits=False,
        sections=("data", "model", "evaluation", "trainer"),
        ignored=EVALUATION_IGNORES,
        needs=lambda config: {"network": Need("reldn.training", {}), **_free_k_choice("reldn", config)},
    ),
    "reldn.training": Stage(
        builder="experiments.build:reldn_training",
        fits=True,
        sections=("data", "model", "sampling", "loss", "optimizer", "trainer"),
        ignored=TRAINING_IGNORES,
    ),
    "frequency": Stage(
        builder="experiments.build:frequency_scoring",
        fits=False,
        sections=("data", "frequency", "evaluation", "trainer"),
        ignored=EVALUATION_IGNORES,
        needs=lambda config: _free_k_choice("frequency", config),
    ),
    "precomputed": Stage(
        builder="experiments.build:precomputed_scoring",
        fits=False,
        sections=("data", "precomputed", "evaluation", "trainer"),
        ignored=EVALUATION_IGNORES | {"data.proposals", "data.min_score", "evaluation.pairs", "evaluation.free_k"},
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
