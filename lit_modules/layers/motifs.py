"""Neural Motifs (Zellers et al. 2018) on given features: object context, decoder, edge context, pairs (lml, Section 3).

The network neither pools features nor computes losses: it gets the features of boxes and of pairs' unions and returns
logits. Boxes are pixels of the network's input whose last row and column belong to the box, as in the official code.
Labels are 0-based categories; background is column 0 of logits and of embeddings, and "no relation" that of predicates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from lit_modules.functional.rectangles import union_rectangles
from lit_modules.layers.highway_lstm import AlternatingHighwayLSTM, Packing
from lit_modules.layers.motifs_decoder import LabelDecoder, separately_suppressed_labels, suppressed_labels

Mode = Literal["predcls", "sgcls", "sgdet"]
Order = Literal["leftright", "size", "confidence", "random"]
POSITION_DIM = 128
KNOWN = 1000.0  # logit of a known label; all others get its negative


@dataclass(frozen=True)
class MotifsOutput:
    """What the network says about a batch.

    Attributes:
        object_logits: float `[N, C + 1]`.
        labels: int64 `[N]`, 0-based: given, passed on by the decoder, or, in SGDet's tests, after suppression.
        predicate_logits: float `[E, P + 1]`.
    """

    object_logits: Tensor
    labels: Tensor
    predicate_logits: Tensor


class UnionMasks(nn.Module):
    """Where subject and object lie in their union, as a map that is added to the union's pooled features.

    Args:
        channels: Of the pooled features.
        size: Cells on each side of these.
    """

    def __init__(self, channels: int = 512, size: int = 7):
        super().__init__()
        self.drawn_size = 4 * size - 1
        self.conv = nn.Sequential(
            nn.Conv2d(2, channels // 2, 7, stride=2, padding=3),
            nn.ReLU(),
            nn.BatchNorm2d(channels // 2, momentum=0.01),
            nn.MaxPool2d(3, stride=2, padding=1),
            nn.Conv2d(channels // 2, channels, 3, padding=1),
            nn.ReLU(),
            nn.BatchNorm2d(channels, momentum=0.01),
        )

    def forward(self, subjects_xyxy: Tensor, objects_xyxy: Tensor) -> Tensor:
        """Return `[E, channels, size, size]` of boxes `[E, 4]`."""
        masks: Tensor = self.conv(union_rectangles(subjects_xyxy, objects_xyxy, self.drawn_size) - 0.5)
        return masks


class MotifsContext(nn.Module):
    """Objects in the context of all others of their image, and their labels (`LinearizedContext`).

    Args:
        feature_dim: Length of a box's features; 0 for none.
        object_embeddings: float `[C + 1, W]`, initial word vectors of background and every category.
        decoder_embeddings: float `[C + 2, V]`, likewise for the start of an image, background and every category.
        hidden_dim: Length H of contexts.
        object_layers: Of the object context; 0 for none, then labels are classified one by one (NoContext).
        edge_layers: Of the edge context; 0 for none.
        dropout: Of the recurrent layers.
        order: Of an image's objects: `leftright` (the rightmost first, as in the official code), `size` (the largest
            first), `confidence` or `random`.

    Raises:
        ValueError: The order is unknown, the embeddings don't fit, or there is an edge context without object context.
    """

    def __init__(
        self,
        feature_dim: int,
        object_embeddings: Tensor,
        decoder_embeddings: Tensor,
        hidden_dim: int,
        object_layers: int,
        edge_layers: int,
        dropout: float,
        order: Order,
    ):
        super().__init__()
        if order not in get_args(Order):
            raise ValueError(f"order must be one of {get_args(Order)}, got {order!r}")
        if len(decoder_embeddings) != len(object_embeddings) + 1:
            counts = f"{len(object_embeddings)} and {len(decoder_embeddings)}"
            raise ValueError(f"embeddings of objects and decoder must have C + 1 and C + 2 rows, got {counts}")
        if edge_layers and not object_layers:
            raise ValueError("edge_layers > 0 needs object_layers > 0: the edge context runs over the object context")
        columns, word_dim = object_embeddings.shape
        self.order: Order = order
        tables = (object_embeddings.detach().float().clone() for _ in range(2))
        self.object_embedding, self.edge_embedding = (nn.Embedding.from_pretrained(t, freeze=False) for t in tables)
        self.position = nn.Sequential(
            nn.BatchNorm1d(4, momentum=0.001), nn.Linear(4, POSITION_DIM), nn.ReLU(), nn.Dropout(0.1)
        )
        dim = feature_dim + word_dim + POSITION_DIM
        self.object_lstm = self.edge_lstm = self.decoder = self.classifier = None
        if object_layers:
            self.object_lstm = AlternatingHighwayLSTM(dim, hidden_dim, object_layers, dropout)
            self.decoder = LabelDecoder(hidden_dim, hidden_dim, decoder_embeddings, dropout)
        else:
            self.classifier = nn.Linear(dim, columns)
        if edge_layers:
            self.edge_lstm = AlternatingHighwayLSTM(word_dim + hidden_dim, hidden_dim, edge_layers, dropout)

    def forward(
        self,
        features: Tensor,
        detector_logits: Tensor,
        boxes_xyxy: Tensor,
        image_index: Tensor,
        labels: Tensor | None,
        known: bool,
        class_boxes_xyxy: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Label the objects and compute their contexts.

        Args:
            features: `[N, feature_dim]`.
            detector_logits: `[N, C + 1]`; no gradient goes back.
            boxes_xyxy: `[N, 4]`.
            image_index: int64 `[N]`.
            labels: int64 `[N]`, -1 for background, or None.
            known: The labels are the truth (PredCls). If not, they only guide the decoder (training).
            class_boxes_xyxy: `[N, C, 4]`, for suppression in tests; None for none.

        Returns:
            Object logits `[N, C + 1]`, labels int64 `[N]` and edge context `[N, H]` (None without edge layers).
        """
        probabilities = detector_logits.detach().softmax(dim=1)
        sides = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2] + 1
        position = self.position(torch.cat([boxes_xyxy[:, :2] + 0.5 * sides, sides], dim=1))
        objects = torch.cat([features, probabilities @ self.object_embedding.weight, position], dim=1)
        packing = self._pack(image_index, boxes_xyxy, probabilities[:, 1:].amax(dim=1))
        context = self.object_lstm(objects[packing.rows], packing) if self.object_lstm is not None else None
        if known:
            assert labels is not None
            logits = detector_logits.new_full(detector_logits.shape, -KNOWN).scatter(1, labels[:, None] + 1, KNOWN)
        elif self.decoder is not None:
            guide = None if labels is None else labels[packing.rows]
            logits, passed = (out[packing.places] for out in self.decoder(context, packing, guide))
        else:
            assert self.classifier is not None
            logits = self.classifier(objects)
            best = logits[:, 1:].argmax(dim=1)
            passed = best if labels is None else torch.where(labels >= 0, labels, best)
        if known:
            assert labels is not None
            passed = labels
        elif class_boxes_xyxy is not None and not self.training:
            suppress = suppressed_labels if self.decoder is not None else separately_suppressed_labels
            passed = suppress(logits, class_boxes_xyxy, image_index)
        if self.edge_lstm is None or context is None:
            return logits, passed, None
        edges = torch.cat([self.edge_embedding(passed + 1), context[packing.places]], dim=1)
        confidence = logits.detach().softmax(dim=1).gather(1, passed[:, None] + 1)[:, 0]
        packing = self._pack(image_index, boxes_xyxy, confidence)
        return logits, passed, self.edge_lstm(edges[packing.rows], packing)[packing.places]

    def _pack(self, image_index: Tensor, boxes_xyxy: Tensor, confidence: Tensor) -> Packing:
        sides = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2] + 1
        if self.order == "leftright":
            key = boxes_xyxy[:, 0] + 0.5 * sides[:, 0]
        elif self.order == "size":
            key = sides.prod(dim=1)
        elif self.order == "confidence":
            key = confidence
        else:
            key = torch.rand_like(confidence)
        return Packing.by_key(image_index, key)


