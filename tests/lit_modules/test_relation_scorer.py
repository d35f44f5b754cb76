from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from data_modules.scene_graph import RelationBatch
from lit_modules.relation_scorer import RelationScorer, split_by_image
from tests.lit_modules.batches import Image, make_batch, random_images
from tests.lit_modules.metrics import reference_vrd

TRAIN = np.array([[0, 0, 0], [0, 1, 1], [1, 2, 2], [3, 0, 1], [2, 2, 2], [1, 1, 3]])
KS, TOPS = (1, 2, 3), (3, 10)


class TableScorer(RelationScorer):
    """Scores by a table over both labels; its values are coarse, so that ties are frequent."""

    def __init__(self, **changes: Any):
        settings: dict[str, Any] = {"pairs": "all", "ks": KS, "tops": TOPS, "matching": "greedy", "free_k": 0}
        super().__init__(**settings | {"train_triplets": TRAIN} | changes)
        generator = torch.Generator().manual_seed(0)
        self.table = torch.randint(0, 4, (4, 4, 3), generator=generator).double()

    def score_pairs(self, batch: RelationBatch, pairs: Tensor) -> Tensor:
        return self.table[batch.labels[pairs[:, 0]], batch.labels[pairs[:, 1]]]


def batches() -> list[RelationBatch]:
    """Images with 0 and 1 boxes are among them, and relations that are annotated twice."""
    images = [random_images(seed, boxes=(5, 1, 0, 4, 3)) for seed in range(3)]
    for image in (image for group in images for image in group):
        image.relations += image.relations[:2]
    return [make_batch(*group) for group in images]


def logged(module: RelationScorer, data: list[RelationBatch]) -> dict[str, float]:
    """What a Trainer records of a test of this module."""
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.test(module, DataLoader(data, batch_size=None), verbose=False)  # type: ignore[arg-type]
    return {key: float(value) for key, value in trainer.callback_metrics.items()}


def reference(module: RelationScorer, data: list[RelationBatch]) -> dict[str, float]:
    predictions = [p for batch in data for p in module.predict_pairs(batch)]
    graphs = [g for batch in data for g in batch.graphs]
    train = {tuple(row) for row in TRAIN.tolist()}
    return reference_vrd.recalls(predictions, graphs, KS, TOPS, ("relationship", "phrase"), train)


@pytest.fixture(scope="module")
def expected() -> dict[str, float]:
    return reference(TableScorer(), batches())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("matching", ["greedy", "multi"])
def test_what_is_logged_of_each_k(expected: dict[str, float], matching: str) -> None:
    """The headline matching has the plain name, the other one its own, in every variant."""
    got = logged(TableScorer(matching=matching), batches())
    seen = set()
    for task in ("relationship", "phrase"):
        for k in KS:
            for top in TOPS:
                for suffix in ("", "/image_mean", "/zero_shot"):
                    greedy = expected[f"{task}_k{k}/R@{top}{suffix}"]
                    multi = expected[f"{task}_k{k}/R@{top}/multi{suffix}"]
                    ours = (greedy, multi) if matching == "greedy" else (multi, greedy)
                    other = "multi" if matching == "greedy" else "greedy"
                    keys = (f"{task}_k{k}/R@{top}{suffix}", f"{task}_k{k}/R@{top}/{other}{suffix}")
                    assert [got[f"test/{key}"] for key in keys] == pytest.approx(ours, abs=1e-6)
                    seen |= {f"test/{key}" for key in keys}
    assert {key for key in got if "free_k" not in key} == seen
    assert expected["relationship_k3/R@10"] < expected["relationship_k3/R@10/multi"]


@pytest.mark.filterwarnings("ignore")
def test_the_maximal_free_k_is_chosen_for_each_number(expected: dict[str, float]) -> None:
    got = logged(TableScorer(), batches())
    chosen = set()
    for key in expected:
        if "_k1/" not in key:
            continue
        by_k = [expected[key.replace("_k1/", f"_k{k}/")] for k in KS]
        free = "test/" + key.replace("_k1/", "_free_k/")
        assert got[free] == pytest.approx(max(by_k), abs=1e-6)
        assert got[f"{free}/chosen_k"] == KS[by_k.index(max(by_k))]  # the least of equals
        chosen.add(got[f"{free}/chosen_k"])
    assert len(chosen) > 1


@pytest.mark.filterwarnings("ignore")
def test_a_given_free_k_is_kept(expected: dict[str, float]) -> None:
    got = logged(TableScorer(free_k=2), batches())
    free = {key: value for key, value in got.items() if "_free_k/" in key and not key.endswith("/chosen_k")}
    assert len(free) == 2 * len(TOPS) * 2 * 3
    for key, value in free.items():
        assert value == pytest.approx(expected[key.removeprefix("test/").replace("_free_k/", "_k2/")], abs=1e-6)
        assert got[f"{key}/chosen_k"] == 2


@pytest.mark.filterwarnings("ignore")
def test_a_second_test_of_the_same_module_starts_from_nothing() -> None:
    module = TableScorer()
    assert logged(module, batches()) == logged(module, batches())
    assert logged(module, batches()[:1]) == logged(TableScorer(), batches()[:1])


