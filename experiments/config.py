"""Plain-dictionary configs: validation against a typed schema, merging, comparing, hashing."""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from experiments.errors import ExperimentError, unknown

Config = dict[str, Any]


def read_yaml(path: Path) -> Config:
    """Return a YAML file's mapping.

    Raises:
        ExperimentError: The file is missing, is not YAML, or its top level is not a mapping.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ExperimentError(f"{path}: no such file") from None
    except yaml.YAMLError as error:
        raise ExperimentError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise ExperimentError(f"{path}: expected a mapping of keys at the top level")
    return content


def merge(*layers: Mapping[str, Any]) -> Config:
    """Return a new config in which later layers win; mappings merge by key, everything else is replaced."""
    merged: Config = {}
    for layer in layers:
        for key, value in layer.items():
            old = merged.get(key)
            if isinstance(value, Mapping):
                merged[key] = merge(old, value) if isinstance(old, Mapping) else merge(value)
            else:
                merged[key] = value
    return merged


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of every leaf, in order."""
    for key, value in config.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from flatten(value, f"{dotted}.")
        else:
            yield dotted, value


def nested(dotted: Mapping[str, Any]) -> Config:
    """Return the nested config of a mapping whose keys may be dotted; the inverse of `flatten`."""
    config: Config = {}
    for key, value in dotted.items():
        *parents, last = str(key).split(".")
        section = config
        for part in parents:
            if not isinstance(section.get(part), dict):
                section[part] = {}
            section = section[part]
        old, new = section.get(last), nested(value) if isinstance(value, Mapping) else value
        section[last] = merge(old, new) if isinstance(old, dict) and isinstance(new, dict) else new
    return config


def differences(ours: Mapping[str, Any], reference: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return (dotted key, reference value, our value) of every leaf that differs; an absent leaf counts as None."""
    mine, theirs = dict(flatten(ours)), dict(flatten(reference))
    keys = sorted(mine.keys() | theirs.keys())
    return [(k, theirs.get(k), mine.get(k)) for k in keys if theirs.get(k) != mine.get(k)]


def parse_assignments(assignments: Iterable[str]) -> Config:
    """Return the override of `key.path=value` words, values read as YAML.

    Raises:
        ExperimentError: A word is no assignment.
    """
    pairs: dict[str, Any] = {}
    for word in assignments:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise ExperimentError(f"override {word!r} is not of the form key.path=value, e.g. trainer.max_epochs=3")
        try:
            pairs[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ExperimentError(f"override {word!r}: the value is not valid YAML: {error}") from None
    return nested(pairs)


def digest(content: object) -> str:
    """Return the 12-digit name of a JSON-like value: SHA-256 of its canonical form (sorted keys, no spaces)."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


class Validator:
    """Checks overrides against one typed schema, each distinct override once."""

    def __init__(self, schema: type, origin: str):
        """Take the dataclass that types the config, and what to call it in errors."""
        self._schema = OmegaConf.structured(schema)
        self._origin = origin
        self._known = [key for key, _ in flatten(self.defaults())]

    def defaults(self) -> Config:
        """Return the schema's default values."""
        container = OmegaConf.to_container(self._schema, throw_on_missing=False)
        assert isinstance(container, dict)
        return {str(k): v for k, v in container.items()}

    def check(self, override: Mapping[str, Any], where: str) -> Config:
        """Return the override with its values converted to the schema's types.

        Raises:
            ExperimentError: A key is unknown or a value has the wrong type; the message names it and where it stands.
        """
        return merge(self._check(json.dumps(override, sort_keys=True, default=str), where))

    @functools.lru_cache(maxsize=4096)  # noqa: B019  a validator lives as long as the process
    def _check(self, override_json: str, where: str) -> Config:
        override = json.loads(override_json)
        try:
            typed = OmegaConf.to_container(OmegaConf.merge(self._schema, override), throw_on_missing=False)
        except ConfigKeyError as error:
            key = error.full_key or str(error.key)
            raise unknown(f"key in {where} of {self._origin}:", key, self._siblings(key)) from None
        except OmegaConfBaseException as error:
            key, reason = error.full_key or ", ".join(override), str(error).split("\n")[0]
            raise ExperimentError(f"{where} of {self._origin}: {key}: {reason}") from None
        assert isinstance(typed, dict)
        leaves = dict(flatten({str(k): v for k, v in typed.items()}))
        checked = {key: leaves.get(key, value) for key, value in flatten(override)}
        for key, value in checked.items():
            if any(
                isinstance(v, float) and not math.isfinite(v) for v in (value if isinstance(value, list) else [value])
            ):
                raise ExperimentError(f"{where} of {self._origin}: {key}: {value} is not a finite number")
        return nested(checked)

    def _siblings(self, key: str) -> list[str]:
        """Return the known keys of the deepest section of `key` that exists."""
        parent = key.rpartition(".")[0]
        while parent and not any(k.startswith(f"{parent}.") for k in self._known):
            parent = parent.rpartition(".")[0]
        prefix = f"{parent}." if parent else ""
        return sorted({prefix + k[len(prefix) :].split(".")[0] for k in self._known if k.startswith(prefix)})
