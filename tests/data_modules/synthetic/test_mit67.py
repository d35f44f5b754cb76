from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_modules.errors import DataError
from data_modules.mit67 import MIT67DataModule
from data_modules.synthetic.mit67 import write_mit67_world
from data_modules.synthetic.textures import family_of


def checksums(root: Path) -> dict[str, str]:
    files = (p for p in sorted(root.rglob("*")) if p.is_file())
    return {p.relative_to(root).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


SIZES = {"num_classes": 6, "train_per_class": 24, "test_per_class": 8, "short_side": 32}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mit67_world(tmp_path_factory.mktemp("w") / "mit67", **SIZES)


def test_the_layout_is_the_data_set_s(world: Path) -> None:
    assert {p.name for p in world.iterdir()} == {"Images", "TrainImages.txt", "TestImages.txt", "manifest.json"}
    lists = {}
    for name, count in (("TrainImages.txt", 24), ("TestImages.txt", 8)):
        text = (world / name).read_text()
        assert not text.endswith("\n")
        lists[name] = text.split("\n")
        assert lists[name] != sorted(lists[name])
        assert set(Counter(line.split("/")[0] for line in lists[name]).values()) == {count}
    listed = {line for lines in lists.values() for line in lines}
    assert len(listed) == 6 * 32
    found = {p.relative_to(world / "Images").as_posix() for p in (world / "Images").rglob("*.jpg")}
    assert listed < found
    assert len(found - listed) == 6
    assert any(" " in name for name in listed)


def test_images_have_the_data_set_s_oddities(world: Path) -> None:
    kinds = Counter()
    sizes = set()
    for path in (world / "Images").rglob("*.jpg"):
        with Image.open(path) as image:
            kinds[image.format, image.mode] += 1
            sizes.add(image.size)
            assert min(image.size) == 32
            assert max(image.size) <= 48
    assert set(kinds) == {("JPEG", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "RGB"), ("GIF", "P")}
    assert len(sizes) > 10
    assert any(w > h for w, h in sizes)
    assert any(w < h for w, h in sizes)


def test_the_same_parameters_give_the_same_bytes(world: Path, tmp_path: Path) -> None:
    again = write_mit67_world(tmp_path / "again", **SIZES)
    assert checksums(again) == checksums(world)
    other = write_mit67_world(tmp_path / "other", seed=1, **SIZES)
    assert (other / "TrainImages.txt").read_text() != (world / "TrainImages.txt").read_text()
    with pytest.raises(DataError, match="holds something else than the world"):
        write_mit67_world(again, seed=1, **SIZES)


@pytest.mark.parametrize(
    "wrong", [{"num_classes": 0}, {"train_per_class": 0}, {"test_per_class": 0}, {"seed": -1}, {"short_side": 7}]
)
def test_impossible_parameters_are_refused(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="1 or more classes"):
        write_mit67_world(tmp_path / "w", **wrong)


def test_labels_follow_from_the_pictures(world: Path) -> None:
    module = MIT67DataModule(world, batch_size=16, seed=0, size="crop224", augment=False)

    def small(loader: Any) -> tuple[np.ndarray, np.ndarray]:
        batches = list(loader)
        images = np.concatenate([b.images[:, :, ::8, ::8].numpy() for b in batches])
        return images, np.concatenate([b.labels.numpy() for b in batches])

    (images, labels), (test_images, test_labels) = small(module.train_dataloader()), small(module.test_dataloader())
    means = np.stack([images[labels == c].mean(axis=0) for c in range(6)])
    predicted = np.array([((means - image) ** 2).sum(axis=(1, 2, 3)).argmin() for image in test_images])
    families = family_of(6)
    wrong = predicted != test_labels
    assert (predicted == test_labels).mean() > 0.3  # chance is 1 in 6
    assert (families[predicted] == families[test_labels]).mean() > 0.75
    assert (families[predicted] == families[test_labels])[wrong].mean() > 0.6  # chance is 2 in 5
