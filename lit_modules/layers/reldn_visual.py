"""RelDN's visual module: subject, object and predicate features and their skip connections."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from data_modules.scene_graph import RelationBatch
from lit_modules.functional.boxes import union_boxes
from lit_modules.layers.backbones import build_body, build_roi_head
from lit_modules.layers.pixels import BatchPixels, FrozenBody

PREDICATE_BACKBONE = ("relation_body", "relation_head")
"""Modules that the paper fine-tunes at a tenth of the rate: the copy of the detector that sees the union boxes."""


SeenImages = tuple[BatchPixels, dict[str, Tensor], dict[str, Tensor]]
"""A batch's images, the frozen detector's maps of them and the relation body's."""


class RelDNVisual(nn.Module):
    """Logits of "no relation" and every predicate from pixels (Section 4; `conv_body_det`, `conv_body_rel`).

    The subject's and the object's box are pooled from the maps of the frozen detector, by a head each; the union box
    from the maps of a second body. Their features, joined, pass two hidden layers, and the subject's and the object's
    alone one linear layer each (skip connections).

    Args:
        columns: Predicates and "no relation".
        body: Name of the body, see `build_body`.
        body_settings: Its arguments; `frozen_stages` concerns the second body alone.
        head: Name of the three RoI heads, see `build_roi_head`; the last ReLU and dropout are left out (NO_FC7_RELU).
        head_settings: Their arguments.
        skips: Use the skip connections.
    """

    def __init__(
        self,
        columns: int,
        *,
        body: str,
        body_settings: Mapping[str, Any],
        head: str,
        head_settings: Mapping[str, Any],
        skips: bool = True,
    ):
        super().__init__()
        self.detector = FrozenBody(build_body(body, **body_settings))
        self.relation_body = build_body(body, **body_settings)
        heads = [build_roi_head(head, self.relation_body, last_relu=False, **head_settings) for _ in range(3)]
        self.subject_head, self.object_head, self.relation_head = heads
        dim = self.relation_head.out_dim
        self.fusion = nn.Sequential(
            nn.Linear(3 * dim, 3 * dim // 2),
            nn.LeakyReLU(0.1),
            nn.Linear(3 * dim // 2, dim),
            nn.LeakyReLU(0.1),
            nn.Linear(dim, columns),
        )
        self.subject_skip = nn.Linear(dim, columns) if skips else None
        self.object_skip = nn.Linear(dim, columns) if skips else None
        for layer in (*self.fusion, self.subject_skip, self.object_skip):
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)

    def start_from(self, body: Mapping[str, Tensor], head: Mapping[str, Tensor]) -> None:
        """Copy a detector's body into both bodies and its RoI head into all three heads.

        Args:
            body: State of its body.
            head: State of its RoI head.
        """
        for copy in (self.detector.body, self.relation_body):
            copy.load_state_dict(body)
        for head_copy in (self.subject_head, self.object_head, self.relation_head):
            head_copy.load_state_dict(head)

    def see(self, batch: RelationBatch) -> SeenImages:
        """Return the maps of a batch's images, which all of its pairs share.

        Raises:
            ValueError: The batch has no images.
        """
        pixels = BatchPixels.of(batch)
        return pixels, self.detector(pixels.images), self.relation_body(pixels.images)

    def forward(self, batch: RelationBatch, pairs: Tensor, seen: SeenImages | None = None) -> Tensor:
        """Return logits `[P, columns]` of int64 `[P, 2]` box pairs.

        Args:
            batch: Images and boxes.
            pairs: Boxes of the batch.
            seen: What `see` returned for this batch; None sees it now.
        """
        pixels, detected, related = seen or self.see(batch)
        features = []
        for head, end in ((self.subject_head, pairs[:, 0]), (self.object_head, pairs[:, 1])):
            boxes, of_pair = end.unique(return_inverse=True)  # a box in many pairs is pooled once
            pooled = pixels.pooled(head, detected, batch.boxes_xyxy[boxes], batch.image_index[boxes])
            features.append(pooled[of_pair])
        subject, obj = features
        unions = union_boxes(*(batch.boxes_xyxy[end] for end in pairs.unbind(dim=1)))
        relation = pixels.pooled(self.relation_head, related, unions, batch.image_index[pairs[:, 0]])
        logits: Tensor = self.fusion(torch.cat([subject, relation, obj], dim=1))
        for skip, end in ((self.subject_skip, subject), (self.object_skip, obj)):
            logits = logits if skip is None else logits + skip(end)
        return logits
