"""The limited multi-label projection (lml): from scores to probabilities of n labels that sum to exactly k.

    y = argmax_{0 < y < 1, sum y = k}  x.y + H_b(y)  =  sigmoid(x + nu)       (equations 14 and 15)

H_b is the binary entropy, nu the number that makes the sum k; see `functional.lml_dual` for how it is found. Scores may
be of any floating dtype; half precision is computed in float32. Order is preserved. +inf and -inf give y = 1 and 0; a
row with more than k entries of +inf, or fewer than k above -inf, is an error on the CPU and NaN on a GPU, where a look
would make it wait. A NaN makes its row NaN everywhere. Where the mask leaves no more than k entries in a row, all of
these are 1 and get no gradient, as in the official code (which says 1 - 1e-5).
"""

from __future__ import annotations

import math
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from lit_modules.functional.lml_dual import lml_dual, lml_dual_bracketing, lml_rows


def lml(x: Tensor, k: int, dim: int = -1, mask: Tensor | None = None) -> Tensor:
    """Project scores onto the LML polytope (Module 1): sigmoids that sum to k along a dimension.

    The gradient is implicit (equation 19): w (g - sum(w g) / sum(w)) with w = y (1 - y), and can be differentiated
    again; it is 0 where every entry is saturated.

    Args:
        x: Scores of any floating dtype, n of them along `dim`.
        k: How many labels, 1 <= k <= n. With k = n every y is 1 and the gradient 0.
        dim: The dimension of the labels.
        mask: bool, broadcastable to x, False for entries that don't exist (ragged rows): these get y = 0.

    Returns:
        y in [0, 1], of x's shape and dtype.

    Raises:
        ValueError: If k, the dtypes or the shapes don't fit, or, on the CPU in eager mode, if a row has too many
            infinities for a sum of k.
    """
    scores, valid = _check(x, k, dim, mask)
    y = cast(Tensor, _Projection.apply(scores, k, valid))  # type: ignore[no-untyped-call]
    return y.to(x.dtype).reshape(x.movedim(dim, -1).shape).movedim(-1, dim)


def lml_nll(
    x: Tensor,
    targets: Tensor,
    k: int,
    dim: int = -1,
    mask: Tensor | None = None,
    reduction: Literal["mean", "sum", "none"] = "mean",
) -> Tensor:
    """Negative log likelihood of the observed labels under the projection (Algorithm 2), without forming it.

    softplus(-(x_j + nu)) for each observed label j: finite, with a gradient, also where y_j underflows to 0. The
    gradient is -(1 - y_j) at each observed label, plus w_i / sum(w) times the sum of their 1 - y_j at every entry.

    Args:
        x: Scores of any floating dtype, n of them along `dim`.
        targets: The observed labels: int64 of x's shape without `dim`, one index a row, or bool of x's shape.
        k: How many labels, 1 <= k <= n.
        dim: The dimension of the labels.
        mask: bool, broadcastable to x, False for entries that don't exist. An observed one among these is a mistake.
        reduction: The mean is over all observed labels of the batch, and 0 if there are none. "none" gives the sum of
            each row.

    Returns:
        Scalar, or x's shape without `dim`, in nats; float32 for half precision.

    Raises:
        ValueError: If k, the reduction, dtypes or shapes don't fit, or, on the CPU in eager mode, if an index is out of
            range, a target is masked out or a row has too many infinities for a sum of k.
    """
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be mean, sum or none, got {reduction!r}")
    scores, valid = _check(x, k, dim, mask)
    moved = x.movedim(dim, -1)
    single = targets.dtype == torch.int64
    shape = moved.shape[:-1] if single else x.shape
    if targets.shape != shape or targets.dtype not in (torch.int64, torch.bool):
        expected = f"int64 {list(moved.shape[:-1])} or bool {list(x.shape)}"
        raise ValueError(f"targets must be {expected}, got {targets.dtype} {list(targets.shape)}")
    targets = targets.reshape(-1, 1) if single else targets.movedim(dim, -1).reshape(scores.shape)
    _check_targets(targets, valid, scores.shape[1])
    if k == scores.shape[1]:
        losses = scores.new_zeros(len(scores), 1)
    else:
        filled, full = _fill(scores, k, valid)
        centre, offset = cast("tuple[Tensor, Tensor]", _Dual.apply(filled, k))  # type: ignore[no-untyped-call]
        observed = filled.gather(1, targets) if single else filled
        losses = softplus(-((observed - centre) + offset))
        if full is not None:
            losses = losses.masked_fill(full, 0)
    sums = losses.sum(dim=1) if single else torch.where(targets, losses, 0).sum(dim=1)
    if reduction == "none":
        return sums.reshape(moved.shape[:-1])
    if reduction == "sum":
        return sums.sum()
    return sums.sum() / (max(len(targets), 1) if single else targets.sum().clamp(min=1))


def lml_bracketing(
    x: Tensor, k: int, dim: int = -1, samples: int | None = None, eps: float = 1e-4, max_iterations: int = 100
) -> Tensor:
    """The projection by the paper's bracketing method, forward and backward as the official code: a reference.

    Args:
        x: Scores of any floating dtype, n of them along `dim`; finite.
        k: How many labels, at least 1; for k >= n every y is 1 - 1e-5 and the gradient 0.
        dim: The dimension of the labels.
        samples: d, points of the bracket that are tried at a time; None for 10 on a CPU and 100 on a GPU.
        eps: Width of the bracket at which to stop.
        max_iterations: At most so many rounds.

    Returns:
        y in (0, 1), of x's shape and dtype.

    Raises:
        ValueError: If k or samples are too small or x isn't of a floating dtype.
    """
    samples = samples if samples is not None else 10 if x.device.type == "cpu" else 100
    if samples < 3:
        raise ValueError(f"samples must be at least 3, as two only repeat the bracket, got {samples}")
    scores, _ = _check(x, min(k, x.shape[dim]), dim, None)
    y = cast(Tensor, _Bracketing.apply(scores, k, samples, eps, max_iterations))  # type: ignore[no-untyped-call]
    return y.to(x.dtype).reshape(x.movedim(dim, -1).shape).movedim(-1, dim)


