from __future__ import annotations

from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from data_modules.scene_graph import PairPredictions, RelationBatch
from lit_modules import vrd_tensor
from lit_modules.functional.cp import cp_log_tensor
from lit_modules.layers.triplet import TripletNetwork
from lit_modules.vrd_tensor import PairSelector, SelectorTraining, TripletScoring, TripletTraining
from tests.lit_modules.batches import Image, make_batch, random_images

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

NETWORK: dict[str, Any] = {
    "num_objects": 4,
    "num_predicates": 3,
    "rank": 3,
    "labels": True,
    "embedding_dim": 5,
    "mask_frame": "union",
    "mask_size": 8,
    "mask_channels": (2, 3),
    "spatial_dim": 6,
    "hidden_dim": 7,
    "dropout": 0.5,
    "init_std": 1.0,  # far from uniform
}
SGD: dict[str, Any] = {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}


def network(seed: int = 0) -> TripletNetwork:
    torch.manual_seed(seed)
    return TripletNetwork(**NETWORK).eval()


def log_tensor(model: TripletNetwork, batch: RelationBatch, pairs: Tensor) -> Tensor:
    """Log probabilities `[P, 4, 3, 4]` of all triplets of every pair."""
    with torch.no_grad():
        return cp_log_tensor(*(x.double() for x in model(batch, pairs)[:3]))


# Training of the triplet network


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_the_loss_is_the_likelihood_of_the_annotated_triplets(reduction: str) -> None:
    module = TripletTraining(NETWORK, reduction, SGD).eval()
    (image,) = random_images(0, boxes=(5,))
    image.relations.append(image.relations[0])  # a relation that is annotated twice counts twice
    batch = make_batch(image)
    expected = 0.0
    for s, p, o in image.relations:
        tensor = log_tensor(module.network, batch, torch.tensor([[s, o]]))
        expected -= float(tensor[0, image.labels[s], p, image.labels[o]])
    expected /= len(image.relations) if reduction == "mean" else 1
    assert float(module.training_step(batch, 0)["loss"].detach()) == pytest.approx(expected, rel=1e-5)


def test_sums_are_averaged_over_the_images() -> None:
    module = TripletTraining(NETWORK, "sum", SGD).eval()
    images = random_images(1, boxes=(5, 0, 3))
    single = [float(module.training_step(make_batch(i), 0)["loss"].detach()) for i in images if i.relations]
    together = float(module.training_step(make_batch(*images), 0)["loss"].detach())
    assert len(single) == 2
    assert together == pytest.approx(sum(single) / 3, rel=1e-5)


