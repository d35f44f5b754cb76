from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from data_modules.cifar import CIFARDataModule
from data_modules.errors import DataError
from data_modules.label_noise import (
    LabelNoise,
    add_noise,
    coarse_groups,
    consecutive_groups,
    load_noisy_labels,
    save_noisy_labels,
)
from data_modules.synthetic.cifar import write_cifar_world

LABELS = np.random.default_rng(0).integers(0, 100, 50_000)
COARSE_OF = np.random.default_rng(1).permutation(np.repeat(np.arange(20), 5))


def noise(probability: float = 0.6, groups: Any = "official_consecutive", seed: int = 0) -> LabelNoise:
    return LabelNoise(probability, groups, seed)


def groups_of(kind: str) -> NDArray[np.int64]:
    return coarse_groups(COARSE_OF) if kind == "coarse" else consecutive_groups(100)


def test_groups() -> None:
    assert consecutive_groups(100)[1].tolist() == [5, 6, 7, 8, 9]
    for coarse, fine in enumerate(coarse_groups(COARSE_OF)):
        assert fine.tolist() == [c for c in range(100) if COARSE_OF[c] == coarse]
    with pytest.raises(ValueError, match="12 classes don't make whole groups of 5"):
        consecutive_groups(12)
    with pytest.raises(ValueError, match="from 1 to 2 fine classes"):
        coarse_groups(np.array([0, 0, 1]))


def test_consecutive_noise_is_that_of_the_official_code() -> None:
    # The oracle draws from the global legacy generator, first all offsets and then all decisions, label by label.
    np.random.seed(3)  # noqa: NPY002
    offsets = np.random.choice(5, size=50_000)  # noqa: NPY002
    redrawn = np.random.binomial(1, 0.4, size=50_000)  # noqa: NPY002
    expected = [y - y % 5 + r if b else y for y, r, b in zip(LABELS.tolist(), offsets, redrawn, strict=True)]
    assert add_noise(LABELS, consecutive_groups(100), noise(0.4, seed=3)).tolist() == expected


def test_coarse_noise_draws_from_the_coarse_class_alone() -> None:
    np.random.seed(3)  # noqa: NPY002
    offsets = np.random.choice(5, size=50_000)  # noqa: NPY002
    redrawn = np.random.binomial(1, 0.4, size=50_000)  # noqa: NPY002
    members = [[c for c in range(100) if COARSE_OF[c] == coarse] for coarse in range(20)]
    expected = [members[COARSE_OF[y]][r] if b else y for y, r, b in zip(LABELS.tolist(), offsets, redrawn, strict=True)]
    assert add_noise(LABELS, groups_of("coarse"), noise(0.4, "coarse", 3)).tolist() == expected


