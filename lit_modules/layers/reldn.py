"""RelDN's pixel-free modules: frequency table and spatial features, added as logits."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from data_modules.scene_graph import RelationBatch
from lit_modules.functional.spatial import pair_spatial_features

SPATIAL_FEATURES = 28


class RelDNNetwork(nn.Module):
    """Logits of "no relation" (column 0) and every predicate: the sum of the modules that are switched on (Section 4).

    Args:
        frequency_bias: float `[O, O, P + 1]`, initial logits of the semantic module, see
            `functional.frequency.frequency_bias`.
        semantic: Use the trainable frequency table.
        spatial: Use the spatial module, 28 -> hidden -> hidden -> P + 1 with LeakyReLU 0.1.
        spatial_hidden_dim: Its width.
    """

    def __init__(self, frequency_bias: Tensor, semantic: bool, spatial: bool, spatial_hidden_dim: int):
        super().__init__()
        if not (semantic or spatial):
            raise ValueError("RelDN has no module switched on: set model.semantic or model.spatial to true")
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

    def forward(self, batch: RelationBatch, pairs: Tensor) -> Tensor:
        """Return logits `[P, num_predicates + 1]` of int64 `[P, 2]` box pairs."""
        subject, obj = pairs.unbind(dim=1)
        terms = []
        if self.semantic is not None:
            terms.append(self.semantic(batch.labels[subject] * self.num_objects + batch.labels[obj]))
        if self.spatial is not None:
            sizes_wh = batch.sizes_wh[batch.image_index[subject]]
            features = pair_spatial_features(batch.boxes_xyxy[subject], batch.boxes_xyxy[obj], sizes_wh)
            terms.append(self.spatial(features))
        return torch.stack(terms).sum(dim=0)
