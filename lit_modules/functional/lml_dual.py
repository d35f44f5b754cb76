"""The dual variable of the limited multi-label projection: how much to add to a row for its sigmoids to sum to k.

With x sorted in descending order, the sum's condition says that what the k best entries lack to 1 equals what the
others have:

    A(nu) = sum_{i <= k} sigmoid(-(x_i + nu))  =  B(nu) = sum_{i > k} sigmoid(x_i + nu).

h(nu) = log B - log A has a slope between 1 and 2 everywhere: with theta = sigmoid(x_(k+1) + nu), the slope of log B, a
mean of 1 - y over the others, is at least 1 - theta, that of -log A, a mean of y over the best, at least theta, and
neither is above 1. So one evaluation of h brackets the root between nu - h / 2 and nu - h, no staircase of far apart
entries can slow down a second-order step, and neither side is a difference of large numbers.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Above this gap between the k-th and the next entry both sides are exponentials, and the root lies in the middle of the
# gap plus a constant: a wider gap is solved as one of this width. Tests compare with float64 bisection.
_WIDEST_GAP = 76.0
# Halley's error after a step from |h| is below 0.02 |h|^3: a row is done after the step from an |h| below this.
_DONE = {torch.float32: 1e-2, torch.float64: 1e-5}
# One more than the worst of six million rows of every shape needed (4 and 5).
_STEPS = {torch.float32: 5, torch.float64: 6}
# Elements of a block of rows on a CPU: its intermediate results stay in the cache.
_BLOCK = 1 << 19
# Columns that `_best` compares before it picks any: few enough that most are never looked at again.
_STRIPES = 10


def lml_dual(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Solve sum sigmoid(x + nu) = k for each row by Halley's method on h within a guaranteed bracket.

    A fixed number of steps, without a look at the data, on a GPU and under `torch.compile`; in eager mode on a CPU a
    block of rows stops when all its rows have converged.

    Args:
        x: float32 or float64 `[B, n]`. A NaN makes its row's results NaN.
        k: The sum, 0 < k < n.

    Returns:
        Two tensors `[B, 1]`, centre and offset: sigmoid((x - centre) + offset) is the projection. nu is their
        difference offset - centre; apart, they keep their precision where x is large. The offset is NaN for rows that
        can't sum to k: those with more than k entries of +inf, or fewer than k above -inf.
    """
    _, centre, offset = _by_blocks(x, k, project=False)
    return centre, offset


