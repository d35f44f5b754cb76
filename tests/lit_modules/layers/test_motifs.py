from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lit_modules.layers.highway_lstm import Packing
from lit_modules.layers.motifs import MotifsNetwork, MotifsOutput, UnionMasks
from lit_modules.layers.motifs_decoder import LabelDecoder, separately_suppressed_labels, suppressed_labels
from tests.lit_modules.layers import reference_motifs
from tests.lit_modules.layers.test_highway_lstm import numpy_state, shaken

C, P, FEATURES, UNION, HIDDEN = 4, 3, 5, 6, 4
F64 = torch.float64


def network(mode: str, **options: Any) -> MotifsNetwork:
    generator = torch.Generator().manual_seed(9)
    tables = [torch.randn(C + 1 + i, 3, generator=generator) for i in range(2)]
    bias = options.pop("bias", torch.randn(C, C, P + 1, generator=generator))
    options = {"hidden_dim": HIDDEN, "object_layers": 2, "edge_layers": 2} | options
    made = MotifsNetwork(P, FEATURES, UNION, *tables, bias, mode=mode, **options)
    shaken(made)
    with torch.no_grad():
        for norm in (m for m in made.modules() if isinstance(m, torch.nn.BatchNorm1d)):
            norm.running_mean.copy_(torch.tensor([30.0, 30, 20, 20]))
            norm.running_var.copy_(torch.tensor([400.0, 500, 100, 90]))
    return made.eval()


def batch(seed: int = 0, counts: tuple[int, ...] = (4, 1, 6)) -> dict[str, Tensor]:
    """Boxes of three images in a shuffled order, all pairs of an image."""
    generator = torch.Generator().manual_seed(seed)
    n = sum(counts)
    image = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    image = image[torch.randperm(n, generator=generator)]
    corner = 60 * torch.rand(n, 2, dtype=F64, generator=generator)
    boxes = torch.cat([corner, corner + 5 + 30 * torch.rand(n, 2, dtype=F64, generator=generator)], dim=1)
    pairs = torch.nonzero((image[:, None] == image) & ~torch.eye(n, dtype=torch.bool))
    return {
        "features": torch.randn(n, FEATURES, dtype=F64, generator=generator),
        "detector_logits": 2 * torch.randn(n, C + 1, dtype=F64, generator=generator),
        "boxes_xyxy": boxes,
        "image_index": image,
        "pairs": pairs,
        "union_features": torch.randn(len(pairs), UNION, dtype=F64, generator=generator),
        "labels": torch.randint(C, (n,), generator=generator),
    }


