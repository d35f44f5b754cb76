"""LSTMs with highway connections over sequences of different lengths (He et al. 2017), as Neural Motifs uses them.

Sequences are packed: their rows stand step by step, within a step the longest sequence first.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Packing:
    """How rows are packed.

    Attributes:
        rows: int64 `[N]`, the row that stands at each packed place.
        places: int64 `[N]`, the packed place of each row; packs and unpacks with `rows`: `x[rows][places]` is `x`.
        mirrored: int64 `[N]`, for each packed place that of the same sequence counted from its end.
        sizes: How many sequences have a step 0, a step 1, and so on; descending.
    """

    rows: Tensor
    places: Tensor
    mirrored: Tensor
    sizes: tuple[int, ...]

    @classmethod
    def by_key(cls, sequence: Tensor, key: Tensor) -> Packing:
        """Order the rows of each sequence by a key, the greatest first; equal ones stay in their order.

        Args:
            sequence: int64 `[N]`, the sequence of each row, in any order.
            key: `[N]`.
        """
        order = key.argsort(descending=True, stable=True)
        order = order[sequence[order].argsort(stable=True)]
        lengths = torch.bincount(sequence)
        ranks = lengths.argsort(descending=True, stable=True).argsort()
        sequence = sequence[order]
        step = torch.arange(len(order), device=order.device) - (lengths.cumsum(0) - lengths)[sequence]
        rank = ranks[sequence]
        packed = (step * max(len(lengths), 1) + rank).argsort()
        rows, step, rank, sequence = order[packed], step[packed], rank[packed], sequence[packed]
        sizes = torch.bincount(step)
        mirrored = (sizes.cumsum(0) - sizes)[lengths[sequence] - 1 - step] + rank
        return cls(rows, rows.argsort(), mirrored, tuple(sizes.tolist()))


class HighwayCell(nn.Module):
    """One step of a highway LSTM.

    With gates i, f, o, r and the candidate g, all of the input and the last output h, and a linear map l of the input
    alone: c = i g + f c, h = r o tanh(c) + (1 - r) l.

    Args:
        input_dim: Length of an input.
        hidden_dim: Length H of h and c.
        input_bias: Whether the map of the input has a bias of its own, as in the decoder.

    Attributes:
        input: Linear map to i, f, g, o, r, l.
        state: Linear map of h to i, f, g, o, r, with the forget gate's bias at 1.
    """

    def __init__(self, input_dim: int, hidden_dim: int, input_bias: bool = False):
        super().__init__()
        self.hidden_dim = hidden_dim
        self.input = nn.Linear(input_dim, 6 * hidden_dim, bias=input_bias)
        self.state = nn.Linear(hidden_dim, 5 * hidden_dim)
        with torch.no_grad():
            for linear in (self.input, self.state):
                for block in linear.weight.split(hidden_dim):
                    nn.init.orthogonal_(block)
            self.state.bias.zero_()
            self.state.bias[hidden_dim : 2 * hidden_dim] = 1

    def step(self, projected: Tensor, output: Tensor, memory: Tensor, dropout: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return h and c `[n, H]` from the mapped input `[n, 6 H]` and the last h and c.

        Args:
            projected: `self.input` of the input.
            output: The last h.
            memory: The last c.
            dropout: What h is multiplied by, None for 1.
        """
        i, f, g, o, r = (projected[:, : 5 * self.hidden_dim] + self.state(output)).chunk(5, dim=1)
        memory = i.sigmoid() * g.tanh() + f.sigmoid() * memory
        output = torch.lerp(projected[:, 5 * self.hidden_dim :], o.sigmoid() * memory.tanh(), r.sigmoid())
        return (output if dropout is None else output * dropout), memory

    def start(self, like: Tensor, size: int, probability: float) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return h and c of zeros, `[size, H]`, and one dropout mask for all steps (None outside training)."""
        zeros = like.new_zeros(size, self.hidden_dim)
        mask = None
        if self.training and probability > 0:
            mask = torch.empty_like(zeros).bernoulli_(1 - probability) / (1 - probability)
        return zeros, zeros, mask


class AlternatingHighwayLSTM(nn.Module):
    """Layers that run forwards and backwards in turns, each over the output of the one before.

    Args:
        input_dim: Length of an input.
        hidden_dim: Length H of an output.
        num_layers: At least 1.
        dropout: Probability that an entry of h is 0 in all steps of a sequence.

    Raises:
        ValueError: There are no layers.
    """

    def __init__(self, input_dim: int, hidden_dim: int, num_layers: int, dropout: float = 0.0):
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"num_layers must be at least 1, got {num_layers}")
        dims = [input_dim] + [hidden_dim] * (num_layers - 1)
        self.cells = nn.ModuleList(HighwayCell(dim, hidden_dim) for dim in dims)
        self.dropout = dropout

    def forward(self, inputs: Tensor, packing: Packing) -> Tensor:
        """Return the last layer's outputs `[N, H]`, packed, of packed inputs `[N, D]`."""
        for number, cell in enumerate(self.cells):
            backwards = number % 2 == 1
            assert isinstance(cell, HighwayCell)
            outputs = self._run(cell, inputs[packing.mirrored] if backwards else inputs, packing.sizes)
            inputs = outputs[packing.mirrored] if backwards else outputs
        return inputs

    def _run(self, cell: HighwayCell, inputs: Tensor, sizes: tuple[int, ...]) -> Tensor:
        if not sizes:
            return inputs.new_zeros(0, cell.hidden_dim)
        projected = cell.input(inputs)
        output, memory, mask = cell.start(projected, sizes[0], self.dropout)
        outputs = []
        for size, step in zip(sizes, projected.split(sizes), strict=True):
            output, memory = cell.step(step, output[:size], memory[:size], None if mask is None else mask[:size])
            outputs.append(output)
        return torch.cat(outputs)
