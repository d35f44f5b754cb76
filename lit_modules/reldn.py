"""RelDN with graphical contrastive losses (Zhang et al., CVPR 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from data_modules.scene_graph import RelationBatch
from lit_modules.functional.contrastive import ContrastiveLosses, Reduction, anchored_contrastive_losses
from lit_modules.layers.faster_rcnn import FasterRCNN
from lit_modules.layers.reldn import RelDNNetwork
from lit_modules.layers.reldn_visual import PREDICATE_BACKBONE
from lit_modules.optimizers import build_optimizer
from lit_modules.pair_sampling import LabelledPairs, label_pairs, sample_pairs
from lit_modules.proposer import Proposer
from lit_modules.relation_scorer import RelationScorer
from lit_modules.training_boxes import add_foreground

CHUNK = 1024  # pairs scored at a time: bounds the memory of pooled boxes


class RelDNTraining(pl.LightningModule):
    """Trains on L = L0 + w1 L1 + w2 L2 + w3 L3 (eq. 8); each loss is an image's, averaged over the batch.

    Args:
        network: Arguments of `RelDNNetwork`.
        candidates: See `label_pairs`.
        max_pairs: Pairs an image for the cross-entropy L0.
        max_positive_pairs: How many of them are related, at most.
        contrastive_positive_pairs: Related pairs an image and side for L1 to L3, at most.
        contrastive_negative_pairs: Unrelated ones, likewise.
        weights: Of L1, L2, L3; where all are 0, none is computed.
        margin: alpha_1 = alpha_2 = alpha_3.
        reduction: `official` or `paper`, see `functional.contrastive`.
        optimizer: Arguments of `build_optimizer`; the rate of `PREDICATE_BACKBONE` has its own factor.
        start: State of a detector's body and of its RoI head, which the visual module starts from.
        detector: Proposes boxes beside the annotated ones: a trained Faster R-CNN with the visual module's frozen body.
            It isn't trained, and no checkpoint holds it.
        max_boxes: Annotated and proposed boxes of an image, then.
    """

    def __init__(
        self,
        network: Mapping[str, Any],
        *,
        candidates: str,
        max_pairs: int,
        max_positive_pairs: int,
        contrastive_positive_pairs: int,
        contrastive_negative_pairs: int,
        weights: tuple[float, float, float],
        margin: float,
        reduction: Reduction,
        optimizer: Mapping[str, Any],
        start: tuple[Mapping[str, Tensor], Mapping[str, Tensor]] | None = None,
        detector: FasterRCNN | None = None,
        max_boxes: int = 128,
    ):
        super().__init__()
        self.network = RelDNNetwork(**network)
        if start is not None:
            assert self.network.visual is not None
            self.network.visual.start_from(*start)
        self._proposer = Proposer(detector) if detector else None
        self._max_boxes = max_boxes
        self._candidates = candidates
        self._quota = (max_pairs, max_positive_pairs)
        self._contrastive_quota = (
            contrastive_positive_pairs + contrastive_negative_pairs,
            contrastive_positive_pairs,
            contrastive_negative_pairs,
        )
        self._weights, self._margin, self._reduction = weights, margin, reduction
        self._optimizer = optimizer

    def training_step(self, batch: RelationBatch, batch_idx: int) -> dict[str, Tensor]:
        """Return the total loss of one batch of images, and its parts."""
        seen = self.network.see(batch)
        is_annotated = None
        if self._proposer and seen is not None:
            proposals = self._proposer.propose(batch, seen[0], seen[1], self.network.num_objects)
            batch, is_annotated = add_foreground(batch, proposals, self._max_boxes)
        labelled = label_pairs(batch, self._candidates, is_annotated)
        logits = self.network(batch, labelled.pairs, seen)
        classified = sample_pairs(labelled, *self._quota)
        images = len(batch.graphs)
        parts = {"cross_entropy": cross_entropy_per_image(logits[classified], labelled.take(classified), images)}
        if any(self._weights):
            parts |= self._contrastive(batch, labelled, logits)._asdict()
        weights = dict(zip(ContrastiveLosses._fields, self._weights, strict=True))
        loss = torch.stack([parts[k] * weights.get(k, 1.0) for k in parts]).sum()
        self.log("loss", loss.detach(), prog_bar=True, batch_size=images)
        return {"loss": loss, **{key: value.detach() for key, value in parts.items()}}

    def _contrastive(self, batch: RelationBatch, labelled: LabelledPairs, logits: Tensor) -> ContrastiveLosses:
        """Return L1 to L3, each side on its own sample, as the official code draws them."""
        sides = []
        for anchor, partner in ((0, 1), (1, 0)):
            sampled = sample_pairs(labelled, *self._contrastive_quota)
            pairs, predicates, image = labelled.take(sampled)
            sides.append(
                anchored_contrastive_losses(
                    logits[sampled],
                    predicates,
                    pairs[:, anchor],
                    batch.labels[pairs[:, partner]],
                    (self._margin, self._margin, self._margin),
                    self._reduction,
                    image=image,
                    num_images=len(batch.graphs),
                )
            )
        return ContrastiveLosses(*(s + o for s, o in zip(*sides, strict=True)))

    def configure_optimizers(self) -> Any:
        """Return the optimiser and its schedule."""
        steps = int(self.trainer.estimated_stepping_batches)
        return build_optimizer(self, steps, backbone=PREDICATE_BACKBONE, **self._optimizer)


def cross_entropy_per_image(logits: Tensor, labelled: LabelledPairs, num_images: int) -> Tensor:
    """Mean cross-entropy of each image's pairs, averaged over the images (L0 with one image a device).

    Args:
        logits: `[Q, num_predicates + 1]`.
        labelled: The Q pairs.
        num_images: Images of the batch; one without pairs counts as 0.
    """
    losses = cross_entropy(logits, labelled.predicates, reduction="none")
    counts = torch.bincount(labelled.image, minlength=num_images)
    return (losses / counts[labelled.image]).sum() / num_images


def resized_sides(sizes_wh: Tensor, short: float = 800.0, longest: float = 1333.0) -> Tensor:
    """Return the sides `[B, 2]` of images resized to a short side of 800 pixels, or a long one of 1333 if less."""
    scale = torch.minimum(short / sizes_wh.amin(dim=1), longest / sizes_wh.amax(dim=1))
    return sizes_wh * scale[:, None]


class RelDNScoring(RelationScorer):
    """Ranks triplets by p_det(s) p(predicate) p_det(o); "no relation" is left out, not renormalised.

    Args:
        network: The trained network.
        test_box_normalisation: What the spatial features divide box coordinates by: the sides of the `original` image,
            or, as the official test code does with boxes in original pixels, those of the `resized` one.
        evaluation: Arguments of `RelationScorer`.
    """

    def __init__(self, network: RelDNNetwork, test_box_normalisation: str, **evaluation: Any):
        super().__init__(**evaluation)
        if test_box_normalisation not in ("original", "resized"):
            raise ValueError(f"test_box_normalisation must be original or resized, not {test_box_normalisation!r}")
        self.network = network
        self._resized = test_box_normalisation == "resized"

    def score_pairs(self, batch: RelationBatch, pairs: Tensor) -> Tensor:
        """Return float64 `[P, num_predicates]` probabilities times both confidences."""
        if self._resized:
            batch = replace(batch, sizes_wh=resized_sides(batch.sizes_wh))
        seen = self.network.see(batch)
        logits = torch.cat([self.network(batch, chunk, seen) for chunk in pairs.split(CHUNK)])
        return logits.double().softmax(dim=1)[:, 1:] * batch.scores[pairs].prod(dim=1, keepdim=True)
