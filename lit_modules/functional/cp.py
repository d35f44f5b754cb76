"""Distributions over (subject, predicate, object) triplets whose tensor has a low-rank CP decomposition (vrd_tensor).

A pair's logits are R component vectors for each branch: `subject_logits` `[B, R, S]`, `predicate_logits` `[B, R, P]`
and `object_logits` `[B, R, O]`, for B pairs. The triplet (i, j, k) has the probability

    y_ijk = sum_r exp(s_ri + p_rj + o_rk) / Z      (equation 6)

which is a mixture of R products of independent softmaxes, with weights pi_r proportional to the product of the
branches' normalisers. Everything is computed in log space, in float32 for half precision logits. A NaN logit makes the
results of its pair NaN, without an error: a check would make a GPU wait. -inf is allowed for single logits, as long as
each component keeps a finite one in every branch.
"""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from torch import Tensor

Branches = tuple[Tensor, Tensor, Tensor]


def cp_log_partition(subject_logits: Tensor, predicate_logits: Tensor, object_logits: Tensor) -> Tensor:
    """Log of the normaliser Z, the sum over all S P O triplets, in O(R (S + P + O)).

    Args:
        subject_logits: `[B, R, S]`.
        predicate_logits: `[B, R, P]`.
        object_logits: `[B, R, O]`.

    Returns:
        `[B]`, in nats.

    Raises:
        ValueError: If the shapes don't fit.
    """
    branches = check_logits(subject_logits, predicate_logits, object_logits)
    return _log_normalisers(branches).logsumexp(dim=1)


def cp_mixture_log_weights(subject_logits: Tensor, predicate_logits: Tensor, object_logits: Tensor) -> Tensor:
    """Log of the mixture weights pi_r of the components.

    Args:
        subject_logits: `[B, R, S]`.
        predicate_logits: `[B, R, P]`.
        object_logits: `[B, R, O]`.

    Returns:
        `[B, R]`, in nats.

    Raises:
        ValueError: If the shapes don't fit.
    """
    branches = check_logits(subject_logits, predicate_logits, object_logits)
    return _log_normalisers(branches).log_softmax(dim=1)


def cp_log_likelihood(
    subject_logits: Tensor, predicate_logits: Tensor, object_logits: Tensor, targets: Tensor
) -> Tensor:
    """Log probability of one triplet for each pair (equation 6), in time and memory O(R (S + P + O)).

    The gradient is in closed form (equation 24 of the supplement) and can't be differentiated again. The main text's
    gradient has wrong superscripts.

    Args:
        subject_logits: `[B, R, S]`.
        predicate_logits: `[B, R, P]`.
        object_logits: `[B, R, O]`.
        targets: int64 `[B, 3]`, 0-based (subject, predicate, object).

    Returns:
        `[B]`, in nats.

    Raises:
        ValueError: If shapes or dtypes don't fit, or, on the CPU, if a target is out of range. On a GPU, where looking
            would make it wait, such a target is the device's own indexing error.
    """
    branches = check_logits(subject_logits, predicate_logits, object_logits)
    if targets.shape != (len(subject_logits), 3) or targets.dtype != torch.int64:
        got = f"{list(targets.shape)} of {targets.dtype}"
        raise ValueError(f"targets must be int64 of shape [{len(subject_logits)}, 3], got {got}")
    for column, (name, logits) in enumerate(zip(("subject", "predicate", "object"), branches, strict=True)):
        _check_range(targets[:, column], logits.shape[2], f"targets column {column} ({name})")
    return cast(Tensor, _LogLikelihood.apply(*branches, targets))  # type: ignore[no-untyped-call]


def cp_nll(
    subject_logits: Tensor,
    predicate_logits: Tensor,
    object_logits: Tensor,
    targets: Tensor,
    reduction: Literal["mean", "sum", "none"] = "mean",
) -> Tensor:
    """Negative log likelihood of the annotated triplets, the training loss of vrd_tensor.

    With one component it is the sum of three cross entropies.

    Args:
        subject_logits: `[B, R, S]`.
        predicate_logits: `[B, R, P]`.
        object_logits: `[B, R, O]`.
        targets: int64 `[B, 3]`, 0-based (subject, predicate, object).
        reduction: Over the pairs. The mean of no pairs is 0, so that an image without relations does no harm.

    Returns:
        Scalar, or `[B]` if not reduced, in nats.

    Raises:
        ValueError: As `cp_log_likelihood`, or if the reduction is unknown.
    """
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be mean, sum or none, got {reduction!r}")
    nll = -cp_log_likelihood(subject_logits, predicate_logits, object_logits, targets)
    if reduction == "none":
        return nll
    return nll.sum() / max(len(nll), 1) if reduction == "mean" else nll.sum()