def lml_rows(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The projection of rows, block by block while a block is in the cache.

    Args:
        x: float32 or float64 `[B, n]`, as for `lml_dual`.
        k: The sum, 0 < k < n.

    Returns:
        y `[B, n]`, and the offset `[B, 1]` of `lml_dual`.
    """
    y, _, offset = _by_blocks(x, k, project=True)
    return y, offset


def _by_blocks(x: Tensor, k: int, project: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The projection (if asked for), centre and offset."""
    whole = torch.compiler.is_compiling() or x.device.type != "cpu" or not len(x)
    size = len(x) if whole else max(1, _BLOCK // x.shape[1])
    work, y = x.new_empty(3, min(size, len(x)), x.shape[1]), torch.empty_like(x) if project else x
    solved = []
    for start in range(0, max(len(x), 1), max(size, 1)):
        block = x[start : start + size]
        buffers = [buffer[: len(block)] for buffer in work]
        if 2 * k > x.shape[1]:  # the fewer entries are taken out by topk, the better
            negated = _solve(-block, k=x.shape[1] - k, buffers=buffers, stop_early=not whole)
            centre, offset = -negated[0], -negated[1]
        else:
            centre, offset = _solve(block, k, buffers, stop_early=not whole)
        solved.append((centre, offset))
        if project:
            # Not torch.sigmoid: on a CPU the last entries of a tensor get another rounding, which can swap two labels.
            y_block = torch.sub(centre, block, out=y[start : start + size])
            y_block.sub_(offset).exp_().add_(1).reciprocal_()
    return y, torch.cat([centre for centre, _ in solved]), torch.cat([offset for _, offset in solved])


def _solve(x: Tensor, k: int, buffers: list[Tensor], stop_early: bool) -> tuple[Tensor, Tensor]:
    """Centre and offset of each row: the (k+1)-th entry, and what its logit becomes. `buffers`: three of x's shape."""
    below, y, powers = buffers  # fresh memory at each step would cost a third more
    best, index = _best(x, k + 1)
    infeasible = (best[:, k:] == math.inf) | (best[:, k - 1 : k] == -math.inf)
    limit = torch.finfo(x.dtype).max / 8
    best = best.clamp(-limit, limit)
    kth, centre = best[:, k - 1 : k], best[:, k:]
    gap = kth - centre
    capped = gap.clamp(max=_WIDEST_GAP)
    above = kth - best[:, :k]
    z, powers_z = torch.empty_like(above), torch.empty_like(above)
    below = torch.sub(x, centre, out=below)
    below = below.scatter_(1, index[:, :k], -math.inf).scatter_(1, index[:, k:], 0)  # 0 also at -inf
    # `logit` is that of the k-th entry: sum of y <= k - 1 + (n - k + 1) y_k and >= (k + 1) y_(k+1) bound it.
    low = torch.full_like(gap, -math.log(x.shape[1] - k))
    high = capped + math.log(k)
    logit = capped / 2
    for _ in range(_STEPS[x.dtype]):
        y = torch.add(below, logit - capped, out=y).sigmoid_()
        z = torch.sub(above, logit, out=z).sigmoid_()
        (b1, b2, b3), (a1, a2, a3) = _power_means(y, powers), _power_means(z, powers_z)
        h = (b1 / a1).log()
        # The log of a sum of sigmoids has the slope 1 - b2 and the curvature 2 b3 - b2 - b2^2.
        both, difference = b2 + a2, b2 - a2
        slope = 2 - both
        half_curvature = torch.sub(b3 - a3, torch.addcmul(difference, difference, both), alpha=0.5)
        above_root = h > 0
        low, high = torch.where(above_root, low, logit), torch.where(above_root, logit, high)
        # Halley's step as a fraction of h.
        fraction = slope / torch.addcmul(slope * slope, h, half_curvature, value=-1)
        logit = torch.addcmul(logit, h, fraction.clamp(0.5, 1), value=-1).clamp(low, high)
        if stop_early and float(h.abs().max()) < _DONE[x.dtype]:
            break
    offset = logit + (gap - capped) / 2 - gap
    return centre, offset.masked_fill(infeasible, math.nan)


def _power_means(y: Tensor, out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The sum s of y along dimension 1, and those of y^2 and y^3 divided by s; the powers are written to `out`."""
    s1, s2 = y.sum(dim=1, keepdim=True), torch.mul(y, y, out=out).sum(dim=1, keepdim=True)
    return s1, s2 / s1, out.mul_(y).sum(dim=1, keepdim=True) / s1


def _best(x: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """`topk` with indices, where m is small against n in a third of the time: the best m are in the m best columns.

    A row is folded to `[_STRIPES, width]`. An entry outside the m columns with the largest maxima has m entries, these
    maxima, that are at least as large.
    """
    n = x.shape[1]
    width = n // _STRIPES // 16 * 16  # whole vector registers
    if x.device.type != "cpu" or width < 2 * m:
        return x.topk(m, dim=1)
    folded = x[:, : _STRIPES * width].unflatten(1, (_STRIPES, width))
    columns = folded.amax(dim=1).topk(m, dim=1, sorted=False).indices
    candidates = folded.gather(2, columns[:, None].expand(-1, _STRIPES, -1)).flatten(1)
    best, position = torch.cat([candidates, x[:, _STRIPES * width :]], dim=1).topk(m, dim=1)
    inside = columns.gather(1, position % m) + position // m * width
    return best, torch.where(position < _STRIPES * m, inside, position + _STRIPES * (width - m))


def lml_dual_bracketing(x: Tensor, k: int, samples: int, eps: float, max_iterations: int) -> Tensor:
    """The paper's method (Algorithm 1): narrow the bracket to the pair of neighbours, of d samples, with the root.

    As the official code: the first bracket is 7 beyond the k-th and the (k+1)-th entry, which many small entries can
    make wrong. Then it is widened by 7 on that side, for those rows alone; the official code mixes up rows there.

    Args:
        x: float `[B, n]`.
        k: The sum, 0 < k < n.
        samples: d, at least 3.
        eps: Rows whose bracket is narrower are done.
        max_iterations: At most so many rounds of samples.

    Returns:
        `[B, 1]`: nu, the middle of the bracket.
    """
    best = x.sort(dim=1, descending=True).values
    low, high = -best[:, k - 1] - 7, -best[:, k] + 7
    fractions = torch.linspace(0, 1, samples, dtype=x.dtype, device=x.device)
    for _ in range(max_iterations):
        active = (high - low > eps).nonzero().flatten()
        if not len(active):
            break
        nu = low[active, None] + (high - low)[active, None] * fractions
        sums = torch.sigmoid(x[active, None] + nu[..., None]).sum(dim=2) - k
        below = (sums < 0).sum(dim=1)
        left = (below - 1).clamp(0, samples - 2)[:, None]
        low = low.index_put((active,), nu.gather(1, left).flatten() - 7.0 * (below == 0))
        high = high.index_put((active,), nu.gather(1, left + 1).flatten() + 7.0 * (below == samples))
    return ((low + high) / 2)[:, None]
