from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lit_modules.optimizers import build_optimizer

SGD = {"name": "sgd", "lr": 0.5, "momentum": 0.9, "weight_decay": 0.1}


def model() -> nn.Sequential:
    frozen = nn.Linear(2, 2)
    frozen.requires_grad_(False)
    return nn.Sequential(nn.Linear(3, 2), nn.Embedding(4, 2), frozen)


def rates(steps: int, total: int, **settings: Any) -> list[list[float]]:
    """The learning rate of each group in each step, as a training loop meets them."""
    parts = build_optimizer(model(), total, **SGD, **settings)
    optimizer, schedule = parts["optimizer"], parts["lr_scheduler"]["scheduler"]
    assert parts["lr_scheduler"]["interval"] == "step"
    seen = []
    for _ in range(steps):
        seen.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    return seen


def test_biases_have_their_own_rate_and_decay() -> None:
    network = model()
    parts = build_optimizer(network, 10, **SGD, bias_lr_factor=2.0, bias_weight_decay=False)
    weights, biases = parts["optimizer"].param_groups
    assert {id(p) for p in weights["params"]} == {id(network[0].weight), id(network[1].weight)}
    assert {id(p) for p in biases["params"]} == {id(network[0].bias)}  # what is frozen is in neither
    assert (weights["lr"], weights["weight_decay"], weights["momentum"]) == (0.5, 0.1, 0.9)
    assert (biases["lr"], biases["weight_decay"], biases["momentum"]) == (1.0, 0.0, 0.9)
    assert [g["weight_decay"] for g in build_optimizer(network, 10, **SGD)["optimizer"].param_groups] == [0.1, 0.1]


def test_a_network_without_biases() -> None:
    (group,) = build_optimizer(nn.Embedding(2, 2), 10, **SGD)["optimizer"].param_groups
    assert len(group["params"]) == 1


def test_linear_warm_up_starts_at_its_factor() -> None:
    seen = rates(6, 100, warmup_steps=4, warmup_factor=0.2, bias_lr_factor=2.0)
    expected = [0.5 * f for f in (0.2, 0.4, 0.6, 0.8, 1.0, 1.0)]
    assert [weight for weight, _ in seen] == pytest.approx(expected)
    assert [bias for _, bias in seen] == pytest.approx([2 * rate for rate in expected])


def test_the_rate_falls_tenfold_at_each_drop() -> None:
    seen = [weight for weight, _ in rates(9, 9, drops=(1 / 3, 0.888889))]
    assert seen == pytest.approx([0.5] * 3 + [0.05] * 5 + [0.005])


def test_the_drops_of_the_paper_fall_on_its_steps() -> None:
    """7,560 steps of VRD: drops at 5,040 and 6,720, warm-up of 500 from a third."""
    parts = build_optimizer(model(), 7560, **SGD, warmup_steps=500, warmup_factor=0.333333, drops=(0.666667, 0.888889))
    factor = parts["lr_scheduler"]["scheduler"].lr_lambdas[0]
    steps = [0, 250, 499, 500, 5039, 5040, 6719, 6720]
    expected = [1 / 3, 2 / 3, 1 / 3 + 2 / 3 * 499 / 500, 1, 1, 0.1, 0.1, 0.01]
    assert [factor(step) for step in steps] == pytest.approx(expected, abs=1e-6)


def test_adamw_takes_momentum_as_its_first_beta() -> None:
    optimizer = build_optimizer(model(), 10, **SGD | {"name": "adamw", "momentum": 0.8})["optimizer"]
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.999)
    assert optimizer.param_groups[0]["weight_decay"] == 0.1


def test_an_unknown_optimizer_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"optimizer\.name must be sgd or adamw, not 'adam'"):
        build_optimizer(model(), 10, **SGD | {"name": "adam"})


def test_the_backbone_has_a_rate_of_its_own() -> None:
    module = nn.ModuleDict({"body": nn.Linear(2, 2), "head": nn.ModuleDict({"body": nn.Linear(2, 2)})})
    module["body_of_work"] = nn.Linear(2, 2)
    settings = {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "bias_lr_factor": 2.0}
    built = build_optimizer(module, 10, backbone=("body",), backbone_lr_factor=0.1, **settings)
    rates = {id(p): g["lr"] for g in built["optimizer"].param_groups for p in g["params"]}
    found = {name: rates[id(p)] for name, p in module.named_parameters()}
    assert found == pytest.approx(
        {
            "body.weight": 0.01,
            "body.bias": 0.02,
            "head.body.weight": 0.01,
            "head.body.bias": 0.02,
            "body_of_work.weight": 0.1,
            "body_of_work.bias": 0.2,
        }
    )
