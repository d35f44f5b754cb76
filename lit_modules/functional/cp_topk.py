"""The most probable triplets of CP-decomposed triplet distributions, without forming the triplet tensor."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_modules.functional.cp import check_logits, log_factors, log_sum_outer

_GROWTH = 8


def cp_topk_triplets(
    subject_logits: Tensor,
    predicate_logits: Tensor,
    object_logits: Tensor,
    k: int,
    log_prior: Tensor | None = None,
    chunk: int = 32,
) -> tuple[Tensor, Tensor]:
    """The k triplets of each pair with the highest log y_ijk (equation 6), plus the log prior where there is one.

    The result is that of a stable sort of the full tensor, but only few of its cells are computed. The cells with the
    same (i, j) form a group that can't hold a score above

        log sum_r exp(s_ri + p_rj + max_k o_rk) - log Z + max_k log_prior_ijk,

    so the groups with the highest bounds are evaluated, and more of them only for pairs whose k-th best score doesn't
    exceed all other bounds. No gradient.

    Args:
        subject_logits: `[B, R, S]`.
        predicate_logits: `[B, R, P]`.
        object_logits: `[B, R, O]`.
        k: Number of triplets for each pair, 1 to S P O.
        log_prior: `[S, P, O]`, nats, at most 0; -inf forbids a triplet. The sum isn't normalised again.
        chunk: Pairs that are processed at a time. The memory is that of a few times `chunk` x max(k, O) x O cells, or
            of a few full tensors of one pair if that is more.

    Returns:
        The log scores `[B, k]`, descending, float32 or float64 like the logits, and int64 `[B, k, 3]`, 0-based
        (subject, predicate, object). Among equal scores the triplet with the lowest flat index comes first, which is
        the order of the triplets themselves.

    Raises:
        ValueError: If shapes don't fit, `k` is out of range or `chunk` isn't positive.
    """
    branches = check_logits(subject_logits, predicate_logits, object_logits)
    sizes = [logits.shape[2] for logits in branches]
    cells = sizes[0] * sizes[1] * sizes[2]
    if not 1 <= k <= cells:
        raise ValueError(f"k must be 1 to S P O = {cells}, got {k}")
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    if log_prior is not None and list(log_prior.shape) != sizes:
        raise ValueError(f"log_prior must have shape [S, P, O] = {sizes}, got {list(log_prior.shape)}")
    with torch.no_grad():
        subject, predicate, obj = log_factors(branches)
        prior = None if log_prior is None else log_prior.to(obj).flatten(end_dim=1)  # [S P, O]
        groups = max(k, sizes[2])
        pieces = [
            _topk(subject[rows], predicate[rows], obj[rows], k, prior, groups, chunk)
            for rows in torch.split(torch.arange(len(obj), device=obj.device), chunk)
        ]
        scores = torch.cat([scores for scores, _ in pieces])
        flat = torch.cat([flat for _, flat in pieces])
        triplets = torch.stack([flat // (sizes[1] * sizes[2]), flat // sizes[2] % sizes[1], flat % sizes[2]], dim=-1)
        return scores, triplets


def _topk(
    subject: Tensor, predicate: Tensor, obj: Tensor, k: int, prior: Tensor | None, groups: int, chunk: int
) -> tuple[Tensor, Tensor]:
    """Scores and flat indices `[B, k]` of the best cells; `groups` groups are tried first, more in smaller chunks."""
    num_predicates, num_objects = predicate.shape[2], obj.shape[2]
    bounds = log_sum_outer(subject, predicate + obj.amax(dim=2, keepdim=True)).flatten(start_dim=1)  # [B, S P]
    if prior is not None:
        bounds = bounds + prior.amax(dim=1)
    groups = min(groups, bounds.shape[1])
    leading, chosen = bounds.topk(min(groups + 1, bounds.shape[1]))
    chosen = chosen[:, :groups].sort(dim=1).values  # ascending: cells stay in flat order, which decides ties
    components = (-1, subject.shape[1], -1)
    left = subject.gather(2, (chosen // num_predicates)[:, None].expand(components))
    left = left + predicate.gather(2, (chosen % num_predicates)[:, None].expand(components))
    cells = log_sum_outer(left, obj)
    if prior is not None:
        cells = cells + prior[chosen]
    scores, at = _stable_topk(cells.flatten(start_dim=1), k)
    flat = chosen.gather(1, at // num_objects) * num_objects + at % num_objects
    if groups == bounds.shape[1]:
        return scores, flat
    # A cell left out may exceed its computed bound by rounding, and at an equal score its index might win.
    kth = scores[:, -1]
    tolerance = 64 * torch.finfo(kth.dtype).eps * (1 + kth.abs())
    unsettled = (~(leading[:, -1] + tolerance < kth)).nonzero()[:, 0]
    chunk = max(1, chunk // _GROWTH)
    for rows in torch.split(unsettled, chunk) if len(unsettled) else ():
        scores[rows], flat[rows] = _topk(subject[rows], predicate[rows], obj[rows], k, prior, groups * _GROWTH, chunk)
    return scores, flat


def _stable_topk(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The first k of a stable descending sort of each row: values and indices `[B, k]`."""
    values, at = scores.topk(k)
    last = values[:, -1:]
    # topk picks any of the cells that share the k-th score: where some of them stayed out, sort the whole row.
    cut = ((scores == last).sum(dim=1) > (values == last).sum(dim=1)).nonzero()[:, 0]
    if len(cut):
        at[cut] = scores[cut].sort(dim=1, descending=True, stable=True).indices[:, :k]
    at = at.sort(dim=1).values
    values, order = scores.gather(1, at).sort(dim=1, descending=True, stable=True)
    return values, at.gather(1, order)
