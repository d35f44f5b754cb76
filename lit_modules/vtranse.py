"""VTransE, the baseline of visual relation detection by translation embedding (Zhang et al., CVPR 2017)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from data_modules.scene_graph import RelationBatch
from lit_modules.layers.vtranse import VTransENetwork
from lit_modules.optimizers import build_optimizer
from lit_modules.relation_scorer import RelationScorer

CHUNK = 1024  # pairs scored at a time: bounds the memory of pooled boxes


class VTransETraining(pl.LightningModule):
    """Trains on the softmax loss of the annotated relations' predicates, averaged over the relations of a batch.

    Args:
        network: Arguments of `VTransENetwork`.
        optimizer: Arguments of `build_optimizer`.
        start: States of a detector's body and of its RoI head, which the visual features start from.
    """

    def __init__(
        self,
        network: Mapping[str, Any],
        optimizer: Mapping[str, Any],
        start: tuple[Mapping[str, Tensor], Mapping[str, Tensor]] | None = None,
    ):
        super().__init__()
        self.network = VTransENetwork(**network)
        if start is not None:
            assert self.network.visual is not None
            self.network.visual.start_from(*start)
        self._optimizer = optimizer

    def training_step(self, batch: RelationBatch, batch_idx: int) -> Tensor:
        """Return the loss of one batch of images; 0 where nothing is related."""
        logits = self.network(batch, batch.relations[:, [0, 2]])
        losses = cross_entropy(logits, batch.relations[:, 1], reduction="none")
        loss = losses.sum() / max(len(losses), 1)
        self.log("loss", loss.detach(), prog_bar=True, batch_size=len(batch.graphs))
        return loss

    def configure_optimizers(self) -> Any:
        """Return the optimiser and its schedule."""
        return build_optimizer(self, int(self.trainer.estimated_stepping_batches), **self._optimizer)


class VTransEScoring(RelationScorer):
    """Ranks triplets by the probabilities of subject, predicate and object.

    Args:
        network: The trained network.
        scores: How the three are joined: `sum`, as the paper does, or `product`, as all later models do.
        evaluation: Arguments of `RelationScorer`.

    Raises:
        ValueError: `scores` is neither.
    """

    def __init__(self, network: VTransENetwork, scores: str, **evaluation: Any):
        super().__init__(**evaluation)
        if scores not in ("sum", "product"):
            raise ValueError(f"scores must be sum or product, not {scores!r}")
        self.network = network
        self._scores = scores

    def score_pairs(self, batch: RelationBatch, pairs: Tensor) -> Tensor:
        """Return float64 `[P, num_predicates]`."""
        seen = self.network.see(batch)
        logits = torch.cat([self.network(batch, chunk, seen) for chunk in pairs.split(CHUNK)])
        probabilities, ends = logits.double().softmax(dim=1), batch.scores[pairs]
        if self._scores == "sum":
            return probabilities + ends.sum(dim=1, keepdim=True)
        return probabilities * ends.prod(dim=1, keepdim=True)
