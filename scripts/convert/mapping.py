r"""Rename, reshape and check the tensors of somebody else's checkpoint, so that a module of ours can load them.

A converter is a list of rules and a module of the right shape:

    result = convert(read_checkpoint(path), module.state_dict(), [
        Rule(r"Conv_Body\.convs\.(\d+\.\w+)", r"body.features.\1"),
        Rule(r"rpn_head\.conv\.2\.bias", "rpn.cls_logits.bias", objectness),  # one source may fill several targets
    ], ignored=[r".*num_batches_tracked"], unfilled=[r"relations\..*"], where=str(path))
    module.load_state_dict(result.state, strict=not result.unfilled)
    print(result.report())
"""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_modules.errors import DataError

Change = Callable[[Tensor], Tensor]
# NumPy's numbers, which old training scripts left beside the tensors; all else that isn't a tensor is refused.
NUMBERS: list[Any] = [
    *((np.float64(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8")),
]


@dataclass(frozen=True)
class Rule:
    """What one kind of source tensor becomes.

    Attributes:
        source: Regular expression of the whole source name.
        target: Target name, in which backslash and digit stand for the expression's groups.
        change: Makes the target's values of the source's, for instance `flip_colours`; None keeps them.
    """

    source: str
    target: str
    change: Change | None = None


@dataclass(frozen=True)
class Conversion:
    """Converted tensors and what has no counterpart.

    Attributes:
        state: The filled target tensors by name, in the dtypes and the order of the target.
        ignored: Source tensors that were left out, as allowed.
        unfilled: Target tensors that the source says nothing about, as allowed.
    """

    state: dict[str, Tensor]
    ignored: tuple[str, ...]
    unfilled: tuple[str, ...]

    def report(self) -> str:
        """Return how much was converted, and every tensor that was not, a line each."""
        lines = [f"{len(self.state)} tensors, {sum(t.numel() for t in self.state.values()):,} numbers"]
        lines += [f"left out: {name}" for name in self.ignored]
        lines += [f"not in the source: {name}" for name in self.unfilled]
        return "\n".join(lines)


def convert(
    source: Mapping[str, Tensor],
    target: Mapping[str, Tensor],
    rules: Iterable[Rule],
    *,
    ignored: Sequence[str] = (),
    unfilled: Sequence[str] = (),
    where: str,
) -> Conversion:
    """Fill the tensors of `target` from those of `source`.

    Every rule that matches a source tensor is applied to it.

    Args:
        source: Tensors by name.
        target: Tensors of the wanted names, shapes and dtypes (`module.state_dict()`, which may be on the meta device).
        rules: What becomes of the source tensors.
        ignored: Regular expressions of whole names of source tensors to leave out, even where a rule knows them.
        unfilled: Regular expressions of whole names of target tensors that may stay as they are.
        where: The file, for errors.

    Raises:
        DataError: A source tensor is neither known to a rule nor ignored, a target isn't filled or filled twice, a rule
            leads to a target that doesn't exist, shapes differ, or numbers are not finite; all of them are named.
        ValueError: An expression or a rule's target can't be read.
    """
    patterns = [(_compiled(rule.source), rule) for rule in rules]
    skip, open_targets = ([_compiled(p) for p in group] for group in (ignored, unfilled))
    filled: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    left_out: list[str] = []
    problems: list[str] = []
    for name, tensor in source.items():
        if any(p.fullmatch(name) for p in skip):
            left_out.append(name)
            continue
        matches = [(m, rule) for pattern, rule in patterns if (m := pattern.fullmatch(name))]
        if not matches:
            problems.append(f"{name} {_shape(tensor)}: unknown")
        elif tensor.is_floating_point() and not tensor.isfinite().all():
            problems.append(f"{name}: holds infinite numbers or NaN")
        for match, rule in matches:
            wanted = _expanded(match, rule)
            value = _changed(tensor, rule)
            if value is None:
                problems.append(f"{name} {_shape(tensor)}: is of no shape that could become {wanted}")
            elif wanted not in target:
                problems.append(f"{name}: the model has no {wanted}")
            elif wanted in filled:
                problems.append(f"{name}: {wanted} is already filled by {origin[wanted]}")
            elif value.shape != target[wanted].shape:
                problems.append(f"{name} {_shape(value)}: {wanted} is {_shape(target[wanted])}")
            origin.setdefault(wanted, name)
            filled.setdefault(wanted, tensor if value is None else value)
    empty = [name for name in target if name not in filled]
    problems += [f"{name} {_shape(target[name])}: not in the source" for name in _unknown(empty, open_targets)]
    if problems:
        raise DataError(
            f"{where}: {len(problems)} tensors don't fit; choose the model the file was made with\n  "
            + "\n  ".join(problems)
        )
    # Copies: a file's tensors often share storage, and a view would drag all of it into the saved file.
    state = {name: filled[name].to(target[name].dtype, copy=True).contiguous() for name in target if name in filled}
    return Conversion(state, tuple(left_out), tuple(empty))


def read_checkpoint(path: str | Path, keys: Sequence[str] = ("model", "state_dict")) -> dict[str, Tensor]:
    """Read the tensors of a PyTorch checkpoint, without running any code that it holds.

    Args:
        path: What `torch.save` wrote, in its old format or its new one.
        keys: Where the tensors may lie, if not on the top; the first that is there counts.

    Returns:
        Tensors by name, on the CPU; a common "module." in front, DataParallel's, is gone.

    Raises:
        DataError: The file is missing, truncated, no such file, holds objects other than tensors and numbers, or no
            tensors where `keys` say.
    """
    path = Path(path)
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(NUMBERS):
            warnings.simplefilter("ignore")  # of old formats; they can be read
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; give the path of the downloaded checkpoint") from error
    except pickle.UnpicklingError as error:
        reason = re.search(r"(GLOBAL|operand) \S+", str(error))
        what = reason.group() if reason else "its pickle can't be read"
        raise DataError(
            f"{path}: damaged, or not a checkpoint of tensors and numbers alone ({what}); fetch it again"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError) as error:
        raise DataError(f"{path}: truncated or no PyTorch checkpoint ({error}); fetch it again") from error
    found: Any = content
    if isinstance(content, Mapping):
        found = next((content[key] for key in keys if key in content), content)
    if not isinstance(found, Mapping):
        raise DataError(f"{path}: holds a {type(found).__name__} instead of named tensors; fetch it again")
    tensors = {str(name): value for name, value in found.items() if isinstance(value, Tensor)}
    if not tensors:
        raise DataError(f"{path}: holds no tensors on top or under {list(keys)}, but {list(found)[:5]}; wrong file?")
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    return tensors


def flip_colours(weight: Tensor) -> Tensor:
    """Turn a first convolution `[out, 3, height, width]` for BGR pixels into one for RGB ones, or the other way round.

    Tensors of other shapes, which see no pixels, stay as they are.
    """
    return weight.flip(1) if weight.ndim == 4 and weight.shape[1] == 3 else weight


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from error


def _expanded(match: re.Match[str], rule: Rule) -> str:
    try:
        return match.expand(rule.target)
    except (re.error, IndexError) as error:
        raise ValueError(f"rule {rule.source!r} -> {rule.target!r}: {error}") from error


def _changed(tensor: Tensor, rule: Rule) -> Tensor | None:
    try:
        return tensor if rule.change is None else rule.change(tensor)
    except (RuntimeError, IndexError, ValueError):  # what torch raises where shapes don't fit
        return None


def _unknown(names: Iterable[str], known: Sequence[re.Pattern[str]]) -> list[str]:
    return [name for name in names if not any(p.fullmatch(name) for p in known)]


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "one number"
