from __future__ import annotations

import math

import pytest
import torch

from lit_modules.functional import cp_topk
from lit_modules.functional.cp import cp_log_tensor
from lit_modules.functional.cp_topk import cp_topk_triplets

SIZES = (11, 6, 9)


def random_logits(pairs: int, scale: float, rank: int = 3, sizes: tuple[int, ...] = SIZES, seed: int = 0) -> list:
    generator = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(pairs, rank, n, dtype=torch.float64, generator=generator) for n in sizes]


def random_log_prior(sizes: tuple[int, ...] = SIZES, seed: int = 0) -> torch.Tensor:
    counts = 1 + torch.randn(sizes, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).mul(3).exp()
    return (counts / counts.sum()).log()


def slow_topk(logits: list, k: int, log_prior: torch.Tensor | None) -> tuple[list, list]:
    """Sort every cell of the full tensor by falling score, then by (i, j, k)."""
    scores, triplets = [], []
    full = cp_log_tensor(*logits)
    for b in range(len(full)):
        tensor = full[b] if log_prior is None else full[b] + log_prior
        cells = [
            (-tensor[i, j, m].item(), (i, j, m))
            for i in range(tensor.shape[0])
            for j in range(tensor.shape[1])
            for m in range(tensor.shape[2])
        ]
        best = sorted(cells)[:k]
        scores.append([-score for score, _ in best])
        triplets.append([list(cell) for _, cell in best])
    return scores, triplets


@pytest.mark.parametrize("scale", [0.01, 1.0, 5.0, 100.0])
@pytest.mark.parametrize("with_prior", [False, True])
@pytest.mark.parametrize(("k", "chunk"), [(1, 2), (10, 1), (40, 3), (594, 5)])
def test_against_a_sort_of_all_triplets(scale: float, with_prior: bool, k: int, chunk: int) -> None:
    logits = random_logits(5, scale)
    prior = random_log_prior() if with_prior else None
    scores, triplets = cp_topk_triplets(*logits, k, prior, chunk)
    slow_scores, slow_triplets = slow_topk(logits, k, prior)
    assert triplets.tolist() == slow_triplets
    torch.testing.assert_close(scores, torch.tensor(slow_scores, dtype=torch.float64), rtol=1e-12, atol=1e-12)


def test_equal_scores_come_in_the_order_of_the_triplets() -> None:
    uniform = [torch.zeros(3, 2, n) for n in SIZES]
    scores, triplets = cp_topk_triplets(*uniform, 20)
    order = [[0, j, k] for j in range(6) for k in range(9)][:20]
    assert triplets.tolist() == [order] * 3
    torch.testing.assert_close(scores, torch.full((3, 20), -math.log(11 * 6 * 9)))
    # Two levels of score, the cut within the lower one: the upper, then the first of the lower.
    peaked = [x.clone() for x in uniform]
    peaked[0][:, :, 4] = 1.0
    wanted = [[4, j, k] for j in range(6) for k in range(9)] + [[0, 0, 0], [0, 0, 1]]
    assert cp_topk_triplets(*peaked, 56)[1].tolist() == [wanted] * 3


def test_ties_of_cells_across_groups_and_at_the_cut() -> None:
    logits = [torch.cat([x, x.flip(2), x], dim=2) for x in random_logits(20, 2.0, sizes=(4, 2, 3))]  # 27 equal cells
    full = cp_log_tensor(*logits).flatten(1).sort(dim=1, descending=True, stable=True)
    for k in (3, 10, 27, 40):
        scores, triplets = cp_topk_triplets(*logits, k, chunk=8)
        assert torch.equal((triplets[..., 0] * 6 + triplets[..., 1]) * 9 + triplets[..., 2], full.indices[:, :k])
        assert torch.equal(scores, full.values[:, :k])
        assert (full.values[:, k - 1] == full.values[:, k]).all() == (k != 27)


