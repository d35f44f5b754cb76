from __future__ import annotations

import string
from collections import Counter
from pathlib import Path

import pytest
from torchvision import models
from torchvision.datasets import CIFAR10, CIFAR100, SBDataset
from torchvision.datasets.voc import DATASET_YEAR_DICT

from data_modules.vrd import OFFICIAL_SHA256
from scripts.prepare.catalog import CATALOG, find
from scripts.prepare.check import inspect, is_below
from scripts.prepare.records import Dataset, Remote

LENGTHS = {"md5": 32, "sha1": 40, "sha256": 64}
ENTRIES = pytest.mark.parametrize("entry", CATALOG.values(), ids=CATALOG.keys())


def remote(name: str) -> Remote:
    return next(r for entry in CATALOG.values() for r in entry.remotes if r.name == name)


@ENTRIES
def test_an_entry_is_consistent(entry: Dataset) -> None:
    names = [r.name for r in entry.remotes]
    archives = [u.archive for u in entry.unpacks]
    assert len(set(names)) == len(names)
    assert sorted(archives) == sorted(r.name for r in entry.remotes if r.to is None)
    for r in entry.remotes:
        assert r.urls and all(url.startswith(("http://", "https://")) for url in r.urls)
        assert r.size is None or r.size > 0
        bounds = [u.max_bytes for u in entry.unpacks if u.archive == r.name]
        assert all(bound > (r.size or 0) for bound in bounds)
    for unpack in entry.unpacks:
        assert any(is_below(need.path, unpack.into) for need in entry.needs)
        assert unpack.archive.endswith((".zip", ".tar", ".tgz", ".tar.gz"))
    assert entry.needs and all(name in CATALOG for name in entry.uses)
    for _, target in entry.links:
        assert any(need.path == target for name in entry.uses for need in CATALOG[name].needs)
    assert all(not Path(need.path).is_absolute() and ".." not in Path(need.path).parts for need in entry.needs)
    for checksum in [r.checksum for r in entry.remotes if r.checksum] + [n.checksum for n in entry.needs if n.checksum]:
        assert set(checksum.digest) <= set(string.hexdigits.lower())
        assert len(checksum.digest) == LENGTHS[checksum.algorithm] or entry.name == "torchvision_weights"


@ENTRIES
def test_every_need_has_a_source(entry: Dataset) -> None:
    by_hand = [path for manual in entry.manual for path in manual.paths]
    sources = [*by_hand, *(u.into for u in entry.unpacks), *(r.to for r in entry.remotes if r.to)]
    assert all(any(is_below(need.path, source) for source in sources) for need in entry.needs)


def test_no_two_entries_write_to_one_place() -> None:
    places = Counter(
        place
        for entry in CATALOG.values()
        for place in (*{u.into for u in entry.unpacks}, *(r.to for r in entry.remotes if r.to))
    )
    assert max(places.values()) == 1
    inside = [(a, b) for a in places for b in places if a != b and is_below(a, b)]
    assert inside == [("vg/VG_100K", "vg")]  # whose other entries are files


def test_names_are_found_with_hyphens_too() -> None:
    assert find("tiny-imagenet") is CATALOG["tiny_imagenet"]
    with pytest.raises(ValueError, match="no data set 'imagenet'; there are vrd, vg,"):
        find("imagenet")


@pytest.mark.parametrize(("name", "official"), [("cifar10", CIFAR10), ("cifar100", CIFAR100)])
def test_cifar_is_torchvisions(name: str, official: type[CIFAR10]) -> None:
    (archive,) = CATALOG[name].remotes
    assert (archive.urls[0], archive.name) == (official.url, official.filename)
    assert archive.checksum and archive.checksum.digest == official.tgz_md5
    found = {Path(n.path).name: n.checksum.digest for n in CATALOG[name].needs if n.checksum}
    expected = dict(official.train_list + official.test_list) | {official.meta["filename"]: official.meta["md5"]}
    assert found == expected
    assert {str(Path(n.path).parent) for n in CATALOG[name].needs} == {official.base_folder}


def test_voc_and_sbd_are_torchvisions() -> None:
    for key in ("2007", "2007-test", "2012"):
        official = DATASET_YEAR_DICT[key]
        archive = remote(official["filename"])
        assert archive.urls[0] == official["url"] and archive.checksum
        assert archive.checksum.digest == official["md5"]
        assert any(u.into == official["base_dir"].removeprefix("TrainVal/") for u in CATALOG[f"voc{key[:4]}"].unpacks)
    archive = remote(SBDataset.filename)
    assert archive.urls[0] == SBDataset.url and archive.checksum and archive.checksum.digest == SBDataset.md5


def test_weights_are_torchvisions() -> None:
    official = {
        *(models.AlexNet_Weights.IMAGENET1K_V1.url, models.VGG16_Weights.IMAGENET1K_V1.url),
        *(models.ResNet18_Weights.IMAGENET1K_V1.url, models.ResNet50_Weights.IMAGENET1K_V1.url),
        *(models.ResNet101_Weights.IMAGENET1K_V1.url, models.ResNeXt101_64X4D_Weights.IMAGENET1K_V1.url),
    }
    weights = CATALOG["torchvision_weights"].remotes
    assert {r.urls[0] for r in weights} == official
    assert all(r.checksum and r.name.endswith(f"-{r.checksum.digest}.pth") for r in weights)
    assert all(r.checksum and len(r.checksum.digest) == 8 for r in weights)


def test_vrd_is_what_its_reader_calls_official() -> None:
    found = {n.path.removeprefix("vrd/"): n.checksum.digest for n in CATALOG["vrd"].needs if n.checksum}
    assert {name: found[name] for name in OFFICIAL_SHA256} == OFFICIAL_SHA256


@pytest.mark.real_data
def test_real_data_is_described_as_it_is(data_root: Path) -> None:
    status = inspect(CATALOG["vrd"], data_root, full=True)
    assert not status.changed  # all that is there has the published checksums
    assert not [path for path in status.missing if "sg_dataset" not in path]
    for entry in CATALOG.values():
        described = inspect(entry, data_root)
        present = [need for need in entry.needs if need.path not in described.missing]
        assert all((data_root / need.path).exists() for need in present)
        assert (described.state == "absent") <= (not present)
