"""The smooth top-k SVM of Berrada et al. (2018), a baseline of lml, and the hard one that it smooths.

With e_j = exp(f_j / (k tau)) and sigma_i the elementary symmetric polynomial of degree i of all e_j but the label's,

    L = tau log(e^(alpha / tau) sigma_k + e_y sigma_(k-1)) - tau log(e_y sigma_(k-1)).

The polynomials are the first coefficients of prod_j (1 + e_j z), which divide and conquer multiplies pair by pair. They
span hundreds of orders of magnitude, so that the published algorithm works on logarithms. Here z is scaled instead, row
by row, such that the factors become q_j + p_j z with p_j = 1 - q_j = sigmoid(f_j / (k tau) + nu), nu from the LML
projection: the coefficients are then the probabilities of how many of independent events with a mean of k happen, and
those of k and k - 1 are among the largest. All are sums of positive products, so that none loses precision.
"""

from __future__ import annotations

import math
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.nn.functional import softplus

from lit_modules.functional.lml_dual import lml_dual


def smooth_topk_svm(
    scores: Tensor,
    targets: Tensor,
    k: int = 5,
    tau: float = 1.0,
    alpha: float = 1.0,
    hard_ratio: float = 1e3,
    reduction: Literal["mean", "sum", "none"] = "mean",
) -> Tensor:
    """The smooth loss; the hard one for rows where the difference is small, as the official code.

    Args:
        scores: f `[B, n]` of any floating dtype, n > k.
        targets: int64 `[B]`, 0-based.
        k: At least 1.
        tau: Temperature; towards 0 the loss becomes the hard one.
        alpha: Margin.
        hard_ratio: Rows whose k-th and (k+1)-th score are at least k tau log(hard_ratio) apart take the hard loss.
        reduction: Over the rows.

    Returns:
        Scalar, or `[B]`; float32 for half precision.

    Raises:
        ValueError: If k, tau, the reduction or the shapes don't fit.
    """
    values = _check(scores, targets, k, reduction)
    if tau <= 0 or hard_ratio <= 1:
        raise ValueError(f"tau must be above 0 and hard_ratio above 1, got {tau} and {hard_ratio}")
    label = targets[:, None]
    top, kth_other = _kth_other(values, label, k)
    # The label's factor becomes 1.
    others = (values / (k * tau)).scatter(1, label, -math.inf)
    with torch.no_grad():
        kth = kth_other / (k * tau)
        scale = _scale(others if values.shape[1] > k + 1 else _with_spares(others, k), kth, k)
    log_ratio = _log_ratio(others, k, *scale) - values.gather(1, label)[:, 0] / (k * tau)
    smooth = tau * softplus(alpha / tau + log_ratio)
    hard = top[:, k - 1] - top[:, k] >= k * tau * math.log(hard_ratio)
    return _reduce(torch.where(hard, _hard(values, label, kth_other, k, alpha), smooth), reduction)


def hard_topk_svm(
    scores: Tensor,
    targets: Tensor,
    k: int = 5,
    alpha: float = 1.0,
    reduction: Literal["mean", "sum", "none"] = "mean",
) -> Tensor:
    """The hard top-k SVM: by how much a k-set without the label beats, with a margin, the best one with it.

    max(0, alpha + mean of the k best others - (the label's score + sum of the k - 1 best others) / k), which is
    max(0, alpha + (k-th best other - label's score) / k).

    Args:
        scores: f `[B, n]` of any floating dtype, n > k.
        targets: int64 `[B]`, 0-based.
        k: At least 1.
        alpha: Margin.
        reduction: Over the rows.

    Returns:
        Scalar, or `[B]`; float32 for half precision.

    Raises:
        ValueError: If k, the reduction or the shapes don't fit.
    """
    values, label = _check(scores, targets, k, reduction), targets[:, None]
    return _reduce(_hard(values, label, _kth_other(values, label, k)[1], k, alpha), reduction)


def log_symmetric_ratio(x: Tensor, k: int) -> Tensor:
    """Log of sigma_k / sigma_(k-1), elementary symmetric polynomials of exp(x), in O(n k).

    Args:
        x: `[B, n]` float32 or float64; -inf for variables that are 0.
        k: At most as many as there are entries above -inf.

    Returns:
        `[B]`. It can be differentiated once.

    Raises:
        ValueError: If x isn't `[B, n]` with n >= k >= 1.
    """
    if x.ndim != 2 or not 1 <= k <= x.shape[1]:
        raise ValueError(f"x must have shape [B, n] with n >= k >= 1, got {list(x.shape)} and k = {k}")
    with torch.no_grad():
        scale = _scale(_with_spares(x, k), x.topk(k, dim=1).values[:, k - 1 :], k)
    return _log_ratio(x, k, *scale)


