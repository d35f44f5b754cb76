from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from data_modules.errors import DataError
from scripts.convert.mapping import Rule, convert, flip_colours, read_checkpoint


def named(**shapes: tuple[int, ...]) -> dict[str, Tensor]:
    return {name.replace("__", "."): torch.rand(shape) for name, shape in shapes.items()}


def test_tensors_are_renamed_and_changed() -> None:
    source = named(Conv__0__w=(4, 2), Conv__1__w=(4,))
    target = {"body.1.weight": torch.zeros(4), "body.0.weight": torch.zeros(2, 4)}
    rules = [Rule(r"Conv\.0\.w", "body.0.weight", lambda t: t.T), Rule(r"Conv\.([1-9])\.w", r"body.\1.weight")]
    result = convert(source, target, rules, where="file")
    assert list(result.state) == list(target)  # the order of the target
    assert torch.equal(result.state["body.0.weight"], source["Conv.0.w"].T)
    assert torch.equal(result.state["body.1.weight"], source["Conv.1.w"])
    assert result.ignored == result.unfilled == ()
    assert result.report() == "2 tensors, 12 numbers"


def test_one_source_may_fill_several_targets() -> None:
    source = named(both=(6,))
    rules = [Rule("both", "first", lambda t: t[:2]), Rule("both", "rest", lambda t: t[2:])]
    state = convert(source, named(first=(2,), rest=(4,)), rules, where="file").state
    assert torch.equal(torch.cat([state["first"], state["rest"]]), source["both"])


def test_what_is_allowed_is_reported_and_left_alone() -> None:
    source = named(a=(1,), a__num_batches=(), c=(3,))
    target = named(a=(1,), head__weight=(2, 2), head__bias=(2,))
    rules = [Rule("a", "a"), Rule("c", "head.bias")]  # c is ignored although a rule knows it, and doesn't fit
    result = convert(source, target, rules, ignored=[r".*num_batches", "c"], unfilled=[r"head\..*"], where="file")
    assert result.ignored == ("a.num_batches", "c") and result.unfilled == ("head.weight", "head.bias")
    assert result.report().splitlines() == [
        "1 tensors, 1 numbers",
        "left out: a.num_batches",
        "left out: c",
        "not in the source: head.weight",
        "not in the source: head.bias",
    ]


def test_every_tensor_that_does_not_fit_is_named_at_once() -> None:
    source = named(unknown=(5, 1), wide=(3,), lost=(1,), twice=(2,), odd=(5,), good=(2,))
    source |= {"broken": torch.tensor([1.0, float("nan")])}
    target = named(wide=(4,), double=(2,), odd=(6,), empty=(7, 8), broken=(2,))
    rules = [
        Rule("wide", "wide"),
        Rule("lost", "nowhere"),
        Rule("twice|good", "double"),
        Rule("odd", "odd", lambda t: t.view(2, 3)),
        Rule("broken", "broken"),
    ]
    with pytest.raises(DataError) as caught:
        convert(source, target, rules, where="some.pth")
    first, *problems = str(caught.value).splitlines()
    assert first.startswith("some.pth: 7 tensors don't fit")
    assert sorted(p.strip() for p in problems) == [
        "broken: holds infinite numbers or NaN",
        "empty 7 x 8: not in the source",
        "good: double is already filled by twice",
        "lost: the model has no nowhere",
        "odd 5: is of no shape that could become odd",
        "unknown 5 x 1: unknown",
        "wide 3: wide is 4",
    ]


def test_expressions_match_whole_names() -> None:
    with pytest.raises(DataError, match="conv10 1: unknown"):
        convert(named(conv10=(1,)), {}, [Rule("conv1", "conv1")], where="file")
    with pytest.raises(DataError, match="conv10 1: unknown"):
        convert(named(conv10=(1,)), {}, [], ignored=["conv1"], where="file")


