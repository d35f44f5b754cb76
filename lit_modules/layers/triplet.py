"""The three-branch triplet network of vrd_tensor, and the encoder of two rectangle masks it shares with others."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from data_modules.scene_graph import RelationBatch
from lit_modules.functional.boxes import union_boxes
from lit_modules.functional.spatial import rectangle_masks


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


class TripletNetwork(nn.Module):
    """R logit vectors for each of subject, predicate and object of a pair (Section 3 of vrd_tensor).

    Without pixels, learned label embeddings stand where the paper has RoI-aligned features: the subject's for the
    subject branch, the object's for the object branch, both for the predicate branch, which also sees the masks.

    Args:
        num_objects: Object categories.
        num_predicates: Predicates.
        rank: Components R.
        embedding_dim: Length of a label embedding.
        mask_frame: What the masks show: the `image` or the `union` box.
        mask_size: Cells on each side of a mask.
        mask_channels: Of the mask encoder.
        spatial_dim: Length of the encoded masks.
        hidden_dim: Width of both fully connected layers of each branch.
        dropout: Probability, after both.
        init_std: Standard deviation of the last layers' weights; equal components would stay equal.
    """

    def __init__(
        self,
        num_objects: int,
        num_predicates: int,
        *,
        rank: int,
        embedding_dim: int,
        mask_frame: str,
        mask_size: int,
        mask_channels: Sequence[int],
        spatial_dim: int,
        hidden_dim: int,
        dropout: float,
        init_std: float,
    ):
        super().__init__()
        if mask_frame not in ("image", "union"):
            raise ValueError(f"mask_frame must be image or union, not {mask_frame!r}")
        self.rank, self.mask_frame, self.mask_size = rank, mask_frame, mask_size
        self.subject_embedding = nn.Embedding(num_objects, embedding_dim)
        self.object_embedding = nn.Embedding(num_objects, embedding_dim)
        self.mask_encoder = MaskEncoder(mask_size, mask_channels, spatial_dim)
        self.pair_dim = 2 * embedding_dim + spatial_dim

        def branch(in_dim: int, labels: int) -> nn.Sequential:
            last = nn.Linear(hidden_dim, rank * labels)
            nn.init.normal_(last.weight, std=init_std)
            nn.init.zeros_(last.bias)
            hidden = [nn.Linear(in_dim, hidden_dim), nn.ReLU(), nn.Dropout(dropout)]
            hidden += [nn.Linear(hidden_dim, hidden_dim), nn.ReLU(), nn.Dropout(dropout)]
            return nn.Sequential(*hidden, last)

        self.subject_branch = branch(embedding_dim, num_objects)
        self.predicate_branch = branch(self.pair_dim, num_predicates)
        self.object_branch = branch(embedding_dim, num_objects)

    def pair_features(self, batch: RelationBatch, pairs: Tensor) -> Tensor:
        """Return `[P, pair_dim]`: both label embeddings and the encoded masks of int64 `[P, 2]` box pairs."""
        subject, obj = pairs.unbind(dim=1)
        subject_xyxy, object_xyxy = batch.boxes_xyxy[subject], batch.boxes_xyxy[obj]
        if self.mask_frame == "union":
            frame_xyxy = union_boxes(subject_xyxy, object_xyxy)
        else:
            far = batch.sizes_wh[batch.image_index[subject]]  # pixels count from 1
            frame_xyxy = torch.cat([torch.ones_like(far), far], dim=1)
        masks = rectangle_masks(subject_xyxy, object_xyxy, frame_xyxy, self.mask_size)
        dtype = self.subject_embedding.weight.dtype
        labels = [self.subject_embedding(batch.labels[subject]), self.object_embedding(batch.labels[obj])]
        return torch.cat([*labels, self.mask_encoder(masks.to(dtype))], dim=1)

    def forward(self, batch: RelationBatch, pairs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return logits `[P, R, S]`, `[P, R, P']`, `[P, R, O]` of int64 `[P, 2]` pairs, and their features."""
        subject, obj = pairs.unbind(dim=1)
        features = self.pair_features(batch, pairs)
        logits = (
            self.subject_branch(self.subject_embedding(batch.labels[subject])),
            self.predicate_branch(features),
            self.object_branch(self.object_embedding(batch.labels[obj])),
        )
        s, p, o = (x.unflatten(1, (self.rank, -1)) for x in logits)
        return s, p, o, features