def slow(model: MotifsNetwork, data: dict[str, Tensor], known: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The whole network image by image and pair by pair."""
    state = numpy_state(model)
    d = {name: value.numpy() for name, value in data.items()}
    boxes = d["boxes_xyxy"]
    sides = boxes[:, 2:] - boxes[:, :2] + 1
    centres = boxes[:, :2] + sides / 2
    geometry = np.concatenate([centres, sides], axis=1)
    norm = [state[f"context.position.0.{n}"] for n in ("running_mean", "running_var", "weight", "bias")]
    geometry = (geometry - norm[0]) / np.sqrt(norm[1] + 1e-5) * norm[2] + norm[3]
    position = np.maximum(geometry @ state["context.position.1.weight"].T + state["context.position.1.bias"], 0)
    words = reference_motifs.softmax(d["detector_logits"]) @ state["context.object_embedding.weight"]
    inputs = np.concatenate([d["features"], words, position], axis=1)
    n = len(boxes)
    logits, labels, context, edges = (
        np.zeros((n, C + 1)),
        np.zeros(n, int),
        np.zeros((n, HIDDEN)),
        np.zeros((n, HIDDEN)),
    )
    for image in np.unique(d["image_index"]):
        rows = np.flatnonzero(d["image_index"] == image)
        rows = rows[np.argsort(-centres[rows, 0])]  # from right to left
        context[rows] = reference_motifs.highway_lstm(inputs[rows], state, "context.object_lstm.")
        if known:
            labels[rows] = d["labels"][rows]
            logits[rows] = -1000
            logits[rows, labels[rows] + 1] = 1000
        else:
            logits[rows], labels[rows] = reference_motifs.decode(context[rows], state, "context.decoder.")
        edge_inputs = np.concatenate([state["context.edge_embedding.weight"][labels[rows] + 1], context[rows]], axis=1)
        edges[rows] = reference_motifs.highway_lstm(edge_inputs, state, "context.edge_lstm.")
    ends = edges @ state["edge_ends.weight"].T + state["edge_ends.bias"]
    predicates = []
    for (subject, obj), union in zip(d["pairs"], d["union_features"], strict=True):
        product = ends[subject, :UNION] * ends[obj, UNION:] * union
        bias = state["frequency.weight"][labels[subject] * C + labels[obj]]
        predicates.append(state["predicates.weight"] @ product + state["predicates.bias"] + bias)
    return logits, labels, np.array(predicates)


def check(output: MotifsOutput, expected: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    np.testing.assert_allclose(output.object_logits.detach().numpy(), expected[0], atol=1e-10)
    assert output.labels.tolist() == expected[1].tolist()
    np.testing.assert_allclose(output.predicate_logits.detach().numpy(), expected[2], atol=1e-9)


def test_whole_network_against_loops() -> None:
    data = batch()
    check(network("predcls")(**data), slow(network("predcls"), data, known=True))
    unlabelled = data | {"labels": None}
    check(network("sgcls")(**unlabelled), slow(network("sgcls"), data, known=False))
    check(network("sgdet")(**unlabelled), slow(network("sgdet"), data, known=False))


@pytest.mark.parametrize(
    ("mode", "order"),
    # Not confidence in PredCls: known labels are all equally sure.
    [("predcls", "leftright"), ("predcls", "size"), ("sgcls", "leftright"), ("sgcls", "size"), ("sgcls", "confidence")],
)
def test_order_of_boxes_images_and_pairs_makes_no_difference(mode: str, order: str) -> None:
    data, model = batch(), network(mode, order=order)
    if mode != "predcls":
        data["labels"] = None  # type: ignore[assignment]
    output = model(**data)
    boxes = torch.randperm(11, generator=torch.Generator().manual_seed(1))
    pairs = torch.randperm(len(data["pairs"]), generator=torch.Generator().manual_seed(2))
    images = torch.tensor([5, 0, 2])  # other numbers, one of them unused
    moved = {
        name: None if v is None else v[boxes] for name, v in data.items() if name not in ("pairs", "union_features")
    }
    moved["image_index"] = images[data["image_index"][boxes]]
    moved["pairs"] = boxes.argsort()[data["pairs"][pairs]]
    moved["union_features"] = data["union_features"][pairs]
    again = model(**moved)
    torch.testing.assert_close(again.object_logits, output.object_logits[boxes])
    assert torch.equal(again.labels, output.labels[boxes])
    torch.testing.assert_close(again.predicate_logits, output.predicate_logits[pairs])
    # Images know nothing of each other.
    rows = torch.nonzero(data["image_index"] == 2).flatten()
    kept = (data["image_index"][data["pairs"][:, 0]] == 2).nonzero().flatten()
    alone = {
        name: None if v is None else v[rows] for name, v in data.items() if name not in ("pairs", "union_features")
    }
    alone["pairs"] = torch.searchsorted(rows, data["pairs"][kept])
    alone["union_features"] = data["union_features"][kept]
    torch.testing.assert_close(model(**alone).predicate_logits, output.predicate_logits[kept])


def test_orders_differ_and_random_one_is_drawn_anew() -> None:
    data = batch()
    outputs = [network("predcls", order=o)(**data).predicate_logits for o in ("leftright", "size", "confidence")]
    assert not torch.allclose(outputs[0], outputs[1]) and not torch.allclose(outputs[1], outputs[2])
    model = network("predcls", order="random")
    drawn = [model(**data).predicate_logits for _ in range(4)]
    assert any(not torch.allclose(drawn[0], other) for other in drawn[1:])
    mirrored = data | {"boxes_xyxy": torch.stack([100 - b for b in data["boxes_xyxy"].T[[2, 1, 0, 3]]], dim=1)}
    mirrored["boxes_xyxy"][:, [1, 3]] = data["boxes_xyxy"][:, [1, 3]]
    model = network("predcls")
    with torch.no_grad():
        model.context.position[1].weight.zero_()  # only the order sees where boxes are
    assert not torch.allclose(model(**mirrored).predicate_logits, model(**data).predicate_logits)


def test_teacher_forcing_and_background() -> None:
    data = batch()
    model = network("sgcls", dropout=0.0)
    data["labels"][[0, 3, 5]] = -1
    model.train()
    for part in model.modules():
        if isinstance(part, (torch.nn.BatchNorm1d, torch.nn.Dropout)):
            part.eval()
    output = model(**data)
    known = data["labels"] >= 0
    assert torch.equal(output.labels[known], data["labels"][known])
    best = output.object_logits[:, 1:].argmax(dim=1)
    assert torch.equal(output.labels[~known], best[~known])
    state, contexts = numpy_state(model.context.decoder), []
    model.context.decoder.register_forward_hook(lambda module, args, result: contexts.append((args, result)))
    model(**data)
    (inputs, packing, guide), (logits, labels) = contexts[0]
    for image in range(3):
        rows = [i for i, row in enumerate(packing.rows.tolist()) if data["image_index"][row] == image]
        expected = reference_motifs.decode(inputs[rows].detach().numpy(), state, given=guide[rows].tolist())
        np.testing.assert_allclose(logits[rows].detach().numpy(), expected[0], atol=1e-10)
        assert labels[rows].tolist() == expected[1]


def test_decoder_of_no_objects_and_gradients() -> None:
    decoder = shaken(LabelDecoder(3, 2, torch.randn(C + 2, 2)))
    packing = Packing.by_key(torch.zeros(0, dtype=torch.int64), torch.zeros(0))
    logits, labels = decoder(torch.zeros(0, 3, dtype=F64), packing)
    assert logits.shape == (0, C + 1) and labels.shape == (0,)
    packing = Packing.by_key(torch.tensor([0, 0, 1]), torch.tensor([1.0, 0, 0]))
    contexts = torch.randn(3, 3, dtype=F64, requires_grad=True)
    guide = torch.tensor([1, 2, 0])
    assert torch.autograd.gradcheck(lambda x: decoder(x, packing, guide)[0], contexts)
    assert torch.autograd.gradcheck(
        lambda *_: decoder(contexts.detach(), packing, guide)[0], tuple(decoder.parameters())
    )


def class_boxes(seed: int, n: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = (12 * torch.rand(n, C, 2, generator=generator)).round()
    return torch.cat([corner, corner + 8 + (6 * torch.rand(n, C, 2, generator=generator)).round()], dim=2)


def test_suppression_against_loops() -> None:
    """Suppression changes labels, image by image."""
    image = torch.tensor([0, 1, 0, 0, 1, 0, 0, 1])
    changed = 0
    for seed in range(20):
        logits, boxes = 2 * torch.randn(8, C + 1, generator=torch.Generator().manual_seed(seed)), class_boxes(seed, 8)
        labels = suppressed_labels(logits, boxes, image)
        separate = separately_suppressed_labels(logits, boxes, image)
        for number in (0, 1):
            rows = torch.nonzero(image == number).flatten()
            of_image = logits[rows].double().numpy(), boxes[rows].tolist()
            assert labels[rows].tolist() == reference_motifs.suppressed(*of_image)
            probabilities = reference_motifs.softmax(of_image[0])[:, 1:]
            for c in range(C):
                kept: list[int] = []
                for i in np.argsort(-probabilities[:, c]):
                    if all(reference_motifs.iou(of_image[1][i][c], of_image[1][j][c]) <= 0.3 for j in kept):
                        kept.append(int(i))
                probabilities[[i for i in range(len(rows)) if i not in kept], c] = 0
            assert separate[rows].tolist() == probabilities.argmax(axis=1).tolist()
        changed += int((labels != logits[:, 1:].argmax(dim=1)).sum())
    assert changed > 20


def test_sgdet_suppresses_in_tests_only() -> None:
    data = batch() | {"labels": None}
    boxes = class_boxes(0, 11)
    model = network("sgdet", dropout=0.0)
    output = model(**data, class_boxes_xyxy=boxes)
    expected = suppressed_labels(output.object_logits, boxes, data["image_index"])
    assert torch.equal(output.labels, expected)
    assert not torch.equal(output.labels, model(**data).labels)
    trained = model.train()(**data, class_boxes_xyxy=boxes)
    greedy = model(**data)
    assert trained.labels.shape == greedy.labels.shape  # no suppression: batch norm alone moves numbers
    plain = network("sgdet", object_layers=0, edge_layers=0)
    output = plain(**data, class_boxes_xyxy=boxes)
    assert torch.equal(output.labels, separately_suppressed_labels(output.object_logits, boxes, data["image_index"]))


def test_without_context_every_object_stands_alone() -> None:
    data = batch()
    model = network("sgcls", object_layers=0, edge_layers=0)
    unlabelled = data | {"labels": None}
    output = model(**unlabelled)
    assert torch.equal(output.labels, output.object_logits[:, 1:].argmax(dim=1))
    changed = unlabelled | {"features": data["features"].index_fill(0, torch.tensor([4]), 9.0)}
    others = torch.arange(11) != 4
    assert torch.equal(model(**changed).object_logits[others], output.object_logits[others])
    ends = model.edge_ends(output.labels + 1).unflatten(1, (2, UNION))
    subject, obj = data["pairs"].T
    product = ends[subject, 0] * ends[obj, 1] * data["union_features"]
    expected = model.predicates(product) + model.frequency(output.labels[subject] * C + output.labels[obj])
    torch.testing.assert_close(output.predicate_logits, expected)


def test_no_union_features_no_frequencies_no_features() -> None:
    data = batch()
    model = network("predcls", bias=None)
    ones = data | {"union_features": torch.ones_like(data["union_features"])}
    without = data | {"union_features": None}
    torch.testing.assert_close(model(**without).predicate_logits, model(**ones).predicate_logits)
    bare = MotifsNetwork(P, 0, UNION, torch.randn(C + 1, 3), torch.randn(C + 2, 3), None, hidden_dim=4).double().eval()
    empty = data | {"features": torch.zeros(11, 0, dtype=F64), "union_features": None}
    assert bare(**empty).predicate_logits.shape == (len(data["pairs"]), P + 1)


def test_no_gradient_reaches_the_detector_and_all_parameters_learn() -> None:
    data = batch()
    model = network("sgcls").train()
    data["detector_logits"].requires_grad_()
    output = model(**data)
    (output.predicate_logits.square().sum() + output.object_logits.square().sum()).backward()
    assert data["detector_logits"].grad is None
    assert all(p.grad is not None and (p.grad != 0).any() for p in model.parameters())


def test_union_masks() -> None:
    masks = UnionMasks(channels=8, size=7).double()
    boxes = [batch(seed)["boxes_xyxy"] for seed in (0, 1)]
    out = masks(*boxes)
    assert out.shape == (11, 8, 7, 7) and masks.drawn_size == 27
    drawn = np.array([reference_motifs.rectangles(s, o, 27) for s, o in zip(*(b.tolist() for b in boxes), strict=True)])
    torch.testing.assert_close(out, masks.conv(torch.from_numpy(drawn) - 0.5))
    kinds = [type(m).__name__ for m in masks.conv]
    assert kinds == ["Conv2d", "ReLU", "BatchNorm2d", "MaxPool2d", "Conv2d", "ReLU", "BatchNorm2d"]


def test_bad_settings_and_labels() -> None:
    data = batch()
    with pytest.raises(ValueError, match="mode predcls needs the label of every box"):
        network("predcls")(**data | {"labels": None})
    with pytest.raises(ValueError, match="mode predcls needs the label"):
        network("predcls")(**data | {"labels": data["labels"] - 1})
    with pytest.raises(ValueError, match="must not see labels"):
        network("sgcls")(**data)
    with pytest.raises(ValueError, match="mode must be one of"):
        network("phrcls")
    with pytest.raises(ValueError, match="order must be one of"):
        network("predcls", order="topdown")
    with pytest.raises(ValueError, match="needs object_layers > 0"):
        network("predcls", object_layers=0)
    with pytest.raises(ValueError, match=r"frequency_bias must have shape \[4, 4, 4\]"):
        network("predcls", bias=torch.zeros(C, C, P))
    with pytest.raises(ValueError, match=r"C \+ 1 and C \+ 2 rows"):
        MotifsNetwork(P, 0, UNION, torch.randn(5, 2), torch.randn(5, 2), None)
