from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lit_modules.functional import cp

Logits = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def random_logits(pairs: int = 4, rank: int = 3, sizes: tuple[int, ...] = (4, 3, 5), seed: int = 0) -> Logits:
    generator = torch.Generator().manual_seed(seed)
    return tuple(2 * torch.randn(pairs, rank, n, dtype=torch.float64, generator=generator) for n in sizes)


def random_targets(logits: Logits, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randint(x.shape[2], (len(x),), generator=generator) for x in logits], dim=1)


def worked_example() -> Logits:
    s, p, o = [[0, 1], [2, -1]], [[0.5, 0, -0.5], [1, 0, 0]], [[0, 0], [1, -1]]
    return tuple(torch.tensor([x], dtype=torch.float64) for x in (s, p, o))


def slow_unnormalised(logits: Logits) -> np.ndarray:
    """Sum over components of the exponential, cell by cell: `[B, S, P, O]`."""
    s, p, o = (x.numpy() for x in logits)
    tensor = np.zeros((len(s), s.shape[2], p.shape[2], o.shape[2]))
    for b, i, j, k in np.ndindex(*tensor.shape):
        for r in range(s.shape[1]):
            tensor[b, i, j, k] += math.exp(s[b, r, i] + p[b, r, j] + o[b, r, k])
    return tensor


def slow_probabilities(logits: Logits) -> np.ndarray:
    tensor = slow_unnormalised(logits)
    return tensor / tensor.sum(axis=(1, 2, 3), keepdims=True)


def test_worked_example() -> None:
    logits, target = worked_example(), torch.tensor([[0, 2, 1]])
    assert cp.cp_log_partition(*logits).item() == pytest.approx(4.921144946, abs=1e-9)
    assert cp.cp_nll(*logits, target).item() == pytest.approx(3.719731668, abs=1e-9)
    assert cp.cp_mixture_log_weights(*logits).exp()[0].tolist() == pytest.approx([0.176494, 0.823506], abs=1e-6)


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_against_loops_over_all_triplets(rank: int) -> None:
    logits = random_logits(rank=rank)
    tensor, y = slow_unnormalised(logits), slow_probabilities(logits)
    log_z = cp.cp_log_partition(*logits).numpy()
    assert np.allclose(log_z, np.log(tensor.sum(axis=(1, 2, 3))), atol=1e-12)
    assert np.allclose(cp.cp_log_tensor(*logits).numpy(), np.log(y), atol=1e-12)
    assert np.allclose(cp.cp_predicate_log_marginal(*logits).numpy(), np.log(y.sum(axis=(1, 3))), atol=1e-12)
    targets = random_targets(logits)
    likelihood = cp.cp_log_likelihood(*logits, targets).numpy()
    rows = np.arange(len(y))
    i, j, k = targets.numpy().T
    assert np.allclose(likelihood, np.log(y[rows, i, j, k]), atol=1e-12)
    labels = targets[:, 0], targets[:, 2]
    row = y[rows, i, :, k]
    assert np.allclose(cp.cp_log_slice(*logits, *labels).numpy(), np.log(row), atol=1e-12)
    conditional = cp.cp_conditional_log_predicate(*logits, *labels).exp().numpy()
    assert np.allclose(conditional, row / row.sum(axis=1, keepdims=True), atol=1e-12)


def test_mixture_view() -> None:
    s, p, o = logits = random_logits()
    weights = cp.cp_mixture_log_weights(*logits).exp()
    assert torch.allclose(weights.sum(dim=1), torch.ones(4, dtype=torch.float64))
    mixture = torch.einsum("br,bri,brj,brk->bijk", weights, s.softmax(2), p.softmax(2), o.softmax(2))
    torch.testing.assert_close(cp.cp_log_tensor(*logits).exp(), mixture)
    torch.testing.assert_close(mixture.sum(dim=(1, 2, 3)), torch.ones(4, dtype=torch.float64))


