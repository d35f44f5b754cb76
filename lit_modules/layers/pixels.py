"""From a batch of images of different sizes and pixel boxes to a body's maps and a RoI head's features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from data_modules.scene_graph import ImageRelationBatch, RelationBatch
from lit_modules.layers.backbones import Body, pad_images, to_edges


@dataclass(frozen=True)
class BatchPixels:
    """The images of a batch as a body takes them, and where its boxes lie in them.

    Attributes:
        images: float `[B, 3, H, W]`, padded right and below.
        scales_xy: `[B, 2]`, pixels of the network's input over annotated ones.
    """

    images: Tensor
    scales_xy: Tensor

    @classmethod
    def of(cls, batch: RelationBatch) -> BatchPixels:
        """Pad a batch's images.

        Raises:
            ValueError: The batch has no images.
        """
        if not isinstance(batch, ImageRelationBatch):
            raise ValueError("the batch has no images: give the DataModule a pixel scale as `images`, not none")
        padded, sizes_hw = pad_images(batch.images)
        sides = batch.sizes_wh.new_tensor([(w, h) for h, w in sizes_hw])
        return cls(padded, sides / batch.sizes_wh)

    def edges(self, boxes_xyxy: Tensor, image: Tensor) -> Tensor:
        """Return the edges `[N, 4]`, in the network's input, of annotated boxes `[N, 4]` of images int64 `[N]`."""
        return to_edges(boxes_xyxy, self.scales_xy[image])

    def pooled(self, pool: nn.Module, maps: Mapping[str, Tensor], boxes_xyxy: Tensor, image: Tensor) -> Tensor:
        """Return what `pool`, a `RoIPool` or `RoIHead`, makes of annotated boxes `[N, 4]` of images int64 `[N]`.

        The images may stand in any order; row n is box n's.
        """
        order = torch.sort(image, stable=True).indices
        counts = torch.bincount(image, minlength=len(self.images)).tolist()
        found: Tensor = pool(maps, self.edges(boxes_xyxy, image)[order].split(counts))
        return found[order.argsort()]


class FrozenBody(nn.Module):
    """A body that is never trained: its parameters need no gradients, and no mode changes what it computes."""

    def __init__(self, body: Body):
        super().__init__()
        self.body = body.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> FrozenBody:
        """Stay in evaluation mode."""
        return self

    @torch.no_grad()
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the body's maps, without gradients."""
        maps: dict[str, Tensor] = self.body(images)
        return maps
