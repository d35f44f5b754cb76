"""Counts of training triplets, and the label-only predictors, biases and priors made of them."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def predicate_counts(triplets: Tensor | NDArray[Any], num_objects: int, num_predicates: int) -> Tensor:
    """How often each predicate joins each ordered pair of categories.

    Args:
        triplets: Integers `[M, 3]`, 0-based (subject category, predicate, object category); repeated rows count again.
        num_objects: Number of object categories O.
        num_predicates: Number of predicates P.

    Returns:
        int64 `[O, O, P]`: (subject category, object category, predicate).

    Raises:
        ValueError: If the shape is wrong or a label is out of range.
    """
    subject, predicate, obj = _columns(triplets, (num_objects, num_predicates, num_objects), "triplets")
    flat = (subject * num_objects + obj) * num_predicates + predicate
    counts = torch.bincount(flat, minlength=num_objects * num_objects * num_predicates)
    return counts.reshape(num_objects, num_objects, num_predicates)


def pair_counts(label_pairs: Tensor | NDArray[Any], num_objects: int) -> Tensor:
    """How often each ordered pair of categories occurs among node pairs, related or not.

    Args:
        label_pairs: Integers `[N, 2]`, 0-based (subject category, object category).
        num_objects: Number of object categories O.

    Returns:
        int64 `[O, O]`: (subject category, object category).

    Raises:
        ValueError: If the shape is wrong or a label is out of range.
    """
    subject, obj = _columns(label_pairs, (num_objects, num_objects), "label_pairs")
    counts = torch.bincount(subject * num_objects + obj, minlength=num_objects * num_objects)
    return counts.reshape(num_objects, num_objects)


def frequency_bias(
    foreground_counts: Tensor, background_counts: Tensor, normaliser_eps: float = 1e-8, log_eps: float = 1e-3
) -> Tensor:
    """Logits of the predicate given both categories, as Neural Motifs and RelDN initialise their frequency table.

    log(c / (sum of c + normaliser_eps) + log_eps) for each row c = (1 + background, predicate counts).

    Args:
        foreground_counts: `[O, O, P]`, see `predicate_counts`.
        background_counts: `[O, O]`, node pairs without regard to relations, see `pair_counts`.
        normaliser_eps: Added to a row's sum.
        log_eps: Added inside the logarithm: the probability of what was never seen.

    Returns:
        float64 `[O, O, P + 1]`; column 0 stands for no relation, column p + 1 for predicate p. A pair never seen gets
        (log(1 + log_eps), log(log_eps), ...).

    Raises:
        ValueError: If the shapes don't fit.
    """
    _check_counts(foreground_counts, background_counts)
    rows = torch.cat([1 + background_counts[..., None], foreground_counts], dim=-1).to(torch.float64)
    return (rows / (rows.sum(dim=-1, keepdim=True) + normaliser_eps) + log_eps).log()


def predicate_probabilities(foreground_counts: Tensor, background_counts: Tensor | None) -> Tensor:
    """Probability of each predicate given both categories, from counts alone.

    With background pairs, count / (sum of counts + background + 1): what is missing to 1 is the probability of no
    relation. Without, count / sum of counts, and 0 for a pair never seen.

    Args:
        foreground_counts: `[O, O, P]`, see `predicate_counts`.
        background_counts: `[O, O]`, see `pair_counts`, or None.

    Returns:
        float64 `[O, O, P]`, fractions.

    Raises:
        ValueError: If the shapes don't fit.
    """
    _check_counts(foreground_counts, background_counts)
    counts = foreground_counts.to(torch.float64)
    total = counts.sum(dim=-1, keepdim=True)
    # An unseen pair without background is 0 / 1; a seen one has a total of at least 1.
    return counts / (total.clamp(min=1) if background_counts is None else total + background_counts[..., None] + 1)


def triplet_log_prior(foreground_counts: Tensor) -> Tensor:
    """Log prior over whole triplets with add-one smoothing (log psi_u of vrd_tensor).

    log((count + 1) / (N + S P O)), N the number of counted triplets, so that the prior sums to 1 and its least value is
    1 / (N + S P O).

    Args:
        foreground_counts: `[S, O, P]`, see `predicate_counts`.

    Returns:
        float64 `[S, P, O]`, contiguous: (subject, predicate, object), the order of the triplet tensor, **not** of the
        counts.

    Raises:
        ValueError: If the counts aren't three-dimensional.
    """
    if foreground_counts.ndim != 3:
        raise ValueError(f"foreground_counts must have shape [S, O, P], got {list(foreground_counts.shape)}")
    smoothed = foreground_counts.to(torch.float64).permute(0, 2, 1).contiguous() + 1
    return smoothed.log() - smoothed.sum().log()


def _columns(labels: Tensor | NDArray[Any], sizes: tuple[int, ...], name: str) -> tuple[Tensor, ...]:
    """The columns of a label table as int64, each checked against its number of labels."""
    # int64 before arithmetic: annotation files hold uint8 labels, which would wrap around in a flat index.
    table = torch.as_tensor(labels).to(torch.int64)
    if table.ndim != 2 or table.shape[1] != len(sizes):
        raise ValueError(f"{name} must have shape [N, {len(sizes)}], got {list(table.shape)}")
    if len(table):
        low, high = table.amin(dim=0).tolist(), table.amax(dim=0).tolist()
        for column, size in enumerate(sizes):
            if low[column] < 0 or high[column] >= size:
                found = f"{low[column]} to {high[column]}"
                raise ValueError(f"{name} column {column} must hold labels 0 to {size - 1}, got {found}")
    return table.unbind(dim=1)


def _check_counts(foreground_counts: Tensor, background_counts: Tensor | None) -> None:
    if foreground_counts.ndim != 3:
        raise ValueError(f"foreground_counts must have shape [O, O, P], got {list(foreground_counts.shape)}")
    if background_counts is not None and background_counts.shape != foreground_counts.shape[:2]:
        expected, got = list(foreground_counts.shape[:2]), list(background_counts.shape)
        raise ValueError(f"background_counts must have shape {expected}, got {got}")
