from __future__ import annotations

import pytest

from experiments.errors import ExperimentError
from experiments.methods import STAGES, methods_of, needed, stage

CONFIG = {
    "data": {"proposals": "lu2016", "train_split": "all", "eval_split": "test", "min_score": 0.05, "flip": True},
    "model": {"rank": 5},
    "scoring": {"selector": True},
    "evaluation": {"free_k": "cross_validated", "ks": [1, 10]},
    "trainer": {"max_epochs": 7, "limit_test_batches": 2},
}


def test_an_unknown_stage_is_an_error_that_lists_all() -> None:
    with pytest.raises(
        ExperimentError, match=r"unknown method 'reldn\.train'; there is: detections, .*reldn\.training"
    ):
        stage("reldn.train")


def test_projection_keeps_what_the_stage_reads() -> None:
    read = stage("vrd_tensor").project(CONFIG)
    assert read == {
        "data": {"proposals": "lu2016", "train_split": "all", "eval_split": "test", "min_score": 0.05},
        "model": {"rank": 5},
        "scoring": {"selector": True},
        "evaluation": {"free_k": "cross_validated", "ks": [1, 10]},
        "trainer": {"limit_test_batches": 2},
    }
    assert CONFIG["data"]["flip"] is True  # the full config is left as it was


def test_the_free_k_is_chosen_by_the_same_model_on_images_it_was_not_trained_on() -> None:
    needs = needed("vrd_tensor", CONFIG)
    assert {key: name for key, (name, _) in needs.items()} == {
        "triplet": "vrd_tensor.triplet",
        "choice": "vrd_tensor",
        "selector": "vrd_tensor.selector",
    }
    _, choice = needs["choice"]
    assert (choice["data"]["train_split"], choice["data"]["eval_split"]) == ("held_in", "held_out")
    assert (choice["data"]["proposals"], choice["evaluation"]["free_k"]) == ("ground_truth", "max")
    assert choice["evaluation"]["ks"] == [1, 10]
    chosen_by = needed("vrd_tensor", choice)
    assert "choice" not in chosen_by
    assert all(full["data"]["train_split"] == "held_in" for _, full in chosen_by.values())


def test_switches_take_needs_away() -> None:
    config = CONFIG | {"scoring": {"selector": False}, "evaluation": {"free_k": "max"}}
    assert list(needed("vrd_tensor", config)) == ["triplet"]
    assert needed("precomputed", CONFIG) == {}
    assert list(needed("vrd_tensor.selector", CONFIG)) == ["triplet"]


def test_methods_are_those_whose_sections_the_config_has() -> None:
    assert methods_of(CONFIG) == ["vrd_tensor", "reldn"]  # both evaluations; trainings need a loss
    assert methods_of({}) == []
    everything = {section: {} for s in STAGES.values() for section in s.sections}
    assert methods_of(everything) == list(STAGES)
