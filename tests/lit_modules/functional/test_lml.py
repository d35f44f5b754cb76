from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lit_modules.functional import lml_dual
from lit_modules.functional.lml import lml, lml_bracketing, lml_nll

F64 = torch.float64
SIX = torch.tensor([1.0, 2, 3, 4, 5, 6], dtype=F64)
SPEC = {
    1: (0.007127, 0.019138, 0.050366, 0.126005, 0.281557, 0.515807),
    2: (0.026031, 0.067730, 0.164915, 0.349304, 0.593367, 0.798654),
    3: (0.075858, 0.182426, 0.377541, 0.622459, 0.817574, 0.924142),
}
INF = math.inf


def bisected(x: Tensor, k: int) -> Tensor:
    """The projection of float64 rows by 100 halvings of a bracket that holds for any row."""
    x = x.double()
    low, high = -x.amax(dim=-1, keepdim=True) - 50, -x.amin(dim=-1, keepdim=True) + 50
    for _ in range(100):
        middle = (low + high) / 2
        small = (x + middle).sigmoid().sum(dim=-1, keepdim=True) < k
        low, high = torch.where(small, middle, low), torch.where(small, high, middle)
    return (x + (low + high) / 2).sigmoid()


def random(*shape: int, seed: int = 0, scale: float = 2.0) -> Tensor:
    return scale * torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_fixed_vectors(k: int, dtype: torch.dtype) -> None:
    y = lml(SIX.to(dtype), k)
    assert y.dtype == dtype
    assert y.tolist() == pytest.approx(SPEC[k], abs=1e-6)
    nu = {1: -5.936751887179511, 2: -4.622099802458164, 3: -3.5}[k]
    centre, offset = lml_dual.lml_dual(SIX[None], k)
    assert (offset - centre).item() == pytest.approx(nu, abs=1e-13)


def test_two_labels_are_a_softmax_of_half_the_scores_and_the_readme_example() -> None:
    assert lml(torch.tensor([1.3, -0.4], dtype=F64), 1)[0].item() == pytest.approx(0.700567142473973, abs=1e-15)
    readme = torch.tensor([-4.0695, 10.8666, 13.0867, -7.1431, -14.7220])
    expected = [5.8745e-4, 0.99945, 0.99994, 2.7187e-5, 1.3897e-8]  # printed with nu to 1e-4
    assert lml(readme, 2).tolist() == pytest.approx(expected, rel=1e-4)
    assert (lml(random(8, scale=3), 1) - random(8, scale=3).softmax(0)).abs().max() > 0.05  # k = 1 is no softmax


def test_identities() -> None:
    x = random(5, 30)
    for k in (1, 4, 15, 26, 29):
        y = lml(x, k)
        torch.testing.assert_close(y.sum(dim=1), torch.full((5,), float(k), dtype=F64), atol=1e-12, rtol=0)
        torch.testing.assert_close(y, bisected(x, k), atol=1e-12, rtol=0)
        torch.testing.assert_close(lml(x + 7.3, k), y, atol=1e-12, rtol=0)
        torch.testing.assert_close(1 - lml(-x, 30 - k), y, atol=1e-12, rtol=0)
        order = torch.randperm(30, generator=torch.Generator().manual_seed(k))
        torch.testing.assert_close(lml(x[:, order], k), y[:, order], atol=1e-12, rtol=0)
        assert torch.equal(y.argsort(dim=1), x.argsort(dim=1))
        torch.testing.assert_close(lml(torch.full((3, 30), 2.5, dtype=F64), k), torch.full((3, 30), k / 30, dtype=F64))


@pytest.mark.parametrize("k", [1, 3, 6])
def test_jacobian(k: int) -> None:
    x = random(7)
    jacobian = torch.autograd.functional.jacobian(lambda v: lml(v, k), x)
    steps = 1e-5 * torch.eye(7, dtype=F64)
    differences = (bisected(x + steps, k) - bisected(x - steps, k)).T / 2e-5
    assert (jacobian - differences).abs().max() < 1e-8
    w = lml(x, k) * (1 - lml(x, k))
    torch.testing.assert_close(jacobian, w.diag() - w[:, None] * w / w.sum(), atol=1e-14, rtol=0)
    assert jacobian.sum(dim=1).abs().max() < 1e-14
    assert torch.linalg.eigvalsh(jacobian).min() > -1e-14