def _kth_other(values: Tensor, label: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k + 1 best scores `[B, k + 1]`, and the k-th best without the label's `[B, 1]`."""
    top = values.topk(k + 1, dim=1).values
    inside = values.gather(1, label) >= top[:, k - 1 : k]
    return top, torch.where(inside, top[:, k:], top[:, k - 1 : k])


def _hard(values: Tensor, label: Tensor, kth_other: Tensor, k: int, alpha: float) -> Tensor:
    return (alpha + (kth_other - values.gather(1, label)) / k).clamp(min=0)[:, 0]


def _log_ratio(x: Tensor, k: int, centre: Tensor, offset: Tensor) -> Tensor:
    # The scale cancels out of the result, so that it may be taken as a constant.
    logits = ((x - centre) + offset).t()
    coefficients = torch.stack([torch.sigmoid(-logits), torch.sigmoid(logits)])  # [2, n, B]
    while coefficients.shape[1] > 1:
        if coefficients.shape[1] % 2:
            one = torch.zeros_like(coefficients[:, :1])
            coefficients = torch.cat([coefficients, one.index_fill(0, one.new_zeros(1, dtype=torch.int64), 1)], dim=1)
        half = coefficients.shape[1] // 2
        left, right = coefficients[:, :half], coefficients[:, half:]
        coefficients = cast(Tensor, _Multiply.apply(left, right, k))  # type: ignore[no-untyped-call]
    numerator, denominator = (coefficients[i, 0].clamp(min=torch.finfo(x.dtype).tiny) for i in (k, k - 1))
    return numerator.log() - denominator.log() + (centre - offset)[:, 0]


def _scale(x: Tensor, kth: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Centre and offset, `[B, 1]`, of a sum of about k; of less where the k best are sure: k - 1 must be likely too."""
    centre, offset = lml_dual(x, k)
    return centre, torch.minimum(offset, 5 - (kth - centre))


def _with_spares(x: Tensor, k: int) -> Tensor:
    """Two entries more, where there are no more than k: a projection needs a choice. They only shift the scale."""
    finite = (x > -math.inf).sum(dim=1, keepdim=True)
    least = x.masked_fill(x == -math.inf, math.inf).amin(dim=1, keepdim=True)
    spare = torch.where(finite > k, -math.inf, least)
    return torch.cat([x, spare, spare], dim=1)


class _Multiply(torch.autograd.Function):
    """Products of polynomials `[d + 1, m, B]`, coefficients first, up to degree k."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor, k: int) -> Tensor:
        degree = min(left.shape[0] + right.shape[0] - 2, k)
        product = left.new_zeros(degree + 1, *left.shape[1:])
        for i, factor in enumerate(left):
            length = min(len(right), degree + 1 - i)
            product[i : i + length].addcmul_(factor, right[:length])
        ctx.save_for_backward(left, right)
        return product

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None]:
        left, right = ctx.saved_tensors
        (grad,) = grad_outputs
        grad_left, grad_right = torch.empty_like(left), torch.zeros_like(right)
        for i, factor in enumerate(left):
            length = min(len(right), len(grad) - i)
            torch.sum(grad[i : i + length] * right[:length], dim=0, out=grad_left[i])
            grad_right[:length].addcmul_(factor, grad[i : i + length])
        return grad_left, grad_right, None


def _check(scores: Tensor, targets: Tensor, k: int, reduction: str) -> Tensor:
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be mean, sum or none, got {reduction!r}")
    if scores.ndim != 2 or not scores.is_floating_point() or not 1 <= k < scores.shape[1]:
        got = f"{scores.dtype} {list(scores.shape)} and k = {k}"
        raise ValueError(f"scores must be floats [B, n] with n > k >= 1, got {got}")
    if targets.shape != scores.shape[:1] or targets.dtype != torch.int64:
        raise ValueError(f"targets must be int64 [{len(scores)}], got {targets.dtype} {list(targets.shape)}")
    return scores if scores.dtype == torch.float64 else scores.float()


def _reduce(losses: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return losses
    return losses.sum() if reduction == "sum" else losses.sum() / max(len(losses), 1)