def test_a_constant_prior_only_shifts_the_scores() -> None:
    logits = random_logits(5, 2.0)
    scores, triplets = cp_topk_triplets(*logits, 30)
    shifted, same = cp_topk_triplets(*logits, 30, torch.full(SIZES, -3.0))
    assert torch.equal(triplets, same)
    torch.testing.assert_close(shifted, scores - 3)


def test_a_forbidden_triplet_does_not_appear() -> None:
    logits = random_logits(2, 1.0)
    _, triplets = cp_topk_triplets(*logits, 1)
    prior = torch.zeros(SIZES)
    for s, p, o in triplets[:, 0].tolist():
        prior[s, p, o] = -math.inf
    scores, allowed = cp_topk_triplets(*logits, 590, prior)
    forbidden = {tuple(t) for t in triplets[:, 0].tolist()}
    assert torch.isfinite(scores).all()
    assert not forbidden & {tuple(t) for row in allowed.tolist() for t in row}


@pytest.mark.parametrize("log_prior", [None, torch.full((50, 20, 50), -5.0)])
def test_only_few_groups_of_confident_pairs_are_evaluated(
    monkeypatch: pytest.MonkeyPatch, log_prior: torch.Tensor | None
) -> None:
    evaluated = []
    original = cp_topk.log_sum_outer
    monkeypatch.setattr(
        cp_topk, "log_sum_outer", lambda *x: evaluated.append(x[0].shape[2] * x[1].shape[2]) or original(*x)
    )
    sizes = (50, 20, 50)
    logits = random_logits(4, 6.0, sizes=sizes)
    _, triplets = cp_topk_triplets(*logits, 20, log_prior, chunk=4)
    monkeypatch.undo()
    full = cp_log_tensor(*logits).flatten(1).topk(20).indices
    assert torch.equal((triplets[..., 0] * 20 + triplets[..., 1]) * 50 + triplets[..., 2], full)
    assert max(evaluated) < 50 * 20 * 50 / 10


def test_float32_agrees_with_the_stable_sort_of_its_own_tensor() -> None:
    logits = [x.float() for x in random_logits(6, 3.0)]
    prior = random_log_prior().float()
    scores, triplets = cp_topk_triplets(*logits, 50, prior)
    full = (cp_log_tensor(*logits) + prior).flatten(1).sort(dim=1, descending=True, stable=True)
    assert scores.dtype == torch.float32
    assert torch.equal(scores, full.values[:, :50])
    assert torch.equal((triplets[..., 0] * 6 + triplets[..., 1]) * 9 + triplets[..., 2], full.indices[:, :50])


def test_extreme_logits_nan_no_pairs_and_no_gradient() -> None:
    extreme = [x.sign() * 1e4 for x in random_logits(3, 1.0)]
    scores, _ = cp_topk_triplets(*[x.float().requires_grad_() for x in extreme], 594)
    assert torch.isfinite(scores).all()
    assert not scores.requires_grad
    broken = random_logits(3, 1.0)
    broken[0][1, 0, 0] = math.nan
    scores, _ = cp_topk_triplets(*broken, 5)
    assert scores.isnan().any(dim=1).tolist() == [False, True, False]
    scores, triplets = cp_topk_triplets(*random_logits(0, 1.0), 5)
    assert scores.shape == (0, 5)
    assert triplets.shape == (0, 5, 3)


def test_wrong_arguments_are_named() -> None:
    logits = random_logits(2, 1.0)
    with pytest.raises(ValueError, match="k must be 1 to S P O = 594, got 595"):
        cp_topk_triplets(*logits, 595)
    with pytest.raises(ValueError, match="chunk must be at least 1"):
        cp_topk_triplets(*logits, 5, chunk=0)
    with pytest.raises(ValueError, match=r"log_prior must have shape \[S, P, O\] = \[11, 6, 9\], got \[11, 9, 6\]"):
        cp_topk_triplets(*logits, 5, torch.zeros(11, 9, 6))
