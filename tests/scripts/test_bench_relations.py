"""The benchmarks of the relation evaluators, whose loops measure the same, and of RelDN's step."""

from __future__ import annotations

import dataclasses
import time

import pytest
import torch

from lit_modules import reldn
from lit_modules.pair_sampling import LabelledPairs, sample_pairs
from scripts.bench_relations import CASES, VG, Evaluator, SetSize, generated_images, measure_evaluators
from scripts.bench_step import QUICK, TIMED, Clock, GivenProposals, measure_step, one_step, step_batch, step_module

SMALL = SetSize(detections=14, boxes=9, relations=20, objects=3, predicates=3, k=2)


@pytest.mark.parametrize(("metric", "loop"), [(case[2], case[3]) for case in CASES[:2]])
@pytest.mark.parametrize("seed", range(4))
def test_the_loops_measure_the_same(metric: Evaluator, loop: Evaluator, seed: int) -> None:
    predictions, graphs = generated_images(SMALL, 12, seed)
    graphs[3] = dataclasses.replace(graphs[3], relations=graphs[3].relations[:0])
    graphs[5].boxes_xyxy[:] = graphs[5].boxes_xyxy[0]  # so that triplets and relations compete
    graphs[5].labels[:] = 1
    found, expected = metric(predictions, graphs), loop(predictions, graphs)
    assert expected.keys() <= found.keys()
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, abs=1e-12), key
    assert sum(0.05 < value < 0.95 for value in expected.values()) > 6


def test_a_realistic_image() -> None:
    predictions, graphs = generated_images(VG, 2)
    assert predictions[0].scores.shape == (9900, 1) and graphs[0].relations.shape == (20, 3)
    assert [m.name[:12] for m in measure_evaluators(2, 1, 1)] == ["VG evaluatio", "Open Images ", "Open Images "]


def test_every_part_of_the_step_is_timed() -> None:
    batch, proposals = step_batch(QUICK)
    module = step_module(QUICK)
    module._proposer = GivenProposals(proposals)  # type: ignore[assignment]
    before = [p.clone() for p in module.network.spatial.parameters()]  # type: ignore[union-attr]
    functions = {name: getattr(reldn, name) for name in TIMED}
    clock = Clock(torch.device("cpu"))
    one_step(module, batch, torch.optim.SGD(module.parameters(), lr=0.1), clock)
    assert set(clock.spent) == {*TIMED, "gradient of the losses", "step"}
    assert all(value > 0 for value in clock.spent.values())
    assert sum(clock.spent.values()) - clock.spent["step"] < clock.spent["step"]
    after = module.network.spatial.parameters()  # type: ignore[union-attr]
    assert any(not torch.equal(a, b) for a, b in zip(after, before, strict=True))  # it is trained
    assert functions == {name: getattr(reldn, name) for name in TIMED}


def test_a_slow_loss_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = measure_step((QUICK,), 1, torch.device("cpu"))[0]
    slow = reldn.cross_entropy_per_image

    def spin(*arguments: object) -> object:
        end = time.process_time() + 0.1
        while time.process_time() < end:
            pass
        return slow(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(reldn, "cross_entropy_per_image", spin)
    changed = measure_step((QUICK,), 1, torch.device("cpu"))[0]
    assert changed.ours > plain.ours + 80 and changed.ratio < min(plain.ratio, 2)


def test_the_step_has_as_many_pairs_as_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []

    def noting(labelled: LabelledPairs, *quota: int) -> torch.Tensor:
        chosen = sample_pairs(labelled, *quota)
        drawn.append(len(chosen))
        return chosen

    monkeypatch.setattr(reldn, "sample_pairs", noting)
    measure_step((QUICK,), 1, torch.device("cpu"))
    assert drawn[0] == QUICK.pairs and len(drawn) == 6  # two steps: L0 and the two sides of L1 to L3
