"""VTransE: a predicate is a translation from the subject's to the object's embedding (Zhang et al., CVPR 2017)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from data_modules.scene_graph import RelationBatch
from lit_modules.functional.boxes import box_deltas
from lit_modules.layers.backbones import build_body, build_roi_head
from lit_modules.layers.pixels import BatchPixels, FrozenBody

SeenBoxes = tuple[BatchPixels, dict[str, Tensor]]
"""A batch's images and the frozen detector's maps of them."""


class VTransEVisual(nn.Module):
    """Features of boxes from a frozen detector's maps, by a trained RoI head that subjects and objects share.

    Args:
        body: Name of the body, see `build_body`.
        body_settings: Its arguments.
        head: Name of the RoI head, see `build_roi_head`.
        head_settings: Its arguments.
    """

    def __init__(self, body: str, body_settings: Mapping[str, Any], head: str, head_settings: Mapping[str, Any]):
        super().__init__()
        built = build_body(body, **body_settings)
        self.detector = FrozenBody(built)
        self.head = build_roi_head(head, built, **head_settings)
        self.out_dim = self.head.out_dim

    def start_from(self, body: Mapping[str, Tensor], head: Mapping[str, Tensor]) -> None:
        """Copy the states of a detector's body and RoI head."""
        self.detector.body.load_state_dict(body)
        self.head.load_state_dict(head)

    def see(self, batch: RelationBatch) -> SeenBoxes:
        """Return the maps of a batch's images.

        Raises:
            ValueError: The batch has no images.
        """
        pixels = BatchPixels.of(batch)
        return pixels, self.detector(pixels.images)

    def forward(self, batch: RelationBatch, boxes: Tensor, seen: SeenBoxes) -> Tensor:
        """Return features `[B, out_dim]` of int64 `[B]` boxes of the batch."""
        pixels, maps = seen
        return pixels.pooled(self.head, maps, batch.boxes_xyxy[boxes], batch.image_index[boxes])


class VTransENetwork(nn.Module):
    """Logits t_p . (W_o x_o - W_s x_s) of every predicate; there is no "no relation" (eqs. 1 and 2).

    The feature x of a box joins its category as one of `num_objects` (the detector's probabilities stand there in the
    paper), where it lies beside the pair's other box, and what its pixels show; each entry has a learned scale.

    Args:
        num_objects: Categories of boxes.
        num_predicates: Predicates.
        embedding_dim: Numbers that a translation has.
        visual: Arguments of `VTransEVisual`, or None to leave the pixels out.
    """

    def __init__(
        self, num_objects: int, num_predicates: int, embedding_dim: int, visual: Mapping[str, Any] | None = None
    ):
        super().__init__()
        self.num_objects = num_objects
        self.visual = VTransEVisual(**visual) if visual else None
        features = num_objects + 4 + (self.visual.out_dim if self.visual else 0)
        self.scale = nn.Parameter(torch.ones(features))
        self.subject = nn.Linear(features, embedding_dim, bias=False)
        self.object = nn.Linear(features, embedding_dim, bias=False)
        self.predicate = nn.Linear(embedding_dim, num_predicates, bias=False)

    def see(self, batch: RelationBatch) -> SeenBoxes | None:
        """Return what all pairs of a batch share, to be given to `forward`; None without pixels."""
        return None if self.visual is None else self.visual.see(batch)

    def forward(self, batch: RelationBatch, pairs: Tensor, seen: SeenBoxes | None = None) -> Tensor:
        """Return logits `[P, num_predicates]` of int64 `[P, 2]` box pairs; `seen` saves looking again."""
        subject, obj = pairs.unbind(dim=1)
        seen = seen or self.see(batch)
        translation = self.object(self._features(batch, obj, subject, seen))
        translation = translation - self.subject(self._features(batch, subject, obj, seen))
        logits: Tensor = self.predicate(translation)
        return logits

    def _features(self, batch: RelationBatch, boxes: Tensor, others: Tensor, seen: SeenBoxes | None) -> Tensor:
        """Return `[P, F]` of one end of each pair; its place is the move from the other box onto it."""
        category = nn.functional.one_hot(batch.labels[boxes], self.num_objects).to(self.scale.dtype)
        place = box_deltas(batch.boxes_xyxy[others], batch.boxes_xyxy[boxes]).to(self.scale.dtype)
        parts = [category, place]
        if self.visual is not None and seen is not None:
            once, of_pair = boxes.unique(return_inverse=True)  # a box in many pairs is pooled once
            parts.append(self.visual(batch, once, seen)[of_pair])
        return torch.cat(parts, dim=1) * self.scale
