"""Optimisers with a step schedule, from plain settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


def build_optimizer(
    module: nn.Module,
    total_steps: int,
    *,
    name: str,
    lr: float,
    momentum: float,
    weight_decay: float,
    bias_lr_factor: float = 1.0,
    bias_weight_decay: bool = True,
    warmup_steps: int = 0,
    warmup_factor: float = 1.0,
    drops: Sequence[float] = (),
    backbone: Sequence[str] = (),
    backbone_lr_factor: float = 1.0,
) -> dict[str, Any]:
    """Return what `configure_optimizers` returns: an optimiser over the trainable parameters and its schedule.

    The rate rises linearly from `warmup_factor * lr` over `warmup_steps`, and falls tenfold at each fraction of the
    schedule in `drops`.

    Args:
        module: Its parameters that need gradients are trained.
        total_steps: Steps of the whole schedule.
        name: `sgd` (with `momentum`) or `adamw`.
        lr: Peak learning rate.
        momentum: Of SGD; first beta of AdamW.
        weight_decay: L2 coefficient.
        bias_lr_factor: Factor on the rate of biases (Detectron doubles it).
        bias_weight_decay: Whether biases decay.
        warmup_steps: Steps of the linear rise.
        warmup_factor: Where it begins.
        drops: Fractions in (0, 1), ascending.
        backbone: Names of submodules, wherever they stand in `module`.
        backbone_lr_factor: Factor on the rate of their parameters.

    Raises:
        ValueError: The optimiser is unknown.
    """
    named = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
    groups = []
    for is_backbone, rate in ((False, lr), (True, lr * backbone_lr_factor)):
        part = [(n, p) for n, p in named if bool(set(n.split(".")) & set(backbone)) == is_backbone]
        biases = [p for n, p in part if n.endswith("bias")]
        weights = [p for n, p in part if not n.endswith("bias")]
        decay = weight_decay if bias_weight_decay else 0.0
        groups.append({"params": weights, "lr": rate, "weight_decay": weight_decay})
        groups.append({"params": biases, "lr": rate * bias_lr_factor, "weight_decay": decay})
    groups = [g for g in groups if g["params"]]
    optimizer: torch.optim.Optimizer
    if name == "sgd":
        optimizer = torch.optim.SGD(groups, lr=lr, momentum=momentum)
    elif name == "adamw":
        optimizer = torch.optim.AdamW(groups, lr=lr, betas=(momentum, 0.999))
    else:
        raise ValueError(f"optimizer.name must be sgd or adamw, not {name!r}")
    drop_steps = [round(fraction * total_steps) for fraction in drops]

    def factor(step: int) -> float:
        warm = warmup_factor + (1 - warmup_factor) * step / warmup_steps if step < warmup_steps else 1.0
        return float(warm * 0.1 ** sum(step >= drop for drop in drop_steps))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
