"""RelDN: the logits of its semantic, spatial and visual modules, added."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from data_modules.scene_graph import RelationBatch
from lit_modules.functional.spatial import pair_spatial_features
from lit_modules.layers.reldn_visual import RelDNVisual, SeenImages

SPATIAL_FEATURES = 28


class RelDNNetwork(nn.Module):
    """Logits of "no relation" (column 0) and every predicate: the sum of the modules that are switched on (Section 4).

    Args:
        frequency_bias: float `[O, O, P + 1]`, initial logits of the semantic module, see
            `functional.frequency.frequency_bias`.
        semantic: Use the trainable frequency table.
        spatial: Use the spatial module, 28 -> hidden -> hidden -> P + 1 with LeakyReLU 0.1.
        spatial_hidden_dim: Its width.
        visual: Arguments of `RelDNVisual`, or None to leave the visual module out.
    """

    def __init__(
        self,
        frequency_bias: Tensor,
        semantic: bool,
        spatial: bool,
        spatial_hidden_dim: int,
        visual: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        if not (semantic or spatial or visual):
            raise ValueError(
                "RelDN has no module switched on: set model.semantic, model.spatial or model.visual to true"
            )
        self.num_objects, columns = frequency_bias.shape[0], frequency_bias.shape[2]
        self.semantic = (
            nn.Embedding(self.num_objects**2, columns, _weight=frequency_bias.float().flatten(0, 1).clone())
            if semantic
            else None
        )
        self.spatial = None
        if spatial:
            dims = (SPATIAL_FEATURES, spatial_hidden_dim, spatial_hidden_dim, columns)
            linears = [nn.Linear(a, b) for a, b in pairwise(dims)]
            for linear in linears:
                nn.init.xavier_uniform_(linear.weight)
                nn.init.zeros_(linear.bias)
            first, second, last = linears
            self.spatial = nn.Sequential(first, nn.LeakyReLU(0.1), second, nn.LeakyReLU(0.1), last)
        self.visual = RelDNVisual(columns, **visual) if visual else None

    def see(self, batch: RelationBatch) -> SeenImages | None:
        """Return what all pairs of a batch share, to be given to `forward`; None without a visual module."""
        return None if self.visual is None else self.visual.see(batch)

    def forward(self, batch: RelationBatch, pairs: Tensor, seen: SeenImages | None = None) -> Tensor:
        """Return logits `[P, num_predicates + 1]` of int64 `[P, 2]` box pairs; `seen` saves looking again."""
        subject, obj = pairs.unbind(dim=1)
        terms = []
        if self.semantic is not None:
            terms.append(self.semantic(batch.labels[subject] * self.num_objects + batch.labels[obj]))
        if self.spatial is not None:
            sizes_wh = batch.sizes_wh[batch.image_index[subject]]
            features = pair_spatial_features(batch.boxes_xyxy[subject], batch.boxes_xyxy[obj], sizes_wh)
            terms.append(self.spatial(features))
        if self.visual is not None:
            terms.append(self.visual(batch, pairs, seen))
        return torch.stack(terms).sum(dim=0)