def test_every_weight_is_trained_and_a_batch_without_relations_harmless() -> None:
    module = TripletTraining(NETWORK, "sum", SGD)
    module.training_step(make_batch(*random_images(0)), 0)["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())
    for image in (Image(), Image([[1, 1, 2, 2]], [0])):
        assert float(module.training_step(make_batch(image), 0)["loss"].detach()) == 0
    with pytest.raises(ValueError, match=r"loss\.reduction must be sum or mean, not 'max'"):
        TripletTraining(NETWORK, "max", SGD)


# Training of X_sel


def selector_training() -> SelectorTraining:
    return SelectorTraining(NETWORK, network(3).state_dict(), 9, SGD)


def test_only_the_selector_is_trained() -> None:
    module = selector_training()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    assert all(torch.equal(before[f"network.{key}"], value) for key, value in network(3).state_dict().items())
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    batches = [make_batch(*random_images(seed)) for seed in range(3)]
    trainer.fit(module, DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
    assert trainer.global_step == 6
    for key, value in module.state_dict().items():
        assert torch.equal(value, before[key]) == key.startswith("network."), key


def test_as_many_annotated_as_other_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    images = random_images(0, boxes=(6, 0, 1, 7))
    images[0].relations.append([2, 1, 2])  # a relation of a box with itself
    batch = make_batch(*images)
    module = selector_training()
    seen: list[tuple[Tensor, Tensor]] = []
    original = vrd_tensor.binary_cross_entropy_with_logits

    def features(given: RelationBatch, pairs: Tensor) -> Tensor:
        seen.append((pairs, torch.empty(0)))
        return torch.zeros(len(pairs), module.network.pair_dim)

    def loss(log_odds: Tensor, targets: Tensor) -> Tensor:
        seen[-1] = (seen[-1][0], targets)
        return original(log_odds, targets)

    monkeypatch.setattr(module.network, "pair_features", features)
    monkeypatch.setattr(vrd_tensor, "binary_cross_entropy_with_logits", loss)
    annotated = {(s, o) for s, _, o in batch.relations.tolist()}
    drawn = set()
    for _ in range(20):
        module.training_step(batch, 0)
        pairs, targets = seen[-1]
        rows = list(zip(map(tuple, pairs.tolist()), targets.tolist(), strict=True))
        assert len({pair for pair, _ in rows}) == len(rows) == 2 * len(annotated)
        assert {pair for pair, target in rows if target == 1} == annotated
        others = {pair for pair, target in rows if target == 0}
        assert not others & annotated
        for s, o in others:
            assert s != o and batch.image_index[s] == batch.image_index[o]
        drawn |= others
    # Every step draws others: in the end all of the 30 + 42 pairs that are not annotated.
    assert len(drawn) == 30 + 42 - len({(s, o) for s, o in annotated if s != o})


# Scoring


def scoring(
    selector: bool = True, prior: bool = True, renormalise: bool = False, labels_from: str = "joint", **changes: Any
) -> TripletScoring:
    settings: dict[str, Any] = {"pairs": "all", "ks": (1, 5), "tops": (5,), "matching": "greedy", "free_k": 0}
    model = network()
    head = PairSelector(model.pair_dim, 9)
    generator = torch.Generator().manual_seed(1)
    log_prior = torch.randn(4, 3, 4, generator=generator, dtype=torch.float64).flatten().log_softmax(0).reshape(4, 3, 4)
    module = TripletScoring(
        model,
        head if selector else None,
        changes.pop("log_prior", log_prior) if prior else None,
        renormalise,
        labels_from,
        **settings | {"train_triplets": None} | changes,
    )
    return module.eval()


def slow_scores(module: TripletScoring, image: Image, subject: int, obj: int) -> Tensor:
    """Equation (7) for all triplets of one pair of one image, float64 `[4, 3, 4]`, in nats."""
    batch, pair = make_batch(image), torch.tensor([[subject, obj]])
    total = log_tensor(module.network, batch, pair)[0]
    if isinstance(module.log_prior, Tensor):
        total = total + module.log_prior
        if module.renormalise_prior:
            total = total - total.exp().sum().log()
    if module.selector is not None:
        with torch.no_grad():
            log_odds = module.selector(module.network(batch, pair)[3]).double()
        total = total + (1 / (1 + (-log_odds).exp())).log()
    return total + torch.tensor(image.scores[subject] * image.scores[obj], dtype=torch.float64).log()


def predict(module: TripletScoring, images: list[Image]) -> list[PairPredictions]:
    with torch.no_grad():
        return module.predict_pairs(make_batch(*images))


@pytest.mark.parametrize("labels_from", ["joint", "detector"])
@pytest.mark.parametrize(
    ("selector", "prior", "renormalise"),
    [(True, True, False), (True, True, True), (False, True, False), (True, False, False), (False, False, False)],
)
def test_rankings_are_those_of_equation_7(selector: bool, prior: bool, renormalise: bool, labels_from: str) -> None:
    images = random_images(0, boxes=(4, 1, 0, 3))
    module = scoring(selector, prior, renormalise, labels_from)
    for image, record in zip(images, predict(module, images), strict=True):
        pairs = [(s, o) for s in range(len(image.boxes)) for o in range(len(image.boxes)) if s != o]
        assert len(record.scores) == len(pairs)
        for row, (subject, obj) in enumerate(pairs):
            scores = slow_scores(module, image, subject, obj)
            triplets = [
                (i, p, k)
                for i in range(4)
                for p in range(3)
                for k in range(4)
                if labels_from == "joint" or (i, k) == (image.labels[subject], image.labels[obj])
            ]
            best = sorted(triplets, key=lambda t: -float(scores[t]))[:5]
            assert len(best) == (5 if labels_from == "joint" else 3)
            assert [tuple(t) for t in record.triplets[row].tolist()] == best
            assert record.scores[row].tolist() == pytest.approx([float(scores[t]) for t in best], abs=1e-5)
            assert record.subject_boxes_xyxy[row].tolist() == image.boxes[subject]


def test_each_factor_moves_the_scores() -> None:
    """What the comparison above relies on: no factor is constant over the pairs or the triplets."""
    images = random_images(0, boxes=(4,))
    whole = scoring()
    batch = make_batch(*images)
    pairs = whole.candidate_pairs(batch)
    odds = whole.selector(whole.network(batch, pairs)[3]) if whole.selector else torch.zeros(0)
    assert float(odds.detach().std()) > 1e-3
    assert len(set(images[0].scores)) == 4
    without = scoring(prior=False)
    changed = [
        a.triplets.tolist() != b.triplets.tolist()
        for a, b in zip(predict(whole, images), predict(without, images), strict=True)
    ]
    assert any(changed)


@pytest.mark.parametrize("labels_from", ["joint", "detector"])
def test_a_constant_prior_changes_no_ranking(labels_from: str) -> None:
    images = random_images(1, boxes=(4, 3))
    flat = torch.full((4, 3, 4), -4.0, dtype=torch.float64)
    plain, shifted = scoring(prior=False, labels_from=labels_from), scoring(log_prior=flat, labels_from=labels_from)
    same = scoring(log_prior=flat, labels_from=labels_from, renormalise=True)
    for bare, moved, divided in zip(*(predict(m, images) for m in (plain, shifted, same)), strict=True):
        assert bare.triplets.tolist() == moved.triplets.tolist() == divided.triplets.tolist()
        assert moved.scores == pytest.approx(bare.scores - 4, abs=1e-5)
        assert divided.scores == pytest.approx(bare.scores, abs=1e-5)


@pytest.mark.parametrize("labels_from", ["joint", "detector"])
@pytest.mark.parametrize("chunk", [1, 5, 18])
def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch, labels_from: str, chunk: int) -> None:
    images = random_images(2, boxes=(4, 1, 3))  # 18 pairs
    module = scoring(labels_from=labels_from)
    whole = predict(module, images)
    monkeypatch.setattr(vrd_tensor, "CHUNK", chunk)
    for once, parts in zip(whole, predict(module, images), strict=True):
        assert once.triplets.tolist() == parts.triplets.tolist()
        assert parts.scores == pytest.approx(once.scores, abs=1e-5)


@pytest.mark.parametrize("labels_from", ["joint", "detector"])
@pytest.mark.parametrize("images", [[Image()], [Image(), Image([[1, 1, 2, 2]], [0])]])
def test_images_without_pairs(labels_from: str, images: list[Image]) -> None:
    records = predict(scoring(labels_from=labels_from), images)
    assert [len(r.scores) for r in records] == [0] * len(images)
    assert all(r.triplets.shape[::2] == (0, 3) for r in records)


def test_a_confidence_of_zero_is_an_empty_slot() -> None:
    images = random_images(0, boxes=(3,))
    images[0].scores[1] = 0.0
    (record,) = predict(scoring(), images)
    pairs = [(s, o) for s in range(3) for o in range(3) if s != o]
    assert [bool((row == -torch.inf).all()) for row in torch.from_numpy(record.scores)] == [1 in p for p in pairs]


def test_dropout_is_off_in_a_test() -> None:
    images = random_images(0, boxes=(4,))
    module = scoring()
    first, second = predict(module, images), predict(module, images)
    assert first[0].scores.tolist() == second[0].scores.tolist()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels_from": "both"}, "labels_from must be joint or detector, not 'both'"),
        ({"prior": False, "renormalise": True}, r"renormalise_prior needs the prior: set scoring\.prior=true"),
    ],
)
def test_wrong_options_are_errors(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scoring(**changes)