def cp_log_tensor(subject_logits: Tensor, predicate_logits: Tensor, object_logits: Tensor) -> Tensor:
    """Log probabilities of all triplets. Memory O(B S P O): for single pairs and for tests.

    Args:
        subject_logits: `[B, R, S]`.
        predicate_logits: `[B, R, P]`.
        object_logits: `[B, R, O]`.

    Returns:
        `[B, S, P, O]`, in nats.

    Raises:
        ValueError: If the shapes don't fit.
    """
    subject, predicate, obj = log_factors(check_logits(subject_logits, predicate_logits, object_logits))
    left = (subject[..., None] + predicate[:, :, None]).flatten(start_dim=2)
    return log_sum_outer(left, obj).reshape(len(obj), subject.shape[2], predicate.shape[2], obj.shape[2])


def cp_log_slice(
    subject_logits: Tensor,
    predicate_logits: Tensor,
    object_logits: Tensor,
    subject_labels: Tensor,
    object_labels: Tensor,
) -> Tensor:
    """Joint log probabilities of every predicate with a given subject and object category.

    Args:
        subject_logits: `[B, R, S]`.
        predicate_logits: `[B, R, P]`.
        object_logits: `[B, R, O]`.
        subject_labels: int64 `[B]`, 0-based.
        object_labels: int64 `[B]`, 0-based.

    Returns:
        `[B, P]`, log y_ijk for the given i and k, in nats.

    Raises:
        ValueError: If shapes don't fit or, on the CPU, if a label is out of range.
    """
    branches = check_logits(subject_logits, predicate_logits, object_logits)
    for name, labels, logits in (("subject", subject_labels, branches[0]), ("object", object_labels, branches[2])):
        if labels.shape != (len(logits),):
            raise ValueError(f"{name}_labels must have shape [{len(logits)}], got {list(labels.shape)}")
        _check_range(labels, logits.shape[2], f"{name}_labels")
    subject, predicate, obj = log_factors(branches)
    components = _index(subject_labels, subject.shape[1])
    given = subject.gather(2, components) + obj.gather(2, _index(object_labels, obj.shape[1]))
    return (given + predicate).logsumexp(dim=1)


def cp_conditional_log_predicate(
    subject_logits: Tensor,
    predicate_logits: Tensor,
    object_logits: Tensor,
    subject_labels: Tensor,
    object_labels: Tensor,
) -> Tensor:
    """Log probabilities of the predicate if the categories of subject and object are known.

    Args:
        subject_logits: `[B, R, S]`.
        predicate_logits: `[B, R, P]`.
        object_logits: `[B, R, O]`.
        subject_labels: int64 `[B]`, 0-based.
        object_labels: int64 `[B]`, 0-based.

    Returns:
        `[B, P]`, in nats; each row's probabilities sum to 1.

    Raises:
        ValueError: As `cp_log_slice`.
    """
    joint = cp_log_slice(subject_logits, predicate_logits, object_logits, subject_labels, object_labels)
    return joint.log_softmax(dim=1)


def cp_predicate_log_marginal(subject_logits: Tensor, predicate_logits: Tensor, object_logits: Tensor) -> Tensor:
    """Log probabilities of the predicate, summed over all subjects and objects.

    Args:
        subject_logits: `[B, R, S]`.
        predicate_logits: `[B, R, P]`.
        object_logits: `[B, R, O]`.

    Returns:
        `[B, P]`, log of sum_r pi_r softmax(p_r), in nats.

    Raises:
        ValueError: If the shapes don't fit.
    """
    branches = check_logits(subject_logits, predicate_logits, object_logits)
    weights = _log_normalisers(branches).log_softmax(dim=1)
    return (weights[..., None] + branches[1].log_softmax(dim=2)).logsumexp(dim=1)


