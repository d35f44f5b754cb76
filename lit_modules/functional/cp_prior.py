"""The sum over all triplets of the CP distribution times a prior, without the S x P x O tensor of each pair."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_modules.functional.cp import cp_mixture_log_weights


def cp_log_expectation(
    subject_logits: Tensor, predicate_logits: Tensor, object_logits: Tensor, log_prior: Tensor, chunk: int = 64
) -> Tensor:
    """Log of the sum over i, j, k of y_ijk psi_ijk: what a pair's scores would have to be divided by to sum to 1.

    By linearity it is the mixture of each component's own sum, sum_r pi_r sum_ijk softmax(s_r)_i softmax(p_r)_j
    softmax(o_r)_k psi_ijk.

    Args:
        subject_logits: `[B, R, S]`.
        predicate_logits: `[B, R, P]`.
        object_logits: `[B, R, O]`.
        log_prior: `[S, P, O]`, nats.
        chunk: Pairs and components that are processed at a time; each takes S P numbers.

    Returns:
        `[B]`, in nats, in the dtype of `log_prior`.

    Raises:
        ValueError: If the shapes don't fit.
    """
    sizes = tuple(logits.shape[-1] for logits in (subject_logits, predicate_logits, object_logits))
    if log_prior.shape != sizes:
        raise ValueError(f"log_prior must have shape [S, P, O] = {list(sizes)}, got {list(log_prior.shape)}")
    weights = cp_mixture_log_weights(subject_logits, predicate_logits, object_logits).to(log_prior.dtype)
    factors = (subject_logits, predicate_logits, object_logits)
    subject, predicate, obj = (f.to(log_prior.dtype).softmax(dim=2).flatten(0, 1) for f in factors)
    prior = log_prior.exp()
    sums = [weights.new_zeros(0)]
    for first in range(0, len(subject), chunk):
        part = slice(first, first + chunk)
        over_objects = torch.einsum("ijk,bk->bij", prior, obj[part])
        sums.append(torch.einsum("bij,bi,bj->b", over_objects, subject[part], predicate[part]))
    return (weights + torch.cat(sums).log().reshape(weights.shape)).logsumexp(dim=1)
