"""Label noise within groups of classes, as Berrada et al. (2018) and the LML paper add it to CIFAR-100."""

from __future__ import annotations

import hashlib
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from data_modules.errors import DataError

NoiseGroups = Literal["official_consecutive", "coarse"]
REMEDY = "remove the file and save the labels again"


@dataclass(frozen=True, slots=True)
class LabelNoise:
    """What decides the noisy labels.

    Attributes:
        probability: Of drawing a label anew, a fraction. The draw may give the true label again: with groups of 5
            classes, 0.8 times as many labels change.
        groups: Labels are drawn within groups of 5 consecutive labels, as the official code does, or within the
            coarse class, as the papers say. The fine labels of CIFAR-100 are in alphabetical order, so that these
            groups have little in common.
        seed: Seed of the draws, apart from the run's seed.
    """

    probability: float
    groups: NoiseGroups
    seed: int

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError(f"noise={self.probability}: expected a fraction from 0 to 1")
        if self.groups not in ("official_consecutive", "coarse"):
            raise ValueError(f"noise_groups={self.groups!r}: expected 'official_consecutive' or 'coarse'")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"noise_seed={self.seed}: expected an integer from 0 to 2**32 - 1")


def consecutive_groups(num_classes: int, size: int = 5) -> NDArray[np.int64]:
    """Return the classes of each group of consecutive labels, int64 `[num_classes / size, size]`.

    Raises:
        ValueError: The classes don't make whole groups.
    """
    if num_classes % size:
        raise ValueError(f"{num_classes} classes don't make whole groups of {size}")
    return np.arange(num_classes).reshape(-1, size)


def coarse_groups(coarse_of: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the ascending fine classes of each coarse class, int64 `[coarse classes, fine classes in each]`.

    Args:
        coarse_of: The coarse class of each fine class, int64.

    Raises:
        ValueError: The coarse classes differ in size.
    """
    sizes = np.bincount(coarse_of)
    if (sizes != sizes[0]).any():
        raise ValueError(f"the coarse classes have from {sizes.min()} to {sizes.max()} fine classes, not equally many")
    return np.argsort(coarse_of, kind="stable").reshape(len(sizes), -1)


def add_noise(labels: NDArray[np.int64], groups: NDArray[np.int64], noise: LabelNoise) -> NDArray[np.int64]:
    """Draw each label anew, with the noise's probability, uniformly from the group that it belongs to.

    With b ~ Binomial(1, p) and r ~ Uniform{0, ..., S-1} for each label y of a group g_0 < ... < g_(S-1), the noisy
    label is g_r if b = 1, else y; for consecutive groups of 5 that is 5 floor(y / 5) + r. The stream is that of the
    official code, which draws first all r and then all b from NumPy's legacy generator: a run of it with this seed,
    on labels in the same order, gets the same labels if nothing else drew from the generator before.

    Args:
        labels: All labels of the training file, int64 `[N]`; so the noise doesn't depend on how that is split.
        groups: The classes of each group, int64 `[G, S]`; each class is in one of them.
        noise: Probability and seed.

    Returns:
        int64 `[N]`.
    """
    legacy = np.random.RandomState(noise.seed)
    drawn = legacy.choice(groups.shape[1], size=len(labels))
    redraw = legacy.binomial(1, noise.probability, size=len(labels)).astype(bool)
    group_of = np.empty(groups.size, dtype=np.int64)
    group_of[groups] = np.arange(len(groups))[:, None]
    return np.where(redraw, groups[group_of[labels], drawn], labels)


def save_noisy_labels(path: str | Path, noisy: NDArray[np.int64], clean: NDArray[np.int64], noise: LabelNoise) -> None:
    """Save noisy labels and what they were drawn from as an `.npz`, which appears by one rename."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with partial.open("wb") as file:
        np.savez_compressed(
            file,
            noisy=noisy,
            clean_sha256=np.array(_sha256(clean)),
            probability=np.array(noise.probability),
            groups=np.array(noise.groups),
            seed=np.array(noise.seed),
        )
    partial.replace(path)


def load_noisy_labels(path: str | Path, clean: NDArray[np.int64], noise: LabelNoise) -> NDArray[np.int64]:
    """Load noisy labels int64 `[N]` that `save_noisy_labels` wrote for these clean labels and this noise.

    Raises:
        DataError: The file is missing or damaged, or belongs to other labels, to labels in another order, or to other
            noise.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file; draw the labels and save them there first")
    try:
        with np.load(path, allow_pickle=False) as content:
            noisy: NDArray[np.int64] = content["noisy"]
            found = LabelNoise(float(content["probability"]), str(content["groups"]), int(content["seed"]))  # type: ignore[arg-type]
            clean_sha256 = str(content["clean_sha256"])
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: not a readable file of noisy labels ({error}); {REMEDY}") from error
    if found != noise:
        raise DataError(f"{path}: holds labels of {found}, not of {noise}; name another file")
    if clean_sha256 != _sha256(clean) or noisy.shape != clean.shape:
        raise DataError(f"{path}: was made for other labels, or for these in another order; {REMEDY}")
    if noisy.dtype != np.int64 or noisy.min() < 0 or noisy.max() > clean.max():
        raise DataError(f"{path}: noisy: expected int64 from 0 to {clean.max()}; {REMEDY}")
    return noisy


def _sha256(labels: NDArray[np.int64]) -> str:
    return hashlib.sha256(labels.astype("<i8").tobytes()).hexdigest()
