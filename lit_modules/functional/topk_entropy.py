"""The truncated top-k entropy of Lapin et al., for one and for several labels a row (lml, Sections 2.3.1 and 2.3.2).

Cross entropy without the competitors that a top-k error forgives: for each label y of a row,

    log(1 + sum_{j in J} exp(f_j - f_y))       (equations 9 and 13)

where J leaves out all labels of the row and the best of the others. How many of them is what paper and official code
don't agree on:

- `paper`: J holds the m - k lowest of the m scores, so that k minus the number of labels are left out (at least 0).
- `official`: J is what the k best of all m scores, labels included, leave. A label outside the best k then makes the
  code forgive one competitor more; with all labels inside, both are equal.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import softplus

Variant = Literal["paper", "official"]


def truncated_topk_entropy(
    scores: Tensor,
    targets: Tensor,
    k: int,
    variant: Variant = "official",
    dim: int = -1,
    mask: Tensor | None = None,
    reduction: Literal["mean", "sum", "none"] = "mean",
) -> Tensor:
    """The loss of equations 9 and 13. With k = 1 and one label, `paper` is the cross entropy.

    Sums of exponentials are taken in log space; the official code limits exponents to 80 (one label) or lets them
    overflow (several).

    Args:
        scores: f of any floating dtype, m of them along `dim`.
        targets: int64 of the scores' shape without `dim`, one label a row, or bool of the scores' shape, any number.
        k: How many labels may be predicted, at least 1.
        variant: Which competitors are forgiven, see above.
        dim: The dimension of the labels.
        mask: bool, broadcastable to the scores, False for entries that don't exist.
        reduction: "sum" over all labels is equation 13. "mean" is over the labels of a row and then over the rows, as
            the official code; rows without a label or with no more than k entries don't count. "none" gives each
            row's sum.

    Returns:
        Scalar, or the scores' shape without `dim`, in nats; float32 for half precision.

    Raises:
        ValueError: If k is below 1, or if the reduction, the variant, dtypes or shapes don't fit.
    """
    _check(scores, targets, k, variant, dim, reduction)
    moved = scores.movedim(dim, -1)
    values = (moved if scores.dtype == torch.float64 else moved.float()).reshape(-1, moved.shape[-1])
    if targets.dtype == torch.int64:
        labels = torch.zeros_like(values, dtype=torch.bool).scatter(1, targets.reshape(-1, 1), True)
    else:
        labels = targets.movedim(dim, -1).reshape(values.shape)
    valid = torch.ones_like(labels)
    if mask is not None:
        valid = mask.expand(scores.shape).movedim(dim, -1).reshape(values.shape)
        labels = labels & valid
    counted = (valid.sum(dim=1, keepdim=True) > k) & labels.any(dim=1, keepdim=True)
    if values.shape[1] <= k:
        sums = 0 * values.sum(dim=1)  # nothing competes
    else:
        tail = _tail(values, labels, valid, k, variant)
        # A row without competitors has a finite, huge negative tail: its gradient is 0, that of -inf would be NaN.
        limit = torch.finfo(values.dtype).min / 8
        log_tail = tail.clamp(min=limit).logsumexp(dim=1, keepdim=True)
        losses = softplus(log_tail - torch.where(labels, values, 0))
        sums = torch.where(labels & counted, losses, 0).sum(dim=1)
    if reduction == "none":
        return sums.reshape(moved.shape[:-1])
    if reduction == "sum":
        return sums.sum()
    means = sums / labels.sum(dim=1).clamp(min=1)
    return means.sum() / counted.sum().clamp(min=1)


def _tail(values: Tensor, labels: Tensor, valid: Tensor, k: int, variant: Variant) -> Tensor:
    """`[B, m]`: the scores of J, -inf for all others."""
    others = values.masked_fill(labels | ~valid, -math.inf)
    best, index = others.topk(k, dim=1)
    if variant == "paper":
        inside = labels.sum(dim=1, keepdim=True)
    else:
        kth = values.masked_fill(~valid, -math.inf).topk(k, dim=1).values[:, k - 1 :]
        inside = (labels & (values >= kth)).sum(dim=1, keepdim=True)
    forgiven = torch.arange(k, device=values.device) < k - inside
    return others.scatter(1, index, best.masked_fill(forgiven, -math.inf))


def _check(scores: Tensor, targets: Tensor, k: int, variant: str, dim: int, reduction: str) -> None:
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be mean, sum or none, got {reduction!r}")
    if variant not in ("paper", "official"):
        raise ValueError(f"variant must be paper or official, got {variant!r}")
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if not scores.is_floating_point():
        raise ValueError(f"scores must be of a floating dtype, got {scores.dtype}")
    shape = scores.movedim(dim, -1).shape[:-1]
    expected = {torch.int64: shape, torch.bool: scores.shape}.get(targets.dtype)
    if targets.shape != expected:
        wanted = f"int64 {list(shape)} or bool {list(scores.shape)}"
        raise ValueError(f"targets must be {wanted}, got {targets.dtype} {list(targets.shape)}")