@pytest.mark.parametrize("k", [1, 2, 5])
def test_gradients(k: int) -> None:
    x = random(3, 6).requires_grad_()
    mask = torch.arange(6) < torch.tensor([6, 4, 2])[:, None]
    index = torch.tensor([0, 1, 1])
    several = (random(3, 6, seed=1) > 0) & mask
    functions: list[Callable[[Tensor], Tensor]] = [
        lambda v: lml(v, k),
        lambda v: lml(v.T, k, dim=0, mask=mask.T),
        lambda v: lml_nll(v, index, k),
        lambda v: lml_nll(v, index, k, mask=mask, reduction="none"),
        lambda v: lml_nll(v, several, k, mask=mask),
    ]
    for function in functions:
        assert torch.autograd.gradcheck(function, x)
        assert torch.autograd.gradgradcheck(function, x)


def test_any_shape_dimension_and_dtype() -> None:
    x = random(3, 4, 5, 6)
    expected = bisected(x.movedim(1, -1), 2).movedim(-1, 1)
    torch.testing.assert_close(lml(x, 2, dim=1), expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(lml(x, 2, dim=-3), expected, atol=1e-12, rtol=0)
    for dtype, atol in ((torch.float16, 1e-3), (torch.bfloat16, 4e-3), (torch.float32, 1e-6)):
        rounded = x.to(dtype).requires_grad_()
        y = lml(rounded, 2, dim=1)
        assert y.dtype == dtype and y.shape == x.shape
        torch.testing.assert_close(y.double(), bisected(rounded.movedim(1, -1), 2).movedim(-1, 1), atol=atol, rtol=0)
        assert torch.autograd.grad(y.square().sum(), rounded)[0].dtype == dtype
    assert lml(x[:0], 2).shape == (0, 4, 5, 6)
    assert lml_nll(torch.zeros(0, 6), torch.zeros(0, dtype=torch.int64), 2).item() == 0


def test_masked_rows_are_as_if_the_entries_were_not_there() -> None:
    x = random(4, 9).requires_grad_()
    lengths = [9, 3, 4, 1]
    mask = torch.arange(9) < torch.tensor(lengths)[:, None]
    filled = torch.where(mask, x, math.nan)  # whatever lies there
    y = lml(filled, 3, mask=mask)
    gradient = torch.autograd.grad((y * torch.arange(9)).sum(), x)[0]
    for row, length in enumerate(lengths):
        alone = x[row, :length].detach().requires_grad_()
        expected = lml(alone, 3) if length > 3 else torch.ones(length, dtype=F64) + 0 * alone
        torch.testing.assert_close(y[row, :length], expected)
        assert (y[row, length:] == 0).all()
        expected_gradient = torch.autograd.grad((expected * torch.arange(length)).sum(), alone)[0]
        torch.testing.assert_close(gradient[row, :length], expected_gradient, atol=1e-14, rtol=0)
        assert (gradient[row, length:] == 0).all()


def rows_of_every_kind(n: int, rows: int, generator: torch.Generator) -> list[Tensor]:
    normal, other = (torch.randn(rows, n, generator=generator) for _ in range(2))
    whole = torch.randint(-2, 3, (rows, n), generator=generator).float()
    return [
        normal,
        normal / other,
        1e4 * (2 * torch.rand(rows, n, generator=generator) - 1),
        1e4 * whole.sign(),
        normal + 1e4,
        whole,
        11 * whole,
        normal * (3 * other[:, :1]).exp(),
        torch.linspace(-60, 60, n).expand(rows, n),
    ]


def check_against_bisection(n: int, rows: int, seed: int) -> int:
    generator = torch.Generator().manual_seed(seed)
    checked = 0
    for x in rows_of_every_kind(n, rows, generator):
        for k in sorted({1, min(5, n - 1), n // 7 + 1, n // 2, n - 1}):
            y = lml(x, k)
            assert y.dtype == torch.float32
            assert (y.double().sum(dim=1) - k).abs().max() <= 1e-5 * k
            assert (y - bisected(x, k)).abs().max() < 3e-6
            ordered = y.gather(1, x.argsort(dim=1))
            assert (ordered.diff(dim=1) >= 0).all()
            checked += rows
    return checked


@pytest.mark.parametrize(("n", "rows"), [(2, 20), (7, 40), (300, 4)])
def test_hard_rows_against_bisection(n: int, rows: int) -> None:
    check_against_bisection(n, rows, seed=n)


@pytest.mark.slow
def test_many_hard_rows_against_bisection() -> None:
    sizes = [(6, 1200), (11, 900), (30, 700), (100, 220), (1000, 20), (20_000, 1), (100_000, 1)]
    assert sum(check_against_bisection(n, rows, seed=n) for n, rows in sizes) >= 1e5


def test_wide_gaps_to_full_precision() -> None:
    """In gaps that saturate every entry, nu is the mean of the two exponential sides' logarithms."""
    for gap in (60.0, 75.0, 77.0, 200.0, 5e3):
        x = torch.tensor([[gap, gap + 1, 0.0, -1.0, -3.0]], dtype=F64)
        centre, offset = lml_dual.lml_dual(x, 2)
        expected = ((-x[:, :2]).logsumexp(1) - x[:, 2:].logsumexp(1)) / 2
        assert (offset - centre).item() == pytest.approx(expected.item(), abs=1e-11 * gap)
        nll = lml_nll(x.float(), torch.tensor([3]), 2)
        assert nll.item() == pytest.approx(1 - expected.item(), rel=1e-6)


def test_the_fixed_number_of_steps_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of_every_kind(900, 3, torch.Generator().manual_seed(0))
    few = torch.zeros(1, 10**5)  # the worst that a search found: a few labels high above very many
    rows += [few.index_fill(1, torch.arange(m), gap) for gap in (1.0, 3.0, 6.0, 10.0, 16.0) for m in (3, 40)]
    for x in rows:
        for k in (1, 3, 30, 450):
            expected = lml(x, k)
            monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
            torch.testing.assert_close(lml(x, k), expected, atol=1e-6, rtol=1e-5)
            fixed = lml(x.double(), k)
            monkeypatch.undo()
            assert ((fixed.sum(dim=1) - k).abs() <= 1e-12 * k).all()


def test_the_best_are_those_of_topk() -> None:
    generator = torch.Generator().manual_seed(0)
    for n, m in ((320, 6), (1000, 6), (1009, 40), (4000, 3)):
        assert n // lml_dual._STRIPES // 16 * 16 >= 2 * m  # not simply topk
        for x in [*rows_of_every_kind(n, 5, generator), torch.zeros(5, n)]:
            best, index = lml_dual._best(x, m)
            assert torch.equal(best, x.topk(m, dim=1).values)
            assert torch.equal(x.gather(1, index), best)
            assert all(len(set(row.tolist())) == m for row in index)


def test_infinities() -> None:
    y = lml(torch.tensor([[INF, 0, 1, 2, -INF], [0, -INF, 3, -INF, 1]], dtype=F64), 2)
    torch.testing.assert_close(y[0, 1:4], lml(torch.tensor([0, 1, 2], dtype=F64), 1))
    assert y[0, [0, 4]].tolist() == [1, 0]
    torch.testing.assert_close(y[1, [0, 2, 4]], lml(torch.tensor([0, 3, 1], dtype=F64), 2))
    for exact in ([INF, INF, 1.0, 2, 3], [5.0, 4, -INF, -INF, -INF], [INF, INF, -INF, -INF, -INF]):
        x = torch.tensor([exact]).requires_grad_()
        y = lml(x, 2)
        assert y.tolist() == [[1, 1, 0, 0, 0]]
        assert torch.autograd.grad(y[0, 0], x)[0].tolist() == [[0] * 5]
        loss = lml_nll(x, torch.tensor([0]), 2)
        assert loss.item() == 0 and torch.autograd.grad(loss, x)[0].isfinite().all()
    for impossible in ([INF, INF, INF, 1.0, 2], [5.0, -INF, -INF, -INF, -INF]):
        for function in (lml, lambda v, k: lml_nll(v, torch.tensor([0]), k)):
            with pytest.raises(ValueError, match=r"more than [23] entries of \+inf or fewer than [23] above -inf"):
                function(torch.tensor([impossible]), 2)
    x = torch.zeros(2, 5)
    x[1, 3] = math.nan
    y = lml(x, 2)
    assert y[1].isnan().all() and y[0].tolist() == pytest.approx([0.4] * 5)


def test_as_many_labels_as_entries_and_large_problems() -> None:
    x = torch.randn(3, 4, requires_grad=True)
    y = lml(x, 4)
    assert (y == 1).all() and (torch.autograd.grad(y[0, 0], x)[0] == 0).all()
    assert lml_nll(x, torch.tensor([0, 1, 2]), 4).item() == 0
    for n, k in ((10**6, 10), (20_000, 500), (3163, 3161)):
        row = torch.randn(1, n, generator=torch.Generator().manual_seed(n))
        assert lml(row, k).double().sum().item() == pytest.approx(k, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_nll_is_that_of_the_projection(dtype: torch.dtype) -> None:
    x, index = random(5, 30).to(dtype), torch.tensor([3, 0, 29, 7, 7])
    several = random(5, 30, seed=3) > 1
    y = bisected(x, 4)
    losses = lml_nll(x, index, 4, reduction="none")
    assert losses.dtype == dtype
    torch.testing.assert_close(losses.double(), -y[torch.arange(5), index].log(), atol=1e-5, rtol=0)
    total = -(several * y.log()).sum()
    assert lml_nll(x, several, 4, reduction="sum").item() == pytest.approx(total.item(), rel=1e-5)
    assert lml_nll(x, several, 4).item() == pytest.approx(total.item() / several.sum().item(), rel=1e-5)
    assert lml_nll(x.T, index, 4, dim=0).item() == pytest.approx(losses.mean().item(), rel=1e-5)
    assert lml_nll(x, torch.zeros_like(several), 4).item() == 0


def test_nll_far_from_the_optimum() -> None:
    """Where y underflows, the loss stays finite and its gradient that of the spec."""
    x = torch.tensor([[400.0, 300, -500, 0, -400]], requires_grad=True)
    assert lml(x, 2)[0, 2] == 0
    loss = lml_nll(x, torch.tensor([2]), 2)
    # A gap from 300 to 0 saturates all: nu = -(300 + 0) / 2.
    assert loss.item() == pytest.approx(650, abs=1e-3)
    gradient = torch.autograd.grad(loss, x)[0]
    torch.testing.assert_close(gradient, torch.tensor([[0.0, 0.5, -1.0, 0.5, 0.0]]), atol=1e-6, rtol=0)


@pytest.mark.slow
def test_compiles_without_graph_breaks() -> None:
    x, index = torch.randn(4, 40, requires_grad=True), torch.tensor([1, 2, 3, 4])
    mask, several = torch.rand(4, 40) < 0.7, torch.rand(4, 40) < 0.1

    def loss(v: Tensor) -> Tensor:
        return lml(v, 5, mask=mask).square().sum() + lml_nll(v, index, 5) + lml_nll(v, several, 5)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(compiled, loss(x))
    gradients = (torch.autograd.grad(value, x)[0] for value in (compiled, loss(x)))
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=0)


@pytest.mark.parametrize("samples", [3, 10, 1000])
def test_bracketing(samples: int) -> None:
    x = random(6, 40).requires_grad_()
    y = lml_bracketing(x, 3, samples=samples, eps=1e-9)
    torch.testing.assert_close(y, bisected(x, 3), atol=1e-8, rtol=0)
    weights = random(6, 40, seed=1)
    gradients = (torch.autograd.grad((p * weights).sum(), x)[0] for p in (y, lml(x, 3)))
    torch.testing.assert_close(*gradients, atol=1e-7, rtol=0)
    torch.testing.assert_close(lml_bracketing(x.T, 3, dim=0, samples=samples, eps=1e-9).T, y)


def test_bracketing_where_the_first_bracket_is_wrong() -> None:
    """1,500 entries beside the best lift the sum at the paper's lower bound above 1."""
    x = torch.zeros(2, 1500)
    x[1] = torch.arange(1500.0)
    assert (x[:1] - 7).sigmoid().sum() > 1
    y = lml_bracketing(x, 1)
    torch.testing.assert_close(y, bisected(x, 1).float(), atol=1e-4, rtol=0)
    small = torch.randn(2, 3, requires_grad=True)
    y = lml_bracketing(small, 3)
    assert y.unique().tolist() == pytest.approx([1 - 1e-5], abs=1e-7)
    assert (torch.autograd.grad(y.sum(), small)[0] == 0).all()


def test_bad_input() -> None:
    x = torch.randn(2, 5)
    for k in (0, -1, 6):
        with pytest.raises(ValueError, match=f"at most the number of labels, 5, got {k}"):
            lml(x, k)
    with pytest.raises(ValueError, match=r"floating dtype, got torch\.int64"):
        lml(torch.ones(2, 5, dtype=torch.int64), 1)
    with pytest.raises(ValueError, match="dimension 2"):
        lml(x, 1, dim=2)
    for mask in (torch.ones(2, 4, dtype=torch.bool), torch.ones(2, 5)):
        with pytest.raises(ValueError, match="mask must"):
            lml(x, 1, mask=mask)
    for targets in (torch.zeros(3, dtype=torch.int64), torch.zeros(2), torch.ones(2, 4, dtype=torch.bool)):
        with pytest.raises(ValueError, match="targets must be int64"):
            lml_nll(x, targets, 2)
    with pytest.raises(ValueError, match="labels 0 to 4, got 0 to 5"):
        lml_nll(x, torch.tensor([0, 5]), 2)
    with pytest.raises(ValueError, match="mask leaves out"):
        lml_nll(x, torch.tensor([0, 1]), 2, mask=torch.arange(5) != 1)
    with pytest.raises(ValueError, match="reduction"):
        lml_nll(x, torch.tensor([0, 1]), 2, reduction="max")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="samples"):
        lml_bracketing(x, 2, samples=2)
