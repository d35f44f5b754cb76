from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lit_modules.functional.topk_entropy import truncated_topk_entropy

F64 = torch.float64
VARIANTS = ("paper", "official")


def slow_paper(f: list[float], labels: set[int], k: int) -> float:
    """Equation 13: the m - k smallest of what isn't a label."""
    others = sorted(v for j, v in enumerate(f) if j not in labels)
    tail = others[: max(len(f) - k, 0)]
    return sum(math.log1p(sum(math.exp(v - f[y]) for v in tail)) for y in labels)


def slow_official(f: list[float], labels: set[int], k: int) -> float:
    """The loop of the official code: sort all, drop the first k, drop the labels from the rest."""
    order = sorted(range(len(f)), key=lambda j: -f[j])
    tail = [f[j] for j in order[k:] if j not in labels]
    return sum(math.log1p(sum(math.exp(v - f[y]) for v in tail)) for y in labels)


SLOW: dict[str, Callable[[list[float], set[int], int], float]] = {"paper": slow_paper, "official": slow_official}


def random(*shape: int, seed: int = 0) -> Tensor:
    return 2 * torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def test_worked_example() -> None:
    f = torch.tensor([[3, 2, 1, 0, -1]], dtype=F64)
    for y, official, paper in ((2, 1.440190, 2.451914), (1, 0.440190, 1.451914)):
        target = torch.tensor([y])
        assert truncated_topk_entropy(f, target, 1).item() == pytest.approx(official, abs=1e-6)
        assert truncated_topk_entropy(f, target, 1, "paper").item() == pytest.approx(paper, abs=1e-6)


def test_paper_with_one_label_is_cross_entropy() -> None:
    f, targets = random(6, 9), torch.tensor([0, 8, 3, 3, 1, 2])
    torch.testing.assert_close(truncated_topk_entropy(f, targets, 1, "paper"), F.cross_entropy(f, targets))
    moved = truncated_topk_entropy(f.T, targets, 1, "paper", dim=0, reduction="none")
    torch.testing.assert_close(moved, F.cross_entropy(f, targets, reduction="none"))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("k", [1, 2, 5, 8, 9, 12])
def test_one_label_against_loops(variant: str, k: int) -> None:
    f = random(12, 9, seed=k)
    targets = torch.arange(12) % 9
    expected = [SLOW[variant](row, {y}, k) for row, y in zip(f.tolist(), targets.tolist(), strict=True)]
    losses = truncated_topk_entropy(f, targets, k, variant, reduction="none")  # type: ignore[arg-type]
    assert losses.tolist() == pytest.approx(expected, abs=1e-12)


def test_variants_agree_where_the_label_is_among_the_best() -> None:
    f = random(50, 12)
    targets = f.topk(3, dim=1).indices[:, 2]
    values = [truncated_topk_entropy(f, targets, 3, v, reduction="none") for v in VARIANTS]  # type: ignore[arg-type]
    torch.testing.assert_close(*values)
    outside = f.topk(4, dim=1).indices[:, 3]
    official, paper = (truncated_topk_entropy(f, outside, k, v) for k, v in ((3, "official"), (4, "paper")))
    torch.testing.assert_close(official, paper)  # one competitor more is forgiven


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("k", [1, 3, 6])
def test_several_labels_in_ragged_rows_against_loops(variant: str, k: int) -> None:
    f = random(6, 14, seed=k)
    lengths = [14, 9, 6, 7, 14, 3]
    mask = torch.arange(14) < torch.tensor(lengths)[:, None]
    labels = (random(6, 14, seed=9) > 1.5) & mask
    labels[4] = False  # a row without a label
    labels[0, :4] = True
    sums, means = [], []
    for row, chosen, length in zip(f.tolist(), labels, lengths, strict=True):
        indices = set(chosen.nonzero().flatten().tolist())
        sums.append(SLOW[variant](row[:length], indices, k))
        if indices and length > k:
            means.append(sums[-1] / len(indices))
    options = {"variant": variant, "mask": mask}
    computed = truncated_topk_entropy(f, labels, k, reduction="none", **options)  # type: ignore[arg-type]
    assert computed.tolist() == pytest.approx(sums, abs=1e-12)
    assert truncated_topk_entropy(f, labels, k, reduction="sum", **options).item() == pytest.approx(sum(sums))  # type: ignore[arg-type]
    expected = sum(means) / len(means)
    assert truncated_topk_entropy(f, labels, k, **options).item() == pytest.approx(expected)  # type: ignore[arg-type]


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients(variant: str) -> None:
    f = random(4, 7).requires_grad_()
    mask = torch.arange(7) < torch.tensor([7, 5, 2, 7])[:, None]
    labels = (random(4, 7, seed=4) > 0.5) & mask
    for k in (1, 3, 6):
        for targets in (torch.tensor([0, 1, 0, 6]), labels):
            assert torch.autograd.gradcheck(
                lambda v, t=targets, k=k: truncated_topk_entropy(v, t, k, variant, mask=mask),  # type: ignore[misc]
                f,
            )


def test_large_scores_and_half_precision() -> None:
    f = torch.tensor([[300.0, 250, -300, 0]], requires_grad=True)
    loss = truncated_topk_entropy(f, torch.tensor([2]), 1)
    assert loss.item() == pytest.approx(550)  # the best is forgiven
    assert torch.autograd.grad(loss, f)[0].tolist() == [[0, 1, -1, 0]]
    half = truncated_topk_entropy(random(3, 9).half(), torch.tensor([1, 2, 3]), 2)
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(
        truncated_topk_entropy(random(3, 9), torch.tensor([1, 2, 3]), 2).item(), abs=4e-3
    )


def test_bad_input() -> None:
    f, targets = random(2, 5), torch.tensor([0, 1])
    with pytest.raises(ValueError, match="k must be at least 1"):
        truncated_topk_entropy(f, targets, 0)
    with pytest.raises(ValueError, match="variant"):
        truncated_topk_entropy(f, targets, 1, "code")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="reduction"):
        truncated_topk_entropy(f, targets, 1, reduction="max")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="targets must be int64"):
        truncated_topk_entropy(f, targets.float(), 1)
    with pytest.raises(ValueError, match="floating"):
        truncated_topk_entropy(f.long(), targets, 1)
