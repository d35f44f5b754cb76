"""The three-branch triplet network of vrd_tensor, and the encoder of two rectangle masks it shares with others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from data_modules.scene_graph import RelationBatch
from lit_modules.functional.boxes import union_boxes
from lit_modules.functional.spatial import rectangle_masks
from lit_modules.layers.backbones import RoIAlignStyle, RoIPool, build_body
from lit_modules.layers.pixels import BatchPixels, FrozenBody

SeenImages = tuple[BatchPixels, dict[str, Tensor]]
"""A batch's images and the frozen detector's maps of them."""


class MaskEncoder(nn.Module):
    """Two rectangle masks to one vector: conv 5x5/2, conv 5x5/2, fully connected, each with ReLU (Dai et al. 2017).

    Args:
        size: Cells on each side of a mask.
        channels: Of the two convolutions.
        out_dim: Length of the vector.
    """

    def __init__(self, size: int, channels: Sequence[int], out_dim: int):
        super().__init__()
        first, second = channels
        side = (size + 3) // 4
        self.layers = nn.Sequential(
            nn.Conv2d(2, first, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(first, second, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(second * side * side, out_dim),
            nn.ReLU(),
        )

    def forward(self, masks: Tensor) -> Tensor:
        """Encode float `[P, 2, size, size]` masks as `[P, out_dim]`."""
        encoded: Tensor = self.layers(masks)
        return encoded


class RoIPixels(nn.Module):
    """Pooled boxes, flat, of a detector's frozen body (conv1_1 to conv5_3).

    Args:
        body: Name of the body, see `build_body`.
        body_settings: Its arguments.
        pool_size: Cells on each side of a pooled box.
        sampling_ratio: See `RoIPool`.
        style: See `RoIPool`.
    """

    def __init__(
        self,
        *,
        body: str,
        body_settings: Mapping[str, Any],
        pool_size: int,
        sampling_ratio: int,
        style: RoIAlignStyle = "detectron",
    ):
        super().__init__()
        built = build_body(body, **body_settings)
        self.detector = FrozenBody(built)
        self.pool = RoIPool(built.roi_maps, pool_size, sampling_ratio, style)
        self.dim = built.out_channels * pool_size**2

    def see(self, batch: RelationBatch) -> SeenImages:
        """Return the maps of a batch's images, which all of its boxes share.

        Raises:
            ValueError: The batch has no images.
        """
        pixels = BatchPixels.of(batch)
        return pixels, self.detector(pixels.images)

    def forward(self, seen: SeenImages, boxes_xyxy: Tensor, image: Tensor) -> Tensor:
        """Return `[N, dim]` of annotated boxes `[N, 4]` of images int64 `[N]`."""
        pixels, maps = seen
        return pixels.pooled(self.pool, maps, boxes_xyxy, image).flatten(1)


class TripletNetwork(nn.Module):
    """R logit vectors for each of subject, predicate and object of a pair (Section 3 of vrd_tensor).

    The subject's, the object's and the union box are pooled from the maps of a frozen detector, for the branch of the
    subject, the object and the predicate; the last also sees the two boxes as masks. Without pixels, learned label
    embeddings stand in their places: the subject's, the object's, and both.

    Args:
        num_objects: Object categories.
        num_predicates: Predicates.
        rank: Components R.
        labels: Use label embeddings.
        embedding_dim: Length of a label embedding.
        mask_frame: What the masks show: the `image` or the `union` box.
        mask_size: Cells on each side of a mask.
        mask_channels: Of the mask encoder.
        spatial_dim: Length of the encoded masks.
        hidden_dim: Width of both fully connected layers of each branch.
        dropout: Probability, after both.
        init_std: Standard deviation of the last layers' weights; equal components would stay equal.
        visual: Arguments of `RoIPixels`, or None to leave pixels out.

    Raises:
        ValueError: There is no input, or the masks' frame is unknown.
    """

    def __init__(
        self,
        num_objects: int,
        num_predicates: int,
        *,
        rank: int,
        labels: bool,
        embedding_dim: int,
        mask_frame: str,
        mask_size: int,
        mask_channels: Sequence[int],
        spatial_dim: int,
        hidden_dim: int,
        dropout: float,
        init_std: float,
        visual: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        if mask_frame not in ("image", "union"):
            raise ValueError(f"mask_frame must be image or union, not {mask_frame!r}")
        if not (visual or labels):
            raise ValueError("the triplet network has no input: set model.visual or model.labels to true")
        self.num_objects, self.rank, self.mask_frame, self.mask_size = num_objects, rank, mask_frame, mask_size
        self.pixels = RoIPixels(**visual) if visual else None
        self.subject_embedding = nn.Embedding(num_objects, embedding_dim) if labels else None
        self.object_embedding = nn.Embedding(num_objects, embedding_dim) if labels else None
        self.mask_encoder = MaskEncoder(mask_size, mask_channels, spatial_dim)
        seen_dim = self.pixels.dim if self.pixels else 0
        label_dim = embedding_dim if labels else 0
        self.pair_dim = seen_dim + 2 * label_dim + spatial_dim

        def branch(in_dim: int, classes: int) -> nn.Sequential:
            last = nn.Linear(hidden_dim, rank * classes)
            nn.init.normal_(last.weight, std=init_std)
            nn.init.zeros_(last.bias)
            hidden = [nn.Linear(in_dim, hidden_dim), nn.ReLU(), nn.Dropout(dropout)]
            hidden += [nn.Linear(hidden_dim, hidden_dim), nn.ReLU(), nn.Dropout(dropout)]
            return nn.Sequential(*hidden, last)

        self.subject_branch = branch(seen_dim + label_dim, num_objects)
        self.predicate_branch = branch(self.pair_dim, num_predicates)
        self.object_branch = branch(seen_dim + label_dim, num_objects)

    def start_from(self, body: Mapping[str, Tensor], head: Mapping[str, Tensor]) -> None:
        """Copy a detector's body, and fc6 and fc7 of its RoI head into the subject's and the object's branch.

        Args:
            body: State of its body.
            head: State of its RoI head; layers of other widths than the branches' are an error.
        """
        assert self.pixels is not None
        self.pixels.detector.body.load_state_dict(body)
        for branch in (self.subject_branch, self.object_branch):
            for position, name in ((0, "fc6"), (3, "fc7")):
                branch[position].load_state_dict({part: head[f"{name}.{part}"] for part in ("weight", "bias")})

    def see(self, batch: RelationBatch) -> SeenImages | None:
        """Return what all pairs of a batch share, to be given to `forward`; None without pixels."""
        return None if self.pixels is None else self.pixels.see(batch)

    def pair_features(self, batch: RelationBatch, pairs: Tensor, seen: SeenImages | None = None) -> Tensor:
        """Return `[P, pair_dim]`: the pooled union box, both label embeddings and the encoded masks of box pairs."""
        subject, obj = pairs.unbind(dim=1)
        image = batch.image_index[subject]
        subject_xyxy, object_xyxy = batch.boxes_xyxy[subject], batch.boxes_xyxy[obj]
        union_xyxy = union_boxes(subject_xyxy, object_xyxy)
        if self.mask_frame == "union":
            frame_xyxy = union_xyxy
        else:
            far = batch.sizes_wh[image]  # pixels count from 1
            frame_xyxy = torch.cat([torch.ones_like(far), far], dim=1)
        masks = rectangle_masks(subject_xyxy, object_xyxy, frame_xyxy, self.mask_size)
        parts = []
        if self.pixels is not None:
            parts.append(self.pixels(seen or self.pixels.see(batch), union_xyxy, image))
        for embedding, end in ((self.subject_embedding, subject), (self.object_embedding, obj)):
            if embedding is not None:
                parts.append(embedding(batch.labels[end]))
        dtype = next(self.mask_encoder.parameters()).dtype
        return torch.cat([*parts, self.mask_encoder(masks.to(dtype))], dim=1)

    def forward(
        self, batch: RelationBatch, pairs: Tensor, seen: SeenImages | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return logits `[P, R, S]`, `[P, R, P']`, `[P, R, O]` of int64 `[P, 2]` pairs, and their features.

        Args:
            batch: Images and boxes.
            pairs: Boxes of the batch.
            seen: What `see` returned for this batch; None sees it now.
        """
        seen = seen or self.see(batch)
        subject, obj = pairs.unbind(dim=1)
        features = self.pair_features(batch, pairs, seen)
        logits = (
            self._entity(self.subject_branch, self.subject_embedding, batch, subject, seen),
            self.predicate_branch(features),
            self._entity(self.object_branch, self.object_embedding, batch, obj, seen),
        )
        s, p, o = (x.unflatten(1, (self.rank, -1)) for x in logits)
        return s, p, o, features

    def _entity(
        self,
        branch: nn.Sequential,
        embedding: nn.Embedding | None,
        batch: RelationBatch,
        end: Tensor,
        seen: SeenImages | None,
    ) -> Tensor:
        """Return a branch's logits `[P, R * classes]` of boxes int64 `[P]`."""
        boxes, of_pair = end.unique(return_inverse=True) if self.pixels else (end, None)  # pooled once
        parts = []
        if self.pixels is not None and seen is not None:
            parts.append(self.pixels(seen, batch.boxes_xyxy[boxes], batch.image_index[boxes]))
        if embedding is not None:
            parts.append(embedding(batch.labels[boxes]))
        logits: Tensor = branch(torch.cat(parts, dim=1))
        return logits if of_pair is None else logits[of_pair]
