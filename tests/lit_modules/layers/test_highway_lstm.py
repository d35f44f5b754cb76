from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from lit_modules.layers.highway_lstm import AlternatingHighwayLSTM, Packing
from tests.lit_modules.layers import reference_motifs

F64 = torch.float64


def numpy_state(module: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: value.detach().double().numpy() for name, value in module.state_dict().items()}


def shaken(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Every parameter random, so that none can be forgotten."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
    return module.double()


def rows(lengths: list[int], seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Sequence numbers in a shuffled order, keys and inputs of 5 numbers."""
    generator = torch.Generator().manual_seed(seed)
    sequence = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    sequence = sequence[torch.randperm(len(sequence), generator=generator)]
    return (
        sequence,
        torch.randn(len(sequence), generator=generator),
        torch.randn(len(sequence), 5, dtype=F64, generator=generator),
    )


def test_packing_of_a_small_example() -> None:
    packing = Packing.by_key(torch.tensor([1, 0, 1, 1, 3]), torch.tensor([0.5, 0.0, 0.9, 0.5, 2.0]))
    # Sequence 1 has rows 2, 0, 3 (equal keys stay in order), then 0 and 3 with one row each.
    assert packing.rows.tolist() == [2, 1, 4, 0, 3]
    assert packing.sizes == (3, 1, 1)
    assert packing.mirrored.tolist() == [4, 1, 2, 3, 0]
    assert packing.rows[packing.places].tolist() == [0, 1, 2, 3, 4]
    empty = Packing.by_key(torch.zeros(0, dtype=torch.int64), torch.zeros(0))
    assert empty.sizes == () and len(empty.rows) == 0


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_against_single_steps(layers: int) -> None:
    sequence, key, inputs = rows([4, 1, 0, 7, 4])
    lstm = shaken(AlternatingHighwayLSTM(5, 3, layers, dropout=0.5)).eval()
    packing = Packing.by_key(sequence, key)
    outputs = lstm(inputs[packing.rows], packing)[packing.places].detach().numpy()
    for number in sequence.unique():
        chosen = torch.nonzero(sequence == number).flatten()
        chosen = chosen[key[chosen].argsort(descending=True)]
        expected = reference_motifs.highway_lstm(inputs[chosen].numpy(), numpy_state(lstm))
        np.testing.assert_allclose(outputs[chosen.numpy()], expected, atol=1e-12)


def test_order_of_rows_and_company_make_no_difference() -> None:
    sequence, key, inputs = rows([4, 2, 6])
    lstm = shaken(AlternatingHighwayLSTM(5, 3, 2))

    def run(chosen: Tensor) -> Tensor:
        packing = Packing.by_key(sequence[chosen], key[chosen])
        return lstm(inputs[chosen][packing.rows], packing)[packing.places]

    outputs = run(torch.arange(12))
    shuffled = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(run(shuffled), outputs[shuffled])
    alone = torch.nonzero(sequence == 2).flatten()
    torch.testing.assert_close(run(alone), outputs[alone])
    assert lstm(inputs[:0], Packing.by_key(sequence[:0], key[:0])).shape == (0, 3)


def test_gradients() -> None:
    sequence, key, inputs = rows([3, 1])
    packing = Packing.by_key(sequence, key)
    lstm = shaken(AlternatingHighwayLSTM(5, 2, 2))
    inputs.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: lstm(x, packing), inputs)
    assert torch.autograd.gradcheck(lambda *_: lstm(inputs.detach(), packing), tuple(lstm.parameters()))


def test_dropout_keeps_one_mask_for_all_steps() -> None:
    sequence, key, inputs = rows([6, 4])
    packing = Packing.by_key(sequence, key)
    lstm = shaken(AlternatingHighwayLSTM(5, 40, 1, dropout=0.5)).train()
    torch.manual_seed(0)
    outputs = lstm(inputs[packing.rows], packing)[packing.places]
    for number in (0, 1):
        dropped = outputs[sequence == number] == 0
        assert (dropped == dropped[0]).all() and 5 < dropped[0].sum() < 35
    kept = outputs[sequence == 0][0] != 0
    step = outputs[(sequence == 0) & (key == key[sequence == 0].max())][0]
    plain = lstm.eval()(inputs[packing.rows], packing)[packing.places]
    first = plain[(sequence == 0) & (key == key[sequence == 0].max())][0]
    torch.testing.assert_close(step[kept], 2 * first[kept])  # the first step sees no masked output yet


def test_initial_weights() -> None:
    lstm = AlternatingHighwayLSTM(5, 3, 2)
    with pytest.raises(ValueError, match="num_layers"):
        AlternatingHighwayLSTM(5, 3, 0)
    for cell in lstm.cells:
        assert cell.state.bias.tolist() == [0] * 3 + [1] * 3 + [0] * 9
        assert cell.input.bias is None
        for block in (*cell.state.weight.split(3), *cell.input.weight.split(3)):
            torch.testing.assert_close(block @ block.T, torch.eye(3), atol=1e-5, rtol=0)