def nll_and_gradients(logits: Logits, targets: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    leaves = [x.detach().clone().requires_grad_() for x in logits]
    nll = cp.cp_nll(*leaves, targets)
    nll.backward()
    return nll.detach(), [x.grad for x in leaves]


def test_one_component_is_three_cross_entropies() -> None:
    logits = random_logits(rank=1)
    targets = random_targets(logits)
    nll, gradients = nll_and_gradients(logits, targets)
    leaves = [x.clone().requires_grad_() for x in logits]
    expected = sum(F.cross_entropy(x[:, 0], targets[:, n]) for n, x in enumerate(leaves))
    expected.backward()
    torch.testing.assert_close(nll, expected.detach())
    for gradient, leaf in zip(gradients, leaves, strict=True):
        torch.testing.assert_close(gradient, leaf.grad)


def test_permuting_and_duplicating_components_change_nothing() -> None:
    logits = random_logits()
    expected = cp.cp_log_tensor(*logits)
    targets = random_targets(logits)
    nll = cp.cp_nll(*logits, targets)
    permuted, doubled = [x[:, [2, 0, 1]] for x in logits], [x.repeat(1, 2, 1) for x in logits]
    for changed in (permuted, doubled):
        torch.testing.assert_close(cp.cp_log_tensor(*changed), expected)
        torch.testing.assert_close(cp.cp_nll(*changed, targets), nll)
    torch.testing.assert_close(cp.cp_mixture_log_weights(*permuted), cp.cp_mixture_log_weights(*logits)[:, [2, 0, 1]])


@pytest.mark.parametrize("branch", [0, 1, 2])
def test_shifting_all_components_changes_nothing_and_shifting_one_only_the_weights(branch: int) -> None:
    logits = list(random_logits())
    expected, weights = cp.cp_log_tensor(*logits), cp.cp_mixture_log_weights(*logits)
    shift = torch.tensor([3.0, -2.0, 0.5, 10.0], dtype=torch.float64)
    every = [x + shift[:, None, None] if n == branch else x for n, x in enumerate(logits)]
    torch.testing.assert_close(cp.cp_log_tensor(*every), expected)
    one = [x.clone() for x in logits]
    one[branch][:, 1] += shift[:, None]
    moved = weights.clone()
    moved[:, 1] += shift
    torch.testing.assert_close(cp.cp_mixture_log_weights(*one), moved.log_softmax(dim=1))
    mixture = torch.einsum("br,bri,brj,brk->bijk", moved.softmax(dim=1), *(x.softmax(2) for x in logits))
    torch.testing.assert_close(cp.cp_log_tensor(*one).exp(), mixture)


def test_gradient_against_finite_differences() -> None:
    logits = random_logits()
    targets = random_targets(logits)
    leaves = [x.requires_grad_() for x in logits]
    assert torch.autograd.gradcheck(lambda *x: cp.cp_log_likelihood(*x, targets), leaves)
    assert torch.autograd.gradcheck(lambda *x: cp.cp_nll(*x, targets), leaves)
    labels = targets[:, 0], targets[:, 2]
    assert torch.autograd.gradcheck(lambda *x: cp.cp_log_slice(*x, *labels), leaves)
    assert torch.autograd.gradcheck(lambda *x: cp.cp_conditional_log_predicate(*x, *labels), leaves)
    for function in (cp.cp_log_partition, cp.cp_mixture_log_weights, cp.cp_log_tensor, cp.cp_predicate_log_marginal):
        assert torch.autograd.gradcheck(function, leaves)


def test_gradient_of_some_branches_only() -> None:
    s, p, o = random_logits()
    targets = random_targets((s, p, o))
    _, gradients = nll_and_gradients((s, p, o), targets)
    leaf = p.clone().requires_grad_()
    cp.cp_nll(s, leaf, o, targets).backward()
    torch.testing.assert_close(leaf.grad, gradients[1])


def test_gradient_is_weights_times_softmax_minus_responsibilities() -> None:
    logits = random_logits()
    targets = random_targets(logits)
    _, gradients = nll_and_gradients(logits, targets)
    weights = cp.cp_mixture_log_weights(*logits).exp()
    for b in range(4):
        at_target = [sum(x[b, r, targets[b, n]] for n, x in enumerate(logits)) for r in range(3)]
        q = torch.stack(at_target).softmax(0)
        for n, x in enumerate(logits):
            expected = weights[b, :, None] * x[b].softmax(1)
            expected[:, targets[b, n]] -= q
            torch.testing.assert_close(gradients[n][b], expected / 4)  # mean over 4 pairs
            assert gradients[n][b].sum().item() == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_extreme_logits_stay_finite(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = [1e4 * (2 * torch.randint(2, (6, 3, n), generator=generator) - 1).to(dtype) for n in (4, 3, 5)]
    targets = random_targets(tuple(logits))
    nll, gradients = nll_and_gradients(tuple(logits), targets)
    assert torch.isfinite(nll)
    assert nll >= 0
    assert all(torch.isfinite(g).all() for g in gradients)
    assert torch.isfinite(cp.cp_log_tensor(*logits)).all()
    exact = cp.cp_nll(*(x.double() for x in logits), targets)
    torch.testing.assert_close(nll.double(), exact, rtol=1e-5, atol=1e-2)


def test_confident_pairs_keep_a_small_exact_loss() -> None:
    logits = [torch.zeros(1, 2, n) for n in (4, 3, 5)]
    for x in logits:
        x[..., 0] = 300.0  # large logits: a difference of two log normalisers near 900 would be all rounding
        x[..., 1] = 288.0
    nll = cp.cp_nll(*logits, torch.zeros(1, 3, dtype=torch.int64)).item()
    assert nll == pytest.approx(3 * math.log1p(math.exp(-12)), rel=1e-2)


def test_half_precision_is_computed_in_float32() -> None:
    logits = [x.bfloat16() for x in random_logits()]
    targets = random_targets(tuple(logits))
    nll, gradients = nll_and_gradients(tuple(logits), targets)
    expected, wanted = nll_and_gradients(tuple(x.float() for x in logits), targets)
    assert nll.dtype == torch.float32
    assert torch.equal(nll, expected)
    for gradient, want in zip(gradients, wanted, strict=True):
        assert gradient.dtype == torch.bfloat16
        torch.testing.assert_close(gradient, want.bfloat16())


def test_nan_stays_with_its_pair() -> None:
    logits = random_logits()
    logits[1][2, 0, 0] = math.nan
    likelihood = cp.cp_log_likelihood(*logits, random_targets(logits))
    assert likelihood.isnan().tolist() == [False, False, True, False]


def test_minus_infinity_forbids_a_label() -> None:
    logits = random_logits()
    logits[0][:, :, 1] = -math.inf
    targets = torch.tensor([[0, 1, 2]] * 4)
    _, gradients = nll_and_gradients(logits, targets)
    assert all(torch.isfinite(g).all() for g in gradients)
    assert (gradients[0][:, :, 1] == 0).all()
    kept = (logits[0][:, :, [0, 2, 3]], *logits[1:])
    torch.testing.assert_close(cp.cp_nll(*logits, targets), cp.cp_nll(*kept, targets))


def test_reductions() -> None:
    logits = random_logits()
    targets = random_targets(logits)
    each = cp.cp_nll(*logits, targets, reduction="none")
    assert torch.equal(each, -cp.cp_log_likelihood(*logits, targets))
    torch.testing.assert_close(cp.cp_nll(*logits, targets, reduction="sum"), each.sum())
    torch.testing.assert_close(cp.cp_nll(*logits, targets), each.mean())
    with pytest.raises(ValueError, match="reduction must be mean, sum or none, got 'max'"):
        cp.cp_nll(*logits, targets, reduction="max")


def test_no_pairs_cost_nothing() -> None:
    logits = [torch.zeros(0, 2, n, requires_grad=True) for n in (4, 3, 5)]
    loss = cp.cp_nll(*logits, torch.zeros(0, 3, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0


def test_a_graph_can_be_differentiated_again_and_inputs_stay_untouched() -> None:
    logits = random_logits()
    copies = [x.clone() for x in logits]
    leaves = [x.requires_grad_() for x in logits]
    nll = cp.cp_nll(*leaves, random_targets(logits))
    first = torch.autograd.grad(nll, leaves, retain_graph=True)
    second = torch.autograd.grad(nll, leaves)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(torch.equal(a.detach(), b) for a, b in zip(leaves, copies, strict=True))


def test_wrong_arguments_are_named() -> None:
    s, p, o = random_logits()
    targets = random_targets((s, p, o))
    with pytest.raises(ValueError, match="predicate_logits must have shape"):
        cp.cp_nll(s, p[:, :2], o, targets)
    with pytest.raises(ValueError, match="object_logits must have shape"):
        cp.cp_log_partition(s, p, o[0])
    with pytest.raises(ValueError, match="subject_logits must be of a floating dtype"):
        cp.cp_log_partition(s.long(), p, o)
    with pytest.raises(ValueError, match=r"targets must be int64 of shape \[4, 3\]"):
        cp.cp_nll(s, p, o, targets[:, :2])
    with pytest.raises(ValueError, match=r"targets column 1 \(predicate\) must hold labels 0 to 2, got .* to 3"):
        cp.cp_nll(s, p, o, targets.index_fill(0, torch.tensor([0]), 3))
    with pytest.raises(ValueError, match="object_labels must hold labels 0 to 4, got -1"):
        cp.cp_log_slice(s, p, o, targets[:, 0], targets[:, 2] * 0 - 1)
    with pytest.raises(ValueError, match=r"subject_labels must have shape \[4\]"):
        cp.cp_log_slice(s, p, o, targets[:2, 0], targets[:, 2])
