"""Low-rank non-negative tensor decomposition of the triplet distribution (Dupty, Zhang, Lee; AAAI 2020)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from data_modules.scene_graph import PairPredictions, RelationBatch
from lit_modules.functional.boxes import all_pairs
from lit_modules.functional.cp import cp_log_slice, cp_nll
from lit_modules.functional.cp_prior import cp_log_expectation
from lit_modules.functional.cp_topk import cp_topk_triplets
from lit_modules.layers.faster_rcnn import FasterRCNN
from lit_modules.layers.triplet import TripletNetwork
from lit_modules.optimizers import build_optimizer
from lit_modules.proposer import Proposer
from lit_modules.relation_scorer import RelationScorer, split_by_image
from lit_modules.training_boxes import propose_relations

CHUNK = 256  # pairs encoded at a time when testing: bounds the memory of the mask encoder


class TripletTraining(pl.LightningModule):
    """Trains the triplet network on annotated pairs by the likelihood of their triplet (eqs. 3-6).

    Args:
        network: Arguments of `TripletNetwork`.
        reduction: `mean` over all pairs of the batch, or `sum` over the pairs of an image, averaged over images.
        optimizer: Arguments of `build_optimizer`.
        detector: Proposes boxes in place of the annotated ones: a trained Faster R-CNN with the network's frozen body.
            It isn't trained, and no checkpoint holds it.
        proposals_per_box: Of an annotated box, then, at most.
    """

    def __init__(
        self,
        network: Mapping[str, Any],
        reduction: str,
        optimizer: Mapping[str, Any],
        detector: FasterRCNN | None = None,
        proposals_per_box: int = 4,
    ):
        super().__init__()
        if reduction not in ("sum", "mean"):
            raise ValueError(f"loss.reduction must be sum or mean, not {reduction!r}")
        self.network = TripletNetwork(**network)
        self._reduction, self._optimizer = reduction, optimizer
        self._proposer = Proposer(detector) if detector else None
        self._proposals_per_box = proposals_per_box

    def training_step(self, batch: RelationBatch, batch_idx: int) -> dict[str, Tensor]:
        """Return the loss of one batch of images."""
        seen = self.network.see(batch)
        if self._proposer and seen is not None:
            proposals = self._proposer.propose(batch, seen[0], seen[1], self.network.num_objects)
            batch = propose_relations(batch, proposals, self._proposals_per_box)
        subject, predicate, obj = batch.relations.unbind(dim=1)
        s, p, o, _ = self.network(batch, torch.stack([subject, obj], dim=1), seen)
        targets = torch.stack([batch.labels[subject], predicate, batch.labels[obj]], dim=1)
        loss = cp_nll(s, p, o, targets, "mean")
        if self._reduction == "sum":
            loss = loss * (len(targets) / len(batch.graphs))
        self.log("loss", loss.detach(), prog_bar=True, batch_size=len(batch.graphs))
        return {"loss": loss}

    def configure_optimizers(self) -> Any:
        """Return the optimiser and its schedule."""
        return build_optimizer(self, int(self.trainer.estimated_stepping_batches), **self._optimizer)


class PairSelector(nn.Module):
    """X_sel: the log-odds that a pair is annotated at all, from the predicate branch's input.

    Args:
        pair_dim: Length of that input.
        hidden_dim: Width of the hidden layer.
    """

    def __init__(self, pair_dim: int, hidden_dim: int):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(pair_dim, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, 1))

    def forward(self, features: Tensor) -> Tensor:
        """Return log-odds `[P]` of features `[P, pair_dim]`."""
        log_odds: Tensor = self.layers(features)
        return log_odds.squeeze(1)


class SelectorTraining(pl.LightningModule):
    """Trains X_sel on a frozen triplet network, with equal numbers of annotated and other pairs.

    Args:
        network: Arguments of `TripletNetwork`.
        network_state: Its trained weights.
        hidden_dim: Width of the selector's hidden layer.
        optimizer: Arguments of `build_optimizer`.
    """

    def __init__(
        self,
        network: Mapping[str, Any],
        network_state: Mapping[str, Tensor],
        hidden_dim: int,
        optimizer: Mapping[str, Any],
    ):
        super().__init__()
        self.network = TripletNetwork(**network)
        self.network.load_state_dict(network_state)
        self.network.requires_grad_(False)
        self.selector = PairSelector(self.network.pair_dim, hidden_dim)
        self._optimizer = optimizer

    def training_step(self, batch: RelationBatch, batch_idx: int) -> dict[str, Tensor]:
        """Return the loss of one batch of images."""
        positive = torch.unique(batch.relations[:, [0, 2]], dim=0)
        candidates = all_pairs(batch.image_index)
        boxes = len(batch.labels)
        annotated = torch.isin(candidates[:, 0] * boxes + candidates[:, 1], positive[:, 0] * boxes + positive[:, 1])
        negative = candidates[~annotated]
        negative = negative[torch.randperm(len(negative), device=self.device)[: len(positive)]]
        pairs = torch.cat([positive, negative])
        targets = torch.cat([torch.ones(len(positive)), torch.zeros(len(negative))]).to(self.device)
        with torch.no_grad():
            features = self.network.pair_features(batch, pairs)
        loss = binary_cross_entropy_with_logits(self.selector(features), targets)
        self.log("loss", loss.detach(), prog_bar=True, batch_size=len(batch.graphs))
        return {"loss": loss}

    def configure_optimizers(self) -> Any:
        """Return the optimiser and its schedule."""
        return build_optimizer(self.selector, int(self.trainer.estimated_stepping_batches), **self._optimizer)


class TripletScoring(RelationScorer):
    """Ranks triplets by eq. (7): log y + log psi_u + log P(X_sel) + log of both detection confidences.

    Args:
        network: The trained triplet network.
        selector: The trained X_sel, or None to leave that factor out.
        log_prior: float64 `[S, P, O]` log psi_u, or None to leave that factor out.
        renormalise_prior: Divide by the pair's sum of y psi_u over all triplets, which the paper does not do.
        labels_from: `joint`: the best triplets of the whole tensor; `detector`: those of the boxes' labels.
        evaluation: Arguments of `RelationScorer`.
    """

    def __init__(
        self,
        network: TripletNetwork,
        selector: PairSelector | None,
        log_prior: Tensor | None,
        renormalise_prior: bool,
        labels_from: str,
        **evaluation: Any,
    ):
        super().__init__(**evaluation)
        if labels_from not in ("joint", "detector"):
            raise ValueError(f"labels_from must be joint or detector, not {labels_from!r}")
        if renormalise_prior and log_prior is None:
            raise ValueError("renormalise_prior needs the prior: set scoring.prior=true")
        self.network, self.selector = network, selector
        self.register_buffer("log_prior", log_prior)
        self.renormalise_prior, self.labels_from = renormalise_prior, labels_from

    def score_pairs(self, batch: RelationBatch, pairs: Tensor) -> Tensor:
        """Return float64 `[P, num_predicates]` log scores with the labels of the boxes."""
        scores, seen = [], self.network.see(batch)
        for chunk in pairs.split(CHUNK):
            s, p, o, features = self.network(batch, chunk, seen)
            subject, obj = (batch.labels[chunk[:, i]] for i in (0, 1))
            log_y = cp_log_slice(s, p, o, subject, obj).double()
            if isinstance(self.log_prior, Tensor):
                log_y = log_y + self.log_prior[subject, :, obj]
            scores.append(log_y + self._pair_terms(batch, chunk, (s, p, o), features)[:, None])
        return torch.cat(scores) if scores else batch.scores.new_zeros(0, max(self.ks), dtype=torch.float64)

    def predict_pairs(self, batch: RelationBatch) -> list[PairPredictions]:
        """Return the best triplets of every candidate pair, one record an image."""
        if self.labels_from == "detector":
            return super().predict_pairs(batch)
        pairs = self.candidate_pairs(batch)
        best: list[tuple[Tensor, Tensor]] = []
        seen = self.network.see(batch)
        for chunk in pairs.split(CHUNK):
            s, p, o, features = self.network(batch, chunk, seen)
            prior = self.log_prior if isinstance(self.log_prior, Tensor) else None
            scores, triplets = cp_topk_triplets(s, p, o, max(self.ks), prior)
            best.append((scores + self._pair_terms(batch, chunk, (s, p, o), features)[:, None], triplets))
        if not best:
            return super().predict_pairs(batch)
        scores, triplets = (torch.cat(part) for part in zip(*best, strict=True))
        return split_by_image(batch, pairs, triplets, scores)

    def _pair_terms(
        self, batch: RelationBatch, pairs: Tensor, logits: tuple[Tensor, Tensor, Tensor], features: Tensor
    ) -> Tensor:
        """Return float64 `[P]`, the terms that all triplets of a pair share."""
        terms = batch.scores[pairs].log().sum(dim=1)
        if self.selector is not None:
            terms = terms + logsigmoid(self.selector(features)).double()
        if self.renormalise_prior:
            assert isinstance(self.log_prior, Tensor)
            terms = terms - cp_log_expectation(*logits, self.log_prior)
        return terms
