"""The test loop that all models share which score labelled object pairs: candidates, ranking, recalls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_modules.scene_graph import PairPredictions, RelationBatch
from lit_modules.functional.boxes import all_pairs, overlapping_pairs
from lit_modules.layers.faster_rcnn import FasterRCNN
from lit_modules.layers.pixels import BatchPixels
from lit_modules.metrics.openimages import OpenImagesScore
from lit_modules.metrics.vrd import VRDRecall


class RelationScorer(pl.LightningModule):
    """Scores every predicate of every candidate pair and reports the VRD recalls.

    Logs fractions under `test/`: `{task}_k{k}/R@{N}` and `{task}_free_k/R@{N}` by the headline matching, the other
    matching with its name appended, `/image_mean` and `/zero_shot` variants, and the chosen free k.

    Args:
        pairs: Candidates: `all` ordered pairs, `overlapping` ones, or `gt_relations` (the annotated pairs, given).
        ks: How many triplets per pair are kept, for each reported k.
        tops: Lengths N of the ranking.
        matching: Headline rule: `greedy` (Lu et al., each annotation matched once) or `multi` (RelDN, neural-motifs).
        free_k: The k reported as free k; 0 takes for each number the best of `ks`, as RelDN's code does.
        train_triplets: int64 `[M, 3]` training triplets, for zero-shot recall.
        classifier: Gives the boxes, which are annotated ones, their labels and confidences (SGCls).
        openimages: Measured instead of the recalls, with the only k in `ks`; logged under `test/`.
    """

    def __init__(
        self,
        *,
        pairs: str,
        ks: Sequence[int],
        tops: Sequence[int],
        matching: str,
        free_k: int,
        train_triplets: NDArray[np.int64],
        classifier: FasterRCNN | None = None,
        openimages: OpenImagesScore | None = None,
    ):
        super().__init__()
        if pairs not in ("all", "overlapping", "gt_relations"):
            raise ValueError(f"pairs must be all, overlapping or gt_relations, not {pairs!r}")
        if matching not in ("greedy", "multi"):
            raise ValueError(f"matching must be greedy or multi, not {matching!r}")
        if free_k and free_k not in ks:
            raise ValueError(f"free_k {free_k} is not among the evaluated ks {list(ks)}")
        self.pairs, self.ks, self.tops = pairs, tuple(ks), tuple(tops)
        self.matching, self.free_k = matching, free_k
        self.recall = VRDRecall(ks=self.ks, tops=self.tops, train_triplets=train_triplets)
        self.openimages = openimages
        self.classifier = classifier

    def score_pairs(self, batch: RelationBatch, pairs: Tensor) -> Tensor:
        """Return float64 `[P, num_predicates]`, any monotone score of each predicate of int64 `[P, 2]` box pairs."""
        raise NotImplementedError(f"{type(self).__name__} must say how it scores pairs")

    def candidate_pairs(self, batch: RelationBatch) -> Tensor:
        """Return int64 `[P, 2]`, the (subject box, object box) candidates of the batch, ordered by image."""
        if self.pairs == "all":
            return all_pairs(batch.image_index)
        if self.pairs == "overlapping":
            return overlapping_pairs(batch.boxes_xyxy, batch.image_index)
        given: Tensor = batch.relations[:, [0, 2]].unique(dim=0)
        return given

    def predict_pairs(self, batch: RelationBatch) -> list[PairPredictions]:
        """Return the best triplets of every candidate pair, one record an image; labels are the boxes' own."""
        pairs = self.candidate_pairs(batch)
        scores = self.score_pairs(batch, pairs)
        # Stable, so that predicates of equal score keep the order of their labels, as in the reference evaluators.
        scores, order = torch.sort(scores, dim=1, descending=True, stable=True)
        scores, order = scores[:, : max(self.ks)], order[:, : max(self.ks)]
        subject, obj = (batch.labels[pairs[:, i], None].expand_as(order) for i in (0, 1))
        return split_by_image(batch, pairs, torch.stack([subject, order, obj], dim=2), scores)

    def on_test_epoch_start(self) -> None:
        """Forget earlier tests."""
        (self.openimages or self.recall).reset()

    def test_step(self, batch: RelationBatch, batch_idx: int) -> None:
        """Rank one batch of images and count what is recalled."""
        if self.classifier is not None:
            batch = classified(batch, self.classifier)
        (self.openimages or self.recall).update(self.predict_pairs(batch), batch.graphs)

    def on_test_epoch_end(self) -> None:
        """Log all recalls."""
        if self.openimages is not None:
            self.log_dict({f"test/{key}": value for key, value in self.openimages.compute().items()})
            return
        recalls = {key: float(value) for key, value in self.recall.compute().items() if not value.isnan()}
        named = dict(self._headlined(key, value) for key, value in recalls.items())
        self.log_dict({f"test/{key}": value for key, value in (named | self._free(named)).items()})

    def _headlined(self, key: str, value: float) -> tuple[str, float]:
        """Move the name of the matching from the key of the headline to that of the other one."""
        if self.matching == "greedy":
            return key, value
        task, recall, *rest = key.split("/")
        rest = rest[1:] if rest[:1] == ["multi"] else ["greedy", *rest]
        return "/".join([task, recall, *rest]), value

    def _free(self, named: dict[str, float]) -> dict[str, float]:
        free: dict[str, float] = {}
        for key in [k for k in named if f"_k{self.ks[0]}/" in k]:
            by_k = {k: named[key.replace(f"_k{self.ks[0]}/", f"_k{k}/")] for k in self.ks}
            chosen = self.free_k or max(by_k, key=lambda k: (by_k[k], -k))
            name = key.replace(f"_k{self.ks[0]}/", "_free_k/")
            free[name], free[f"{name}/chosen_k"] = by_k[chosen], float(chosen)
        return free


def split_by_image(batch: RelationBatch, pairs: Tensor, triplets: Tensor, scores: Tensor) -> list[PairPredictions]:
    """Return one record an image of the ranked triplets `[P, K, 3]` with scores `[P, K]` of pairs `[P, 2]`."""
    counts = torch.bincount(batch.image_index[pairs[:, 0]], minlength=len(batch.graphs))
    ends = counts.cumsum(0)[:-1].tolist()
    subjects, objects = (batch.boxes_xyxy[pairs[:, i]] for i in (0, 1))
    columns = [np.split(t.cpu().numpy(), ends) for t in (subjects, objects, triplets, scores.double())]
    return [PairPredictions(*image) for image in zip(*columns, strict=True)]


def classified(batch: RelationBatch, detector: FasterRCNN) -> RelationBatch:
    """Return a batch whose boxes have the labels that a detector finds most probable, and their probabilities.

    Background is left out, not renormalised.
    """
    pixels = BatchPixels.of(batch)
    counts = torch.bincount(batch.image_index, minlength=len(batch.graphs)).tolist()
    edges = pixels.edges(batch.boxes_xyxy, batch.image_index).split(counts)
    logits, _ = detector.classify(detector.body(pixels.images), edges)
    scores, labels = logits.double().softmax(dim=1)[:, 1:].max(dim=1)
    return replace(batch, labels=labels, scores=scores)