def test_wrong_rules_are_named() -> None:
    with pytest.raises(ValueError, match=r"'\(' is no regular expression"):
        convert({}, {}, [Rule("(", "x")], where="file")
    with pytest.raises(ValueError, match="rule 'a'"):
        convert(named(a=(1,)), {}, [Rule("a", r"\1")], where="file")


def test_the_result_has_the_targets_types_and_no_foreign_storage() -> None:
    stored = torch.rand(100, dtype=torch.float64)
    with torch.device("meta"):
        target = nn.Linear(2, 3).state_dict()
    rules = [Rule("w", "weight"), Rule("b", "bias")]
    state = convert({"w": stored[:6].view(2, 3).T, "b": stored[:3].half()}, target, rules, where="file").state
    assert {t.dtype for t in state.values()} == {torch.float32}
    assert state["weight"].is_contiguous() and state["weight"].untyped_storage().nbytes() == 6 * 4
    torch.testing.assert_close(state["weight"], stored[:6].view(2, 3).T.float())
    linear = nn.Linear(2, 3)
    linear.load_state_dict(state)
    same = convert({"w": torch.ones(3, 2), "b": torch.ones(3)}, linear.state_dict(), rules, where="file").state
    same["weight"].zero_()
    assert linear.weight.abs().sum() > 0


def test_colours_are_flipped() -> None:
    bgr, weight = torch.rand(1, 3, 5, 5), torch.rand(4, 3, 3, 3)
    torch.testing.assert_close(
        nn.functional.conv2d(bgr, weight), nn.functional.conv2d(bgr.flip(1), flip_colours(weight))
    )
    for other in (torch.rand(4, 8, 3, 3), torch.rand(3), torch.rand(2, 3)):
        assert flip_colours(other) is other


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("wrap", [dict, lambda s: {"model": s, "step": 5}, lambda s: {"state_dict": s, "epoch": 3}])
def test_checkpoints_are_read(tmp_path: Path, new: bool, wrap: Callable[[Any], Any]) -> None:
    state = nn.Linear(2, 3).state_dict()
    path = tmp_path / "model.pth"
    torch.save(wrap(state), path, _use_new_zipfile_serialization=new)
    found = read_checkpoint(path)
    assert list(found) == ["weight", "bias"] and torch.equal(found["weight"], state["weight"])


def test_numbers_beside_the_tensors_do_no_harm_and_data_parallel_names_are_shortened(tmp_path: Path) -> None:
    content = {"model": {"module.a": torch.ones(2), "module.b": torch.ones(1)}, "lr": np.float64(0.1), "n": np.int64(3)}
    torch.save(content, tmp_path / "model.pth", _use_new_zipfile_serialization=False)
    assert list(read_checkpoint(tmp_path / "model.pth")) == ["a", "b"]
    content["model"] = {"module.a": torch.ones(2), "other": torch.ones(1)}
    torch.save(content, tmp_path / "model.pth")
    assert list(read_checkpoint(tmp_path / "model.pth")) == ["module.a", "other"]


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("broken_in",)


@pytest.mark.parametrize("new", [True, False])
def test_no_code_of_a_checkpoint_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new: bool) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": {"a": torch.ones(1)}, "x": Malicious()}, "evil.pth", _use_new_zipfile_serialization=new)
    with pytest.raises(DataError, match=r"evil\.pth: .*mkdir"):
        read_checkpoint("evil.pth")
    assert not (tmp_path / "broken_in").exists()


def test_files_that_are_no_checkpoints_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.pth: no such file"):
        read_checkpoint(tmp_path / "none.pth")
    good = tmp_path / "good.pth"
    torch.save({"a": torch.rand(1000)}, good)
    for name, content in {
        "cut.pth": good.read_bytes()[:2000],
        "empty.pth": b"",
        "text.pth": b"<html>not found</html>",
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=rf"{name}: .*fetch it again"):
            read_checkpoint(tmp_path / name)
    for content in ([1, 2], {"model": {"a": 1}}, 5):
        torch.save(content, tmp_path / "other.pth")
        with pytest.raises(DataError, match=r"other\.pth: holds"):
            read_checkpoint(tmp_path / "other.pth")
