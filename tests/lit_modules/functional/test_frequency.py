from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lit_modules.functional.frequency import (
    frequency_bias,
    pair_counts,
    predicate_counts,
    predicate_probabilities,
    triplet_log_prior,
)


def random_triplets(count: int, num_objects: int, num_predicates: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.integers(0, [num_objects, num_predicates, num_objects], (count, 3))


@pytest.mark.parametrize("convert", [torch.tensor, np.asarray, lambda a: np.asarray(a, dtype=np.uint8)])
def test_counts_against_a_loop(convert: object) -> None:
    triplets = random_triplets(300, 7, 5)
    counts = predicate_counts(convert(triplets), 7, 5)
    pairs = pair_counts(convert(triplets[:, [0, 2]]), 7)
    assert counts.dtype == pairs.dtype == torch.int64
    expected, expected_pairs = np.zeros((7, 7, 5), int), np.zeros((7, 7), int)
    for s, p, o in triplets:
        expected[s, o, p] += 1
        expected_pairs[s, o] += 1
    assert np.array_equal(counts.numpy(), expected)
    assert np.array_equal(pairs.numpy(), expected_pairs)


def test_uint8_labels_do_not_wrap_around() -> None:
    counts = predicate_counts(np.array([[149, 49, 148]], dtype=np.uint8), 150, 50)
    assert counts[149, 148, 49] == 1
    assert counts.sum() == 1


def test_no_triplets() -> None:
    assert predicate_counts(np.zeros((0, 3), np.int64), 3, 2).tolist() == np.zeros((3, 3, 2)).tolist()
    assert pair_counts(torch.zeros(0, 2, dtype=torch.int64), 3).sum() == 0


def test_bias_of_the_worked_example() -> None:
    foreground, background = torch.zeros(2, 2, 2, dtype=torch.int64), torch.zeros(2, 2, dtype=torch.int64)
    foreground[0, 1] = torch.tensor([3, 1])
    background[0, 1] = 4
    bias = frequency_bias(foreground, background)
    assert bias.shape == (2, 2, 3)
    assert bias[0, 1].tolist() == pytest.approx([-0.585988, -1.095617, -2.188265], abs=1e-6)
    assert bias[0, 1].softmax(0).tolist() == pytest.approx([0.554891, 0.333333, 0.111776], abs=1e-6)
    assert bias[1, 0].tolist() == pytest.approx([math.log(1.001), math.log(1e-3), math.log(1e-3)], abs=1e-7)


def test_bias_epsilons_are_used() -> None:
    foreground, background = torch.ones(1, 1, 1, dtype=torch.int64), torch.zeros(1, 1, dtype=torch.int64)
    bias = frequency_bias(foreground, background, normaliser_eps=2.0, log_eps=0.5)
    assert bias.flatten().tolist() == pytest.approx([math.log(1 / 4 + 0.5)] * 2)


def test_probabilities_against_a_loop() -> None:
    triplets = random_triplets(60, 6, 4)
    foreground, background = predicate_counts(triplets, 6, 4), pair_counts(random_triplets(90, 6, 6, 1)[:, :2], 6)
    with_background, without = (
        predicate_probabilities(foreground, background),
        predicate_probabilities(foreground, None),
    )
    unseen = 0
    for s in range(6):
        for o in range(6):
            row = foreground[s, o].tolist()
            total = sum(row)
            unseen += total == 0
            expected = [c / (total + background[s, o].item() + 1) for c in row]
            assert with_background[s, o].tolist() == pytest.approx(expected, abs=1e-15)
            assert without[s, o].tolist() == pytest.approx([c / total if total else 0.0 for c in row], abs=1e-15)
    assert unseen  # otherwise the rule for unseen pairs isn't tested
    assert with_background.sum(dim=-1).max() < 1


def test_prior_is_a_smoothed_distribution_in_triplet_order() -> None:
    triplets = random_triplets(500, 6, 4)
    prior = triplet_log_prior(predicate_counts(triplets, 6, 4))
    assert prior.shape == (6, 4, 6)
    assert prior.is_contiguous()
    assert prior.exp().sum().item() == pytest.approx(1, abs=1e-12)
    count = np.ones((6, 4, 6))
    for s, p, o in triplets:
        count[s, p, o] += 1
    assert np.allclose(prior.numpy(), np.log(count / count.sum()), atol=1e-12)
    sparse = triplet_log_prior(predicate_counts(triplets[:5], 6, 4))
    assert sparse.min().item() == pytest.approx(-math.log(5 + 6 * 4 * 6), abs=1e-12)


def test_no_counts_give_a_uniform_prior() -> None:
    prior = triplet_log_prior(torch.zeros(3, 3, 2, dtype=torch.int64))
    assert prior.flatten().tolist() == pytest.approx([-math.log(18)] * 18)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"triplets column 1 must hold labels 0 to 1, got 0 to 2"):
        predicate_counts([[0, 0, 0], [0, 2, 0]], 3, 2)
    with pytest.raises(ValueError, match=r"label_pairs column 0 must hold labels 0 to 2, got -1"):
        pair_counts(torch.tensor([[-1, 0]]), 3)
    with pytest.raises(ValueError, match=r"triplets must have shape \[N, 3\]"):
        predicate_counts(torch.zeros(4, 2), 3, 2)
    with pytest.raises(ValueError, match="background_counts"):
        frequency_bias(torch.zeros(3, 3, 2), torch.zeros(2, 2))
    with pytest.raises(ValueError, match="foreground_counts"):
        triplet_log_prior(torch.zeros(3, 3))
