"""A trained detector that proposes boxes to relation models while these are trained."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from data_modules.scene_graph import RelationBatch
from lit_modules.detector_batches import DetectorInput
from lit_modules.layers.backbones import to_pixels
from lit_modules.layers.faster_rcnn import FasterRCNN
from lit_modules.layers.pixels import BatchPixels


class Proposer:
    """Boxes of objects that a frozen detector would be trained on.

    It is no `nn.Module`, so that neither an optimiser nor a checkpoint of the relation model gets the detector.

    Args:
        detector: The trained network.
    """

    def __init__(self, detector: FasterRCNN):
        self._detector = detector.requires_grad_(False).eval()

    def propose(
        self, batch: RelationBatch, pixels: BatchPixels, maps: Mapping[str, Tensor], num_objects: int
    ) -> list[Tensor]:
        """Return proposals `[n, 4]` of each image that overlap an annotated box by at least 0.5, annotated pixels.

        Args:
            batch: Images and annotated boxes.
            pixels: The images as the detector takes them.
            maps: The detector's body's maps of them.
            num_objects: Categories.
        """
        given = DetectorInput.of(batch)
        detector = self._detector.to(pixels.images.device)
        found = []
        targets = given.targets(num_objects)
        for image, rois in enumerate(detector.sample(pixels.images, given.sizes_hw, targets, maps)):
            edges = rois.edges_xyxy[rois.labels >= 0]
            # The detector samples annotated boxes too, which are in the batch already.
            is_own = (edges[:, None] == given.edges_xyxy[given.image_index == image]).all(dim=2).any(dim=1)
            found.append(to_pixels(edges[~is_own], pixels.scales_xy[image]))
        return found
