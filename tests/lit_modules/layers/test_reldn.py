from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from lit_modules.functional.boxes import all_pairs
from lit_modules.functional.frequency import frequency_bias, pair_counts, predicate_counts
from lit_modules.functional.spatial import pair_spatial_features
from lit_modules.layers.reldn import RelDNNetwork
from tests.lit_modules.batches import make_batch, random_images


def bias() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    triplets = torch.stack([torch.randint(n, (60,), generator=generator) for n in (4, 3, 4)], dim=1)
    pairs = torch.randint(4, (90, 2), generator=generator)
    return frequency_bias(predicate_counts(triplets, 4, 3), pair_counts(pairs, 4))


def network(semantic: bool = True, spatial: bool = True) -> RelDNNetwork:
    torch.manual_seed(1)
    return RelDNNetwork(bias(), semantic=semantic, spatial=spatial, spatial_hidden_dim=8)


def test_the_semantic_module_starts_as_the_frequency_bias() -> None:
    batch = make_batch(*random_images(0))
    pairs = all_pairs(batch.image_index)
    logits = network(spatial=False)(batch, pairs)
    table = bias()
    assert len(pairs) == 42
    for row, (subject, obj) in zip(logits.tolist(), pairs.tolist(), strict=True):
        assert row == pytest.approx(table[batch.labels[subject], batch.labels[obj]].tolist(), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_table_is_trainable_and_its_own(dtype: torch.dtype) -> None:
    given = bias().to(dtype)
    before = given.clone()
    embedding = RelDNNetwork(given, semantic=True, spatial=False, spatial_hidden_dim=8).semantic
    assert embedding is not None and embedding.weight.requires_grad
    with torch.no_grad():
        embedding.weight.add_(1)
    assert torch.equal(given, before)


def test_logits_are_the_sum_of_the_modules() -> None:
    batch = make_batch(*random_images(2))
    pairs = all_pairs(batch.image_index)
    both = network()
    parts = []
    for name in ("semantic", "spatial"):
        single = network(semantic=name == "semantic", spatial=name == "spatial")
        getattr(single, name).load_state_dict(getattr(both, name).state_dict())
        parts.append(single(batch, pairs))
        assert parts[-1].std(dim=0).min() > 0
    assert torch.allclose(both(batch, pairs), parts[0] + parts[1], atol=1e-6)


def test_the_spatial_module_by_hand() -> None:
    batch = make_batch(*random_images(3))
    pairs = all_pairs(batch.image_index)
    spatial = network(semantic=False).spatial
    assert spatial is not None
    first, second, last = (spatial[i] for i in (0, 2, 4))
    shapes = [tuple(linear.weight.shape) for linear in (first, second, last)]
    assert shapes == [(8, 28), (8, 8), (4, 8)]
    logits = network(semantic=False)(batch, pairs)
    for (subject, obj), row in zip(pairs.tolist(), logits, strict=True):
        size = batch.sizes_wh[batch.image_index[subject]]
        x = pair_spatial_features(batch.boxes_xyxy[[subject]], batch.boxes_xyxy[[obj]], size)[0]
        for linear in (first, second):
            x = linear.weight @ x + linear.bias
            x = torch.where(x > 0, x, 0.1 * x)
        assert torch.allclose(row, last.weight @ x + last.bias, atol=1e-5)


def test_initial_values_are_xavier_with_zero_biases() -> None:
    torch.manual_seed(0)
    spatial = RelDNNetwork(bias(), semantic=False, spatial=True, spatial_hidden_dim=256).spatial
    assert spatial is not None
    for linear in (m for m in spatial if isinstance(m, nn.Linear)):
        limit = (6 / sum(linear.weight.shape)) ** 0.5
        assert 0.98 * limit < float(linear.weight.detach().abs().max()) <= limit
        assert not linear.bias.any()


def test_each_image_is_normalised_by_its_own_size() -> None:
    images = random_images(4, boxes=(3, 5))
    batch, alone = make_batch(*images), make_batch(images[1])
    spatial = network(semantic=False)
    pairs = all_pairs(alone.image_index)
    assert torch.allclose(spatial(batch, pairs + 3), spatial(alone, pairs), atol=1e-6)
    swapped = replace(batch, sizes_wh=batch.sizes_wh.flip(0))
    assert not torch.allclose(spatial(swapped, pairs + 3), spatial(alone, pairs), atol=1e-3)


def test_the_direction_of_a_pair_matters() -> None:
    batch = make_batch(*random_images(5))
    pairs = all_pairs(batch.image_index)
    for options in ({"spatial": False}, {"semantic": False}):
        assert not torch.allclose(network(**options)(batch, pairs), network(**options)(batch, pairs.flip(1)))


def test_gradient_reaches_the_used_rows_of_the_table_and_every_layer() -> None:
    batch = make_batch(*random_images(6))
    pairs = all_pairs(batch.image_index)
    both = network()
    both(batch, pairs).logsumexp(dim=1).sum().backward()
    assert both.semantic is not None and both.spatial is not None
    used = {4 * s + o for s, o in batch.labels[pairs].tolist()}
    assert set(both.semantic.weight.grad.abs().sum(dim=1).nonzero()[:, 0].tolist()) == used
    assert all(parameter.grad.abs().sum() > 0 for parameter in both.spatial.parameters())


def test_no_pairs_and_no_module() -> None:
    assert network()(make_batch(*random_images(0)), torch.zeros(0, 2, dtype=torch.int64)).shape == (0, 4)
    with pytest.raises(ValueError, match=r"no module switched on: set model\.semantic, model\.spatial"):
        network(semantic=False, spatial=False)