@pytest.mark.filterwarnings("ignore")
def test_what_has_no_truth_is_not_logged() -> None:
    """Without a zero-shot relation there is no zero-shot recall, rather than a NaN."""
    image = random_images(0)[0]
    seen = [[image.labels[s], p, image.labels[o]] for s, p, o in image.relations]
    got = logged(TableScorer(train_triplets=np.array(seen)), [make_batch(image)])
    assert "test/relationship_k1/R@3/image_mean" in got
    assert not any("zero_shot" in key for key in got)
    assert logged(TableScorer(), [make_batch(Image())]) == {}


@pytest.mark.parametrize("pairs", ["all", "overlapping", "gt_relations"])
def test_candidates(pairs: str) -> None:
    images = random_images(1)
    expected, first = [], 0
    for image in images:
        for s, subject in enumerate(image.boxes):
            for o, obj in enumerate(image.boxes):
                wanted = {
                    "all": s != o,
                    "overlapping": s != o and reference_vrd.iou(subject, obj) > 0,
                    "gt_relations": [s, o] in [[r[0], r[2]] for r in image.relations],
                }[pairs]
                if wanted:
                    expected.append([s + first, o + first])
        first += len(image.boxes)
    # Two predicates of a pair make one candidate of it; the order is that of the images.
    assert TableScorer(pairs=pairs).candidate_pairs(make_batch(*images)).tolist() == expected
    assert len(expected) < 42 or pairs == "all"


@pytest.mark.parametrize("pairs", ["all", "overlapping", "gt_relations"])
def test_images_with_fewer_than_two_boxes_keep_their_place(pairs: str) -> None:
    images = [Image(), Image([[1, 1, 9, 9]], [0]), *random_images(2, boxes=(3,)), Image()]
    for chosen in (images, images[:1], images[:2]):
        predictions = TableScorer(pairs=pairs).predict_pairs(make_batch(*chosen))
        assert len(predictions) == len(chosen)
        for number, record in enumerate(predictions):
            count = len(record.scores)
            assert (count > 0) == (number == 2)
            shapes = [record.subject_boxes_xyxy.shape, record.object_boxes_xyxy.shape, record.triplets.shape]
            assert shapes == [(count, 4), (count, 4), (count, 3, 3)]
            assert record.scores.dtype == np.float64 and record.triplets.dtype == np.int64


@pytest.mark.parametrize("ks", [(1, 2), (1, 70)])
def test_predictions_are_the_stable_ranking_of_each_pair(ks: tuple[int, ...]) -> None:
    images = random_images(3)
    batch = make_batch(*images)
    module = TableScorer(ks=ks)
    tied = 0
    for image, record in zip(images, module.predict_pairs(batch), strict=True):
        pairs = [(s, o) for s in range(len(image.boxes)) for o in range(len(image.boxes)) if s != o]
        assert len(record.scores) == len(pairs)
        for row, (s, o) in enumerate(pairs):
            scores = module.table[image.labels[s], image.labels[o]].tolist()
            order = sorted(range(3), key=lambda p: (-scores[p], p))[: max(ks)]
            expected = [[image.labels[s], p, image.labels[o]] for p in order]
            assert record.triplets[row].tolist() == expected
            assert record.scores[row].tolist() == [scores[p] for p in order]
            assert record.subject_boxes_xyxy[row].tolist() == image.boxes[s]
            assert record.object_boxes_xyxy[row].tolist() == image.boxes[o]
            tied += len(set(scores)) < 3
    assert tied > 10


def test_split_by_image_follows_the_subjects_image() -> None:
    batch = make_batch(*random_images(0, boxes=(2, 0, 3)))
    pairs = torch.tensor([[0, 1], [2, 3], [2, 4], [4, 3]])
    triplets = torch.arange(24).reshape(4, 2, 3)
    scores = -torch.arange(8, dtype=torch.float32).reshape(4, 2)
    records = split_by_image(batch, pairs, triplets, scores)
    assert [len(r.scores) for r in records] == [1, 0, 3]
    assert records[2].triplets.tolist() == triplets[1:].tolist()
    assert records[2].scores.tolist() == scores[1:].tolist()
    assert records[2].object_boxes_xyxy.tolist() == batch.boxes_xyxy[[3, 4, 3]].tolist()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pairs": "some"}, "pairs must be all, overlapping or gt_relations, not 'some'"),
        ({"matching": "hungarian"}, "matching must be greedy or multi, not 'hungarian'"),
        ({"free_k": 5}, r"free_k 5 is not among the evaluated ks \[1, 2, 3\]"),
    ],
)
def test_wrong_options_are_errors(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TableScorer(**changes)


def test_a_scorer_must_score() -> None:
    settings: dict[str, Any] = {"pairs": "all", "ks": KS, "tops": TOPS, "matching": "greedy", "free_k": 0}
    with pytest.raises(NotImplementedError, match="RelationScorer must say how it scores pairs"):
        RelationScorer(**settings, train_triplets=TRAIN).predict_pairs(batches()[0])
