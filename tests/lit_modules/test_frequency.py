from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from data_modules.scene_graph import PairPredictions
from data_modules.synthetic import vrd
from data_modules.vrd import VRDDataModule
from experiments.build import frequency_scoring, precomputed_scoring
from experiments.machine import Machine
from experiments.run import Context
from experiments.runs import Run
from lit_modules.frequency import FrequencyPrior, PrecomputedTriplets
from tests.lit_modules.batches import make_batch, random_images

EVALUATION: dict[str, Any] = {"pairs": "all", "ks": (1, 3), "tops": (5,), "matching": "greedy", "free_k": 0}


def measured(module: pl.LightningModule, data: pl.LightningDataModule) -> dict[str, float]:
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.test(module, datamodule=data, verbose=False)
    return {key.removeprefix("test/"): float(value) for key, value in trainer.callback_metrics.items()}


def test_scores_are_confidences_times_the_table() -> None:
    table = torch.rand(4, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    module = FrequencyPrior(table, **EVALUATION, train_triplets=None)
    batch = make_batch(*random_images(0))
    pairs = module.candidate_pairs(batch)
    scores = module.score_pairs(batch, pairs)
    assert scores.dtype == torch.float64
    for (subject, obj), row in zip(pairs.tolist(), scores.tolist(), strict=True):
        confidence = float(batch.scores[subject]) * float(batch.scores[obj])
        expected = table[batch.labels[subject], batch.labels[obj]].tolist()
        assert row == pytest.approx([confidence * p for p in expected], rel=1e-12)


def record(seed: int) -> PairPredictions:
    boxes = np.full((1, 4), seed, np.float32)
    return PairPredictions(boxes, boxes, np.full((1, 1, 3), seed), np.zeros((1, 1)))


def test_released_triplets_follow_the_order_of_the_images() -> None:
    records = [record(seed) for seed in range(5)]
    module = PrecomputedTriplets(records, **EVALUATION, train_triplets=None)
    for _ in range(2):
        module.on_test_epoch_start()
        got = [module.predict_pairs(make_batch(*random_images(0, boxes=(2,) * size))) for size in (2, 1, 2)]
        assert [int(r.triplets[0, 0, 0]) for batch in got for r in batch] == list(range(5))
        assert [len(batch) for batch in got] == [2, 1, 2]


def slow_table(data: VRDDataModule) -> dict[tuple[int, int], list[float]]:
    """Count / (sum of counts + node pairs with these labels + 1), for the pairs of labels that occur."""
    counts, pairs = Counter[tuple[int, ...]](), Counter[tuple[int, int]]()
    for graph in data.train_graphs:
        labels = graph.labels.tolist()
        counts.update((labels[s], p, labels[o]) for s, p, o in graph.relations.tolist())
        nodes = range(len(labels))
        pairs.update((labels[s], labels[o]) for s in nodes for o in nodes if s != o)
    table = {}
    for s, o in pairs:
        row = [counts[s, p, o] for p in range(data.num_predicates)]
        table[s, o] = [c / (sum(row) + pairs[s, o] + 1) for c in row]
    return table


def context(data_root: Path, folder: Path) -> Context:
    machine = Machine(data_root, folder / "generated", folder / "runs", folder / "results")
    return Context(machine, folder, {}, {}, {})


def config(world: dict[str, int] | None = None, **changes: Any) -> dict[str, Any]:
    """What the stages `frequency` and `precomputed` read, for the real release or a generated world."""
    return {
        "data": {
            "dataset": "vrd",
            "proposals": changes.get("proposals", "lu2016"),
            "train_split": "all",
            "eval_split": "test",
            "image_size": "box_extent",
            "min_score": 0.0,
            "world": world or {"seed": -1},
        },
        "frequency": {
            "background": changes.get("background", True),
            "counted_pairs": changes.get("counted_pairs", "all"),
        },
        "precomputed": {"file": "lu2016/relationship_det_result.mat"},
        "evaluation": {
            "pairs": changes.get("pairs", "all"),
            "ks": changes.get("ks", [1, 10, 70]),
            "free_k": "max",
            "tops": [50, 100],
            "matching": changes.get("matching", "greedy"),
            "protocol": "recall",
        },
        "trainer": {},
    }


@pytest.mark.filterwarnings("ignore")
def test_the_built_prior_is_the_one_of_the_spec(tmp_path: Path) -> None:
    world = {
        "version": vrd.VERSION,
        "seed": 0,
        "train_images": 30,
        "test_images": 6,
        "num_objects": 8,
        "num_predicates": 5,
    }
    run = Run("vrd_tensor", "frequency", 0, config(world), {})
    data, module = frequency_scoring(run, context(tmp_path, tmp_path))
    assert isinstance(module, FrequencyPrior) and isinstance(module.probabilities, torch.Tensor)
    table = slow_table(data)
    assert len(table) > 20
    for s, o in np.ndindex(8, 8):
        expected = table.get((s, o), [0.0] * 5)
        assert module.probabilities[s, o].tolist() == pytest.approx(expected, rel=1e-12)
    assert 0 < measured(module, data)["relationship_k70/R@100"] < 1


SETTINGS = ("k1", "k10", "k70", "k1 /multi", "k70 /multi", "k70 /image_mean")


def assert_printed(got: dict[str, float], task: str, cells: list[str | None], matching: str = "greedy") -> None:
    """Compare percentages to four decimals; under the other headline matching the plain names change places."""
    for setting, cell in zip(SETTINGS, cells, strict=False):
        k, _, suffix = setting.partition(" ")
        if matching == "multi":
            suffix = {"": "/greedy", "/multi": "", "/image_mean": "/greedy/image_mean"}[suffix]
        for top, value in zip((50, 100), cell.split("/") if cell else (), strict=False):
            key = f"{task}_{k}/R@{top}{suffix}"
            assert f"{100 * got[key]:.4f}" == value, (key, got[key])


@pytest.mark.real_data
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("background", "matching", "relationship", "phrase"),
    [
        (
            True,
            "greedy",
            ["15.6978/16.5750", "19.4030/22.9248", "19.4554/22.9772", "16.1168/17.0594", "19.9791/23.5533"],
            ["17.7795/18.7484", "21.9036/26.1194", "21.9298/26.1587", "18.3687/19.4030", "22.6499/26.9049"],
        ),
        (
            False,
            "multi",
            ["14.1136/16.1822", "16.4310/20.9479", "16.4834/21.0134", "14.5719/16.6667", "16.9940/21.5763"],
            ["15.8549/18.2901", "18.4996/23.7759", "18.5258/23.8544", "16.4703/18.9447", "19.2459/24.6531"],
        ),
    ],
)
def test_detection_with_the_proposals_of_lu_et_al(
    data_root: Path, tmp_path: Path, background: bool, matching: str, relationship: list[str], phrase: list[str]
) -> None:
    run = Run("vrd_tensor", "frequency", 0, config(background=background, matching=matching), {})
    data, module = frequency_scoring(run, context(data_root, tmp_path))
    got = measured(module, data)
    assert_printed(got, "relationship", relationship, matching)
    assert_printed(got, "phrase", phrase, matching)