class _LogLikelihood(torch.autograd.Function):
    """Keeps the exponentials of the forward pass for the gradient: half the time of autograd through logsumexp."""

    @staticmethod
    def forward(ctx: Any, subject: Tensor, predicate: Tensor, obj: Tensor, targets: Tensor) -> Tensor:
        exponentials, totals = [], []
        log_normaliser = log_target = torch.zeros((), dtype=subject.dtype, device=subject.device)
        for logits, labels in zip((subject, predicate, obj), targets.T, strict=True):
            peak = logits.amax(dim=2, keepdim=True)
            exponential = (logits - peak).exp_()
            total = exponential.sum(dim=2, keepdim=True)
            # Peak and log total apart: their sum would round away the small total of a confident branch.
            at_target = logits.gather(2, _index(labels, logits.shape[1])) - peak
            log_target = log_target + (at_target - total.log())
            log_normaliser = log_normaliser + (peak + total.log())
            exponentials.append(exponential)
            totals.append(total)
        log_weights = log_normaliser.log_softmax(dim=1)
        joint = log_weights + log_target  # [B, R, 1]
        log_likelihood = joint.logsumexp(dim=1, keepdim=True)
        responsibilities = (joint - log_likelihood).exp()
        ctx.save_for_backward(targets, responsibilities, log_weights.exp(), *totals, *exponentials)
        return log_likelihood.flatten()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        targets, responsibilities, weights, *saved = ctx.saved_tensors
        grad = grad_outputs[0][:, None, None]
        grads: list[Tensor | None] = []
        for total, exponential, labels in zip(saved[:3], saved[3:], targets.T, strict=True):
            # d log y / d logit_ri = 1[i = target] q_r - pi_r softmax(logits_r)_i
            scaled = exponential * (-grad * weights / total)
            grads.append(scaled.scatter_add_(2, _index(labels, scaled.shape[1]), grad * responsibilities))
        return (*grads, None)


def log_sum_outer(left: Tensor, right: Tensor) -> Tensor:
    """Log of the matrix product of exponentials, log sum_r exp(left_rx + right_ry), one component at a time.

    Args:
        left: `[B, R, X]`, logs.
        right: `[B, R, Y]`, logs.

    Returns:
        `[B, X, Y]`. Unlike a scaled matrix product it keeps terms that are tiny in both factors.
    """
    total = left[:, 0, :, None] + right[:, 0, None]
    for component in range(1, left.shape[1]):
        total = torch.logaddexp(total, left[:, component, :, None] + right[:, component, None])
    return total


def _log_normalisers(branches: Branches) -> Tensor:
    """`[B, R]`: A_r, the sum of the three log normalisers of each component."""
    subject, predicate, obj = branches
    return subject.logsumexp(dim=2) + predicate.logsumexp(dim=2) + obj.logsumexp(dim=2)


def log_factors(branches: Branches) -> Branches:
    """Rank-one factors of the normalised tensor: log y_ijk is the lse over r of their sum.

    Args:
        branches: Logits `[B, R, S]`, `[B, R, P]`, `[B, R, O]`.

    Returns:
        The branches' log softmaxes; the log mixture weights are added to the subject's.
    """
    subject, predicate, obj = (logits.log_softmax(dim=2) for logits in branches)
    return subject + _log_normalisers(branches).log_softmax(dim=1)[..., None], predicate, obj


def _index(labels: Tensor, components: int) -> Tensor:
    """`[B, R, 1]`: the same label for each component, as `gather` wants it."""
    return labels[:, None, None].expand(-1, components, 1)


def check_logits(subject_logits: Tensor, predicate_logits: Tensor, object_logits: Tensor) -> Branches:
    """Check that the three branches belong together, and raise half precision to float32.

    Args:
        subject_logits: `[B, R, S]`.
        predicate_logits: `[B, R, P]`.
        object_logits: `[B, R, O]`.

    Returns:
        The three tensors.

    Raises:
        ValueError: If a branch isn't a three-dimensional float tensor, if B or R differ, or if R or the labels are 0.
    """
    branches = (subject_logits, predicate_logits, object_logits)
    names = ("subject_logits", "predicate_logits", "object_logits")
    for name, logits in zip(names, branches, strict=True):
        if logits.ndim != 3 or logits.shape[:2] != branches[0].shape[:2] or 0 in logits.shape[1:]:
            expected = f"[B, R, labels] with the same B and R >= 1 as subject_logits {list(branches[0].shape)}"
            raise ValueError(f"{name} must have shape {expected}, got {list(logits.shape)}")
        if not logits.is_floating_point():
            raise ValueError(f"{name} must be of a floating dtype, got {logits.dtype}")
    low = (torch.float16, torch.bfloat16)
    subject, predicate, obj = (logits.float() if logits.dtype in low else logits for logits in branches)
    return subject, predicate, obj


def _check_range(labels: Tensor, size: int, name: str) -> None:
    if labels.device.type != "cpu" or not labels.numel():
        return
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= size:
        raise ValueError(f"{name} must hold labels 0 to {size - 1}, got {low} to {high}")