class MotifsNetwork(nn.Module):
    """Logits of objects and of pairs' predicates (`RelModel` without its detector).

    Args:
        num_predicates: P.
        feature_dim: Length of a box's features; 0 for none.
        union_dim: Length of a union's features, and of the product of subject and object that they are multiplied with.
        object_embeddings: float `[C + 1, W]`, initial word vectors of background and every category (GloVe, 200).
        decoder_embeddings: float `[C + 2, V]`, likewise with the start of an image before them (GloVe, 100).
        frequency_bias: float `[C, C, P + 1]`, initial logits by subject and object category, see
            `functional.frequency.frequency_bias`; None for none.
        mode: `predcls` (labels known), `sgcls` (boxes known) or `sgdet`. It may be changed later.
        hidden_dim: Length of contexts.
        object_layers: See `MotifsContext`.
        edge_layers: See `MotifsContext`. Without, a learned vector of its label stands for an object.
        dropout: See `MotifsContext`.
        order: See `MotifsContext`.

    Raises:
        ValueError: Mode or order are unknown, or the tables don't fit.
    """

    def __init__(
        self,
        num_predicates: int,
        feature_dim: int,
        union_dim: int,
        object_embeddings: Tensor,
        decoder_embeddings: Tensor,
        frequency_bias: Tensor | None,
        mode: Mode = "predcls",
        hidden_dim: int = 512,
        object_layers: int = 2,
        edge_layers: int = 4,
        dropout: float = 0.1,
        order: Order = "leftright",
    ):
        super().__init__()
        self.num_objects = len(object_embeddings) - 1
        shape = (self.num_objects, self.num_objects, num_predicates + 1)
        if frequency_bias is not None and frequency_bias.shape != shape:
            raise ValueError(f"frequency_bias must have shape {list(shape)}, got {list(frequency_bias.shape)}")
        self.mode: Mode = _checked_mode(mode)
        self.context = MotifsContext(
            feature_dim, object_embeddings, decoder_embeddings, hidden_dim, object_layers, edge_layers, dropout, order
        )
        self.edge_ends: nn.Linear | nn.Embedding
        if edge_layers:
            self.edge_ends = nn.Linear(hidden_dim, 2 * union_dim)
            nn.init.normal_(self.edge_ends.weight, std=10 * math.sqrt(1 / hidden_dim))
            nn.init.zeros_(self.edge_ends.bias)
        else:
            self.edge_ends = nn.Embedding(self.num_objects + 1, 2 * union_dim)
        self.predicates = nn.Linear(union_dim, num_predicates + 1)
        nn.init.xavier_normal_(self.predicates.weight)
        self.frequency = None
        if frequency_bias is not None:
            table = frequency_bias.float().flatten(0, 1).clone()
            self.frequency = nn.Embedding.from_pretrained(table, freeze=False)

    def forward(
        self,
        features: Tensor,
        detector_logits: Tensor,
        boxes_xyxy: Tensor,
        image_index: Tensor,
        pairs: Tensor,
        union_features: Tensor | None = None,
        labels: Tensor | None = None,
        class_boxes_xyxy: Tensor | None = None,
    ) -> MotifsOutput:
        """Classify a batch's objects and pairs.

        Args:
            features: float `[N, feature_dim]`, of the boxes.
            detector_logits: float `[N, C + 1]`, the detector's for these boxes, also where labels are known.
            boxes_xyxy: float `[N, 4]`.
            image_index: int64 `[N]`, the image of each box, in any order.
            pairs: int64 `[E, 2]`, subject and object among the N boxes.
            union_features: float `[E, union_dim]`, of the pairs' union boxes; None for none.
            labels: int64 `[N]`, 0-based, -1 for background. Needed in PredCls; in the other modes they guide the
                decoder in training, and must not be given in tests.
            class_boxes_xyxy: float `[N, C, 4]`, in SGDet's tests: each object's regressed box for each category.

        Raises:
            ValueError: Labels are missing, unknown in PredCls, or given where they would be looked up.
        """
        known = _checked_mode(self.mode) == "predcls"
        if known and (labels is None or bool((labels < 0).any())):
            raise ValueError("mode predcls needs the label of every box, from 0 on")
        if not known and labels is not None and not self.training:
            raise ValueError(f"mode {self.mode} must not see labels in tests: give None")
        logits, found, context = self.context(
            features, detector_logits, boxes_xyxy, image_index, labels, known, class_boxes_xyxy
        )
        ends = self.edge_ends(found + 1 if context is None else context).unflatten(1, (2, -1))
        subject, obj = pairs.unbind(dim=1)
        pair = ends[subject, 0] * ends[obj, 1]
        if union_features is not None:
            pair = pair * union_features
        predicate_logits = self.predicates(pair)
        if self.frequency is not None:
            predicate_logits = predicate_logits + self.frequency(found[subject] * self.num_objects + found[obj])
        return MotifsOutput(logits, found, predicate_logits)


def _checked_mode(mode: Mode) -> Mode:
    if mode not in get_args(Mode):
        raise ValueError(f"mode must be one of {get_args(Mode)}, got {mode!r}")
    return mode