@pytest.mark.real_data
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("changes", "cells"),
    [
        (
            {},
            [
                "47.8659/50.2880",
                "59.0992/70.5420",
                "59.3873/71.0134",
                "49.1228/51.6104",
                "60.7882/72.6499",
                "66.5923/76.1994",
            ],
        ),
        (
            {"background": False},
            [
                "41.8827/49.5156",
                "49.8560/65.8942",
                "50.1309/66.3394",
                "43.0348/50.8117",
                "51.4533/67.8581",
                "59.9691/72.8877",
            ],
        ),
        (
            {"pairs": "overlapping", "counted_pairs": "overlapping"},
            ["44.2917/44.4095", None, "60.5787/67.0594", "45.4307/45.5486", "61.9403/68.4603", "64.8455/70.1080"],
        ),
    ],
)
def test_predicates_of_annotated_boxes(
    data_root: Path, tmp_path: Path, changes: dict[str, Any], cells: list[str | None]
) -> None:
    run = Run("vrd_tensor", "frequency", 0, config(proposals="ground_truth", **changes), {})
    data, module = frequency_scoring(run, context(data_root, tmp_path))
    assert_printed(measured(module, data), "relationship", cells)


@pytest.mark.real_data
@pytest.mark.filterwarnings("ignore")
def test_the_released_predictions_of_lu_et_al(data_root: Path, tmp_path: Path) -> None:
    run = Run("vrd_tensor", "precomputed", 0, config(ks=[1]), {})
    data, module = precomputed_scoring(run, context(data_root, tmp_path))
    got = measured(module, data)
    assert_printed(got, "relationship", ["14.1136/14.9647"])
    assert_printed(got, "phrase", ["16.4572/17.3344"])