class _Projection(torch.autograd.Function):
    """Rows `[B, n]` to y. Differentiating the backward goes through y, which is a function of x with this gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, k: int, valid: Tensor | None) -> Tensor:
        if k == x.shape[1]:
            y = torch.ones_like(x)
        else:
            filled, full = _fill(x, k, valid)
            y, offset = lml_rows(filled, k)
            _check_feasible(filled, k, offset)
            if valid is not None and full is not None:
                y = torch.where(full, valid.to(x.dtype), y)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, None, None]:
        (y,) = ctx.saved_tensors
        (grad,) = grad_outputs
        w = torch.addcmul(y, y, y, value=-1)
        total = w.sum(dim=1, keepdim=True)
        weighted = w * grad
        mean = weighted.sum(dim=1, keepdim=True) / torch.where(total > 0, total, 1.0)
        return weighted.addcmul_(w, mean, value=-1), None, None


class _Dual(torch.autograd.Function):
    """Rows `[B, n]` to centre and offset of `lml_dual`, the centre as a constant: d offset / dx = -w / sum(w)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
        centre, offset = lml_dual(x, k)
        _check_feasible(x, k, offset)
        ctx.mark_non_differentiable(centre)
        ctx.save_for_backward(x, centre, offset)
        return centre, offset

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        x, centre, offset = ctx.saved_tensors
        limit = torch.finfo(x.dtype).max / 8
        logits = ((x - centre) + offset).clamp(-limit, limit)
        # log w rather than w, which underflows: only ratios of w count.
        return -grad_outputs[1] * (logsigmoid(logits) + logsigmoid(-logits)).softmax(dim=1), None


class _Bracketing(torch.autograd.Function):
    """Module 1 of the paper."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, k: int, samples: int, eps: float, max_iterations: int) -> Tensor:
        ctx.infeasible = k >= x.shape[1]
        if ctx.infeasible:
            y = torch.full_like(x, 1 - 1e-5)
        else:
            y = torch.sigmoid(x + lml_dual_bracketing(x, k, samples, eps, max_iterations))
        ctx.save_for_backward(y)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None, None]:
        (y,), (grad,) = ctx.saved_tensors, grad_outputs
        if ctx.infeasible:
            return torch.zeros_like(y), None, None, None, None
        inverse = 1 / (1 / y + 1 / (1 - y))
        d_nu = (inverse * grad).sum(dim=1, keepdim=True) / inverse.sum(dim=1, keepdim=True)
        return inverse * (grad - d_nu), None, None, None, None


def _check_feasible(x: Tensor, k: int, offset: Tensor) -> None:
    if torch.compiler.is_compiling() or x.device.type != "cpu" or not bool(offset.isnan().any()):
        return
    if bool((offset.isnan() & ~x.isnan().any(dim=1, keepdim=True)).any()):
        rows = f"rows with more than {k} entries of +inf or fewer than {k} above -inf"
        raise ValueError(f"x has {rows}, which no y that sums to {k} fits; leave entries out by the mask")


def _fill(x: Tensor, k: int, valid: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Rows with -inf where the mask says so, and which rows it leaves no choice, bool `[B, 1]`: these become 0."""
    if valid is None:
        return x, None
    full = valid.sum(dim=1, keepdim=True) <= k
    return torch.where(valid & ~full, x, torch.where(full, 0.0, -math.inf).to(x.dtype)), full


def _check(x: Tensor, k: int, dim: int, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Scores and mask as rows `[B, n]`, half precision as float32."""
    if not x.is_floating_point():
        raise ValueError(f"x must be of a floating dtype, got {x.dtype}")
    if not -x.ndim <= dim < x.ndim:
        raise ValueError(f"x must have a dimension {dim}, got shape {list(x.shape)}")
    n = x.shape[dim]
    if not 1 <= k <= n:
        raise ValueError(f"k must be at least 1 and at most the number of labels, {n}, got {k}: no y sums to k")
    rows = x.movedim(dim, -1).reshape(-1, n)
    rows = rows if x.dtype == torch.float64 else rows.float()
    if mask is None:
        return rows, None
    if mask.dtype != torch.bool or mask.ndim > x.ndim:
        raise ValueError(f"mask must be bool and broadcast to {list(x.shape)}, got {mask.dtype} {list(mask.shape)}")
    try:
        valid = mask.expand(x.shape)
    except RuntimeError:
        raise ValueError(f"mask must broadcast to shape {list(x.shape)}, got {list(mask.shape)}") from None
    return rows, valid.movedim(dim, -1).reshape(-1, n)


def _check_targets(targets: Tensor, valid: Tensor | None, n: int) -> None:
    if torch.compiler.is_compiling() or targets.device.type != "cpu" or not targets.numel():
        return
    if targets.dtype == torch.int64:
        low, high = int(targets.min()), int(targets.max())
        if low < 0 or high >= n:
            raise ValueError(f"targets must hold labels 0 to {n - 1}, got {low} to {high}")
    if valid is not None:
        inside = valid.gather(1, targets) if targets.dtype == torch.int64 else valid | ~targets
        if not bool(inside.all()):
            raise ValueError("targets holds a label that the mask leaves out")