@pytest.mark.parametrize("kind", ["official_consecutive", "coarse"])
@pytest.mark.parametrize("probability", [0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
def test_four_fifths_of_the_drawn_labels_change(kind: str, probability: float) -> None:
    noisy = add_noise(LABELS, groups_of(kind), noise(probability, kind))
    changed = (noisy != LABELS).mean()
    assert changed == pytest.approx(0.8 * probability, abs=4 * (0.25 / 50_000) ** 0.5)
    group = {int(c): g for g, row in enumerate(groups_of(kind)) for c in row}
    assert all(group[a] == group[b] for a, b in zip(LABELS.tolist(), noisy.tolist(), strict=True))


def test_full_noise_is_uniform_within_the_group() -> None:
    noisy = add_noise(LABELS, consecutive_groups(100), noise(1.0))
    counts = np.zeros((5, 5))
    np.add.at(counts, (LABELS % 5, noisy % 5), 1)
    assert (abs(counts - 2000) < 6 * 2000**0.5).all()


def test_the_seed_alone_decides() -> None:
    groups = consecutive_groups(100)
    np.random.seed(1)  # noqa: NPY002
    first = add_noise(LABELS, groups, noise())
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    assert np.array_equal(add_noise(LABELS, groups, noise()), first)
    assert (np.random.get_state()[1] == state).all()  # noqa: NPY002
    assert not np.array_equal(add_noise(LABELS, groups, noise(seed=1)), first)


# In the DataModule


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("generated") / "cifar100"
    return write_cifar_world(root, dataset=100, train_images=400, test_images=100)


def make(root: Path, **options: Any) -> CIFARDataModule:
    return CIFARDataModule(root, **({"batch_size": 50, "seed": 0, "dataset": 100, "val_images": 100} | options))


def labels_of(loader: Any) -> dict[int, int]:
    return {int(i): int(y) for b in loader for i, y in zip(b.index, b.labels, strict=True)}


@pytest.mark.parametrize("resident", [False, True])
@pytest.mark.parametrize("groups", ["official_consecutive", "coarse"])
def test_only_training_labels_are_noisy(world: Path, groups: Any, resident: bool) -> None:
    clean = make(world, resident=resident)
    noisy = make(world, noise=1.0, noise_groups=groups, resident=resident)
    before, after = labels_of(clean.train_dataloader()), labels_of(noisy.train_dataloader())
    assert before.keys() == after.keys()
    changed = [i for i in before if before[i] != after[i]]
    assert 0.7 < len(changed) / 300 < 0.9
    group = noisy.coarse_of if groups == "coarse" else np.arange(100) // 5
    assert all(group[before[i]] == group[after[i]] for i in before)
    assert noisy.provenance()["noise"]["changed_fraction"] == pytest.approx(len(changed) / 300)
    assert np.array_equal(noisy.clean_labels, clean.split("train").labels)
    for name in ("val_dataloader", "test_dataloader"):
        assert labels_of(getattr(noisy, name)()) == labels_of(getattr(clean, name)())


def test_noise_stays_the_same_over_epochs_runs_and_splits(world: Path) -> None:
    module = make(world, noise=0.6)
    loader = module.train_dataloader()
    first = labels_of(loader)
    assert labels_of(loader) == first
    assert labels_of(make(world, noise=0.6, seed=9).train_dataloader()) == first
    other = labels_of(make(world, noise=0.6, split="smooth_topk").train_dataloader())
    assert all(other[i] == first[i] for i in other.keys() & first.keys())
    assert labels_of(make(world, noise=0.6, noise_seed=1).train_dataloader()) != first


def test_saved_labels_come_back(world: Path, tmp_path: Path) -> None:
    path = tmp_path / "noisy" / "labels.npz"
    drawn = make(world, noise=0.6, noise_groups="coarse", noise_seed=4)
    drawn.save_noisy_labels(path)
    assert [p.name for p in path.parent.iterdir()] == ["labels.npz"]
    options = {"noise": 0.6, "noise_groups": "coarse", "noise_seed": 4, "noisy_labels": path}
    loaded = make(world, **options)
    assert np.array_equal(loaded.split("train").labels, drawn.split("train").labels)
    # The file decides, not another draw.
    first = int(drawn.split("train").rows[0])
    changed = drawn._noisy.copy()
    changed[first] = (changed[first] + 1) % 100
    save_noisy_labels(path, changed, drawn._clean, drawn.noise)
    assert make(world, **options).split("train").labels[0] == changed[first]


@pytest.mark.parametrize("options", [{"noise": 0.4}, {"noise_seed": 1}, {"noise_groups": "coarse"}])
def test_labels_of_other_noise_are_refused(world: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    path = tmp_path / "labels.npz"
    make(world, noise=0.6).save_noisy_labels(path)
    with pytest.raises(DataError, match=r"labels\.npz: holds labels of LabelNoise\(probability=0\.6"):
        make(world, **({"noise": 0.6, "noisy_labels": path} | options)).setup()


def saved(path: Path, **changes: Any) -> None:
    save_noisy_labels(path, LABELS, LABELS, noise())
    with np.load(path) as content:
        entries = dict(content) | changes
    np.savez(path, **{k: v for k, v in entries.items() if v is not None})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: None, "no such file; draw the labels and save them there first"),
        (lambda p: p.write_bytes(b"PK\x03\x04 nothing"), "not a readable file"),
        (lambda p: p.write_bytes(b""), "not a readable file"),
        (lambda p: np.savez(p, noisy=np.array([{}], dtype=object)), "not a readable file"),
        (lambda p: saved(p, noisy=None), "not a readable file.*noisy"),
        (lambda p: saved(p, seed=None), "not a readable file.*seed"),
        (lambda p: saved(p, groups=np.array("fine")), "not a readable file.*noise_groups='fine'"),
        (lambda p: saved(p, noisy=LABELS[:-1]), "was made for other labels"),
        (lambda p: save_noisy_labels(p, LABELS, LABELS[::-1], noise()), "for these in another order"),
        (lambda p: saved(p, noisy=LABELS.astype(np.float64)), "noisy: expected int64 from 0 to 99"),
        (lambda p: saved(p, noisy=LABELS + 1), "noisy: expected int64 from 0 to 99"),
        (lambda p: saved(p, noisy=LABELS - 1), "noisy: expected int64 from 0 to 99"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, damage: Callable[[Path], Any], message: str) -> None:
    path = tmp_path / "labels.npz"
    damage(path)
    with pytest.raises(DataError, match=rf"labels\.npz: .*{message}"):
        load_noisy_labels(path, LABELS, noise())
