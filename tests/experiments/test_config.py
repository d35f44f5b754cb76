from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from experiments.config import (
    Validator,
    differences,
    digest,
    flatten,
    merge,
    nested,
    parse_assignments,
    read_yaml,
)
from experiments.errors import ExperimentError


@dataclass
class Inner:
    size: int = 3
    rate: float = 0.5
    name: str = "a"
    on: bool = True
    steps: list[float] = field(default_factory=lambda: [0.5])


@dataclass
class Outer:
    method: str = "m"
    inner: Inner = field(default_factory=Inner)


@pytest.fixture(scope="module")
def validator() -> Validator:
    return Validator(Outer, "the paper")


def test_flatten_and_nested_are_inverse() -> None:
    config = {"a": 1, "b": {"c": [1, 2], "d": {"e": None, "f": "x"}}, "g": False}
    flat = {"a": 1, "b.c": [1, 2], "b.d.e": None, "b.d.f": "x", "g": False}
    assert dict(flatten(config)) == flat
    assert nested(flat) == config
    assert nested(config) == config


def test_nested_joins_dotted_and_nested_keys_and_the_last_one_wins() -> None:
    assert nested({"a.b": 1, "a": {"c": 2}, "a.d": 3}) == {"a": {"b": 1, "c": 2, "d": 3}}
    assert nested({"a": {"b": 1}, "a.b": 2}) == {"a": {"b": 2}}
    assert nested({"a": 1, "a.b": 2}) == {"a": {"b": 2}}
    assert nested({"a.b": 2, "a": 1}) == {"a": 1}
    assert nested({"a": {"b.c": 1}, "a.b.d": 2}) == {"a": {"b": {"c": 1, "d": 2}}}
    assert nested({7: 1}) == {"7": 1}  # type: ignore[dict-item]  # YAML reads a bare 7 as a number


def test_nested_leaves_its_argument_alone() -> None:
    given: dict[str, Any] = {"a": {"b": 1}, "a.c": 2}
    nested(given)
    assert given == {"a": {"b": 1}, "a.c": 2}


def test_merge_lets_later_layers_win_by_key_and_replaces_lists() -> None:
    first = {"a": {"b": 1, "c": [1, 2, 3]}, "d": 1}
    second = {"a": {"c": [4]}, "d": {"e": 2}}
    third = {"a": {"f": 5}}
    assert merge(first, second, third) == {"a": {"b": 1, "c": [4], "f": 5}, "d": {"e": 2}}
    assert first == {"a": {"b": 1, "c": [1, 2, 3]}, "d": 1}
    assert merge(first)["a"] is not first["a"]


def test_differences_lists_leaves_in_order_and_absent_ones_as_none() -> None:
    ours = {"z": 1, "a": {"b": 2, "c": [1]}}
    theirs = {"z": 1, "a": {"b": 3}, "k": 0}
    assert differences(ours, theirs) == [("a.b", 3, 2), ("a.c", None, [1]), ("k", 0, None)]
    assert differences(ours, ours) == []


def test_assignments_read_values_as_yaml() -> None:
    words = ["a.b=3", "a.c=[0.5, 1]", "d=text", "e=", "f=x=y", "g=true", "a.b=4"]
    expected = {"a": {"b": 4, "c": [0.5, 1]}, "d": "text", "e": None, "f": "x=y", "g": True}
    assert parse_assignments(words) == expected


@pytest.mark.parametrize("word", ["trainer.max_epochs", "=3", "a=[1, 2", "a={"])
def test_a_word_that_is_no_assignment_is_named(word: str) -> None:
    with pytest.raises(ExperimentError, match="override") as error:
        parse_assignments([word])
    assert repr(word) in str(error.value)


def test_digest_is_stable() -> None:
    """Names of committed runs: if this constant changes, all of them are orphans."""
    assert digest({"b": [1, 2.5, None, True], "a": {"é": "x"}}) == "6a4320349649"
    assert digest({"a": {"é": "x"}, "b": [1, 2.5, None, True]}) == "6a4320349649"
    assert digest({"a": {"é": "x"}, "b": [1, 2.5, None, 1]}) != "6a4320349649"


def test_read_yaml_names_the_file_in_every_error(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match=r"absent\.yaml: no such file"):
        read_yaml(tmp_path / "absent.yaml")
    path = tmp_path / "table1.yaml"
    for content, message in (
        ("- a\n- b\n", "expected a mapping"),
        ("", "expected a mapping"),
        ("a: [1", "not valid YAML"),
    ):
        path.write_text(content)
        with pytest.raises(ExperimentError, match=rf"table1\.yaml: {message}"):
            read_yaml(path)
    path.write_text("a: {b: 1}")
    assert read_yaml(path) == {"a": {"b": 1}}


def test_the_validator_converts_to_the_schemas_types_and_returns_no_other_keys(validator: Validator) -> None:
    override = {"inner": {"rate": "1e-3", "size": "7", "name": 5, "steps": [1, "2e-1"]}}
    checked = validator.check(override, "here")
    assert checked == {"inner": {"rate": 0.001, "size": 7, "name": "5", "steps": [1.0, 0.2]}}
    assert validator.check({}, "here") == {}
    assert validator.defaults() == {
        "method": "m",
        "inner": {"size": 3, "rate": 0.5, "name": "a", "on": True, "steps": [0.5]},
    }


def test_what_the_validator_returns_may_be_changed(validator: Validator) -> None:
    validator.check({"inner": {"size": 4}}, "here")["inner"]["size"] = 5
    assert validator.check({"inner": {"size": 4}}, "here") == {"inner": {"size": 4}}


@pytest.mark.parametrize(
    ("override", "named", "listed"),
    [
        ({"methd": 1}, "'methd'", "inner, method"),
        ({"inner": {"sise": 1}}, "'inner.sise'", "inner.name, inner.on, inner.rate, inner.size, inner.steps"),
        ({"inners": {"size": 1}}, "'inners'", "inner, method"),
    ],
)
def test_an_unknown_key_is_named_with_its_siblings(
    validator: Validator, override: dict[str, Any], named: str, listed: str
) -> None:
    with pytest.raises(ExperimentError) as error:
        validator.check(override, "row A")
    assert str(error.value) == f"unknown key in row A of the paper: {named}; there is: {listed}"


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ({"inner": {"size": "many"}}, "inner.size"),
        ({"inner": {"size": 1.5}}, "inner.size"),
        ({"inner": {"size": True}}, "inner.size"),
        ({"inner": {"size": None}}, "inner.size"),
        ({"inner": {"size": {"x": 1}}}, "inner.size"),
        ({"inner": {"on": "perhaps"}}, "inner.on"),
        ({"inner": {"steps": [1, "a"]}}, r"inner.steps\[1\]"),
        ({"inner": {"steps": 1}}, "inner.steps"),
        ({"inner": {"rate": ".nan"}}, "inner.rate"),
        ({"inner": {"rate": float("inf")}}, "inner.rate"),
        ({"inner": {"steps": [float("nan")]}}, "inner.steps"),
        ({"inner": 5}, "inner"),
        ({"inner": None}, "inner"),
    ],
)
def test_a_value_of_another_type_is_named_with_its_key(
    validator: Validator, override: dict[str, Any], key: str
) -> None:
    with pytest.raises(ExperimentError, match=f"^row A of the paper: {key}: "):
        validator.check(override, "row A")


def test_a_date_is_text(validator: Validator) -> None:
    override = parse_assignments(["inner.name=2020-01-31"])
    assert validator.check(override, "the command line") == {"inner": {"name": "2020-01-31"}}
