"""Predictors that look at no pixel and learn nothing: label statistics, and triplets that others released."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from data_modules.scene_graph import PairPredictions, RelationBatch
from lit_modules.relation_scorer import RelationScorer


class FrequencyPrior(RelationScorer):
    """Scores a pair by confidence x confidence x P(predicate | subject label, object label) of the training counts.

    Args:
        probabilities: float64 `[O, O, P]`, see `functional.frequency.predicate_probabilities`.
        evaluation: Arguments of `RelationScorer`.
    """

    def __init__(self, probabilities: Tensor, **evaluation: Any):
        super().__init__(**evaluation)
        self.register_buffer("probabilities", probabilities)

    def score_pairs(self, batch: RelationBatch, pairs: Tensor) -> Tensor:
        """Return float64 `[P, num_predicates]` probabilities times both confidences."""
        subject, obj = pairs.unbind(dim=1)
        assert isinstance(self.probabilities, Tensor)
        confidence = batch.scores[subject] * batch.scores[obj]
        return confidence[:, None] * self.probabilities[batch.labels[subject], batch.labels[obj]]


class PrecomputedTriplets(RelationScorer):
    """Reports the recalls of triplets that somebody released.

    Args:
        predictions: One record an image, in the order of the test images.
        evaluation: Arguments of `RelationScorer`.
    """

    def __init__(self, predictions: Sequence[PairPredictions], **evaluation: Any):
        super().__init__(**evaluation)
        self._predictions = list(predictions)
        self._next = 0

    def on_test_epoch_start(self) -> None:
        """Forget earlier tests, and begin with the first image again."""
        super().on_test_epoch_start()
        self._next = 0

    def predict_pairs(self, batch: RelationBatch) -> list[PairPredictions]:
        """Return the records of the next images."""
        first, self._next = self._next, self._next + len(batch.graphs)
        return self._predictions[first : self._next]
