from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

from data_modules.errors import DataError
from data_modules.synthetic.vg150 import CORRUPTED, write_vg150_world
from data_modules.synthetic.vg200 import write_vg200_world
from data_modules.synthetic.vg_proposals import write_vg_proposals_world
from data_modules.vg150 import VG150DataModule
from data_modules.vg200 import VG200DataModule

SMALL = {"train_images": 24, "test_images": 12}
Writer = Callable[..., Path]
WRITERS = [(write_vg150_world, SMALL), (write_vg200_world, SMALL), (write_vg_proposals_world, {"num_images": 36})]


def checksums(root: Path) -> dict[str, str]:
    files = (p for p in sorted(root.rglob("*")) if p.is_file())
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def vg150(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vg150_world(tmp_path_factory.mktemp("vg150") / "w", **SMALL)


@pytest.fixture(scope="module")
def vg200(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vg200_world(tmp_path_factory.mktemp("vg200") / "w", **SMALL)


def test_the_layout_of_vg150(vg150: Path) -> None:
    names = {p.name for p in vg150.iterdir()}
    assert names == {"VG-SGG.h5", "VG-SGG-dicts.json", "image_data.json", "VG_100K", "truth.json", "manifest.json"}
    with h5py.File(vg150 / "VG-SGG.h5") as file:
        found = {name: (data.dtype.name, data.shape[1:]) for name, data in file.items()}
        assert found == {
            "boxes_1024": ("int32", (4,)),
            "boxes_512": ("int32", (4,)),
            "labels": ("int32", (1,)),
            "predicates": ("int32", (1,)),
            "relationships": ("int32", (2,)),
            "active_object_mask": ("bool", (1,)),
            "split": ("int32", ()),
            **{f"img_to_{end}_{kind}": ("int32", ()) for end in ("first", "last") for kind in ("box", "rel")},
        }
        assert set(file["split"][()]) == {0, 2}
        assert len(file["split"]) == len(list((vg150 / "VG_100K").iterdir())) == 36
        assert (file["img_to_first_box"][()] == -1).sum() == 2  # one image of either split holds nothing
        assert (file["img_to_first_rel"][()] == -1).sum() > 2
        ratio = file["boxes_1024"][()] / np.maximum(file["boxes_512"][()], 1)
        assert np.median(ratio) == pytest.approx(2, abs=0.05)
        active = np.unique(file["relationships"][()])
        assert np.flatnonzero(file["active_object_mask"][:, 0]).tolist() == active.tolist()
    dicts = json.loads((vg150 / "VG-SGG-dicts.json").read_text())
    assert set(dicts) == {f"{a}_to_{b}" for a, b in (("label", "idx"), ("predicate", "idx"))} | {
        "idx_to_label",
        "idx_to_predicate",
        "object_count",
        "predicate_count",
    }
    assert dicts["idx_to_label"]["1"] == "walker 1"
    assert dicts["label_to_idx"]["walker 1"] == 1
    ids = [e["image_id"] for e in json.loads((vg150 / "image_data.json").read_text())]
    assert ids == sorted(ids)
    assert set(CORRUPTED) < set(ids)
    assert ids[0] not in CORRUPTED  # so that skipping them shifts what follows


def test_the_layout_of_vg200(vg200: Path) -> None:
    with h5py.File(vg200 / "vg1_2_meta.h5") as file:
        assert set(file) == {"gt", "meta"}
        assert set(file["gt"]) == {"train", "test"}
        assert set(file["meta"]) == {"cls", "pre", "imid2path"}
        assert len(file["meta/cls/idx2name"]) == 21
        assert file["meta/cls/idx2name/0"][()] == b"__background__"
        assert file["meta/cls/name2idx/walker 1"][()] == 1
        assert file["meta/pre/idx2name/0"][()] == b"holding"
        assert len(file["meta/imid2path"]) == 36 > len(file["gt/train"]) + len(file["gt/test"])
        paths = {file[f"meta/imid2path/{i}"][()].decode() for i in file["meta/imid2path"]}
        assert {p.split("/")[0] for p in paths} == {"VG_100K", "VG_100K_2"}
        assert all((vg200 / p).is_file() for p in paths)
        for image in file["gt/train"].values():
            assert {name: data.shape[1:] for name, data in image.items()} == {
                "sub_boxes": (4,),
                "obj_boxes": (4,),
                "rlp_labels": (3,),
            }


def test_the_layout_of_visual_genomes_json(tmp_path: Path) -> None:
    root = write_vg_proposals_world(tmp_path / "w", num_images=36)
    assert {p.name for p in root.iterdir()} == {
        "objects.json",
        "relationships.json",
        "image_data.json",
        "VG_100K",
        "truth.json",
        "manifest.json",
    }
    objects, relationships = (json.loads((root / f"{n}.json").read_text()) for n in ("objects", "relationships"))
    entries = [o for image in objects for o in image["objects"]]
    assert {frozenset(o) for o in entries} == {
        frozenset("xywh") | {"object_id", "names", "synsets", "merged_object_ids"}
    }
    known = {n for o in entries for n in (o["object_id"], *o["merged_object_ids"])}
    assert len(known) == len(entries) + sum(len(o["merged_object_ids"]) for o in entries)
    rows = [r for image in relationships for r in image["relationships"]]
    ends = [r[end] for r in rows for end in ("subject", "object")]
    assert {"name" in e for e in ends} == {"names" in e for e in ends} == {True, False}
    assert any(e["object_id"] not in known for e in ends)
    assert any(e["object_id"] in known - {o["object_id"] for o in entries} for e in ends)  # merged ones
    assert any(name != name.strip().lower() for o in entries for name in o["names"])
    assert any(o["w"] == 0 for o in entries)


@pytest.mark.parametrize("make", [VG150DataModule, VG200DataModule], ids=["vg150", "vg200"])
def test_objects_are_drawn_where_the_annotations_say(make: Any, request: pytest.FixtureRequest) -> None:
    root = request.getfixturevalue("vg150" if make is VG150DataModule else "vg200")
    module = make(root, batch_size=8, seed=0, val_images=0)
    checked = missing = 0
    for graph in module.test_graphs:
        path = next(p for p in (root / "VG_100K" / graph.image, root / "VG_100K_2" / graph.image) if p.is_file())
        pixels = np.asarray(Image.open(path)).astype(int)
        vivid = pixels.max(axis=2) - pixels.min(axis=2) > 60  # the ground is grey
        scale = pixels.shape[1] / graph.size_wh[0]
        for x1, y1, x2, y2 in (graph.boxes_xyxy * scale).round().astype(int):
            checked += 1
            inside = vivid[max(y1, 0) : y2, max(x1, 0) : x2]
            # Colour on all sides but for the rim; scaling to 1024 shifts a box by a pixel.
            edges = (inside[:5], inside[-5:], inside[:, :5], inside[:, -5:])
            missing += inside.mean() < 0.2 or not all(edge.any() for edge in edges)
    assert missing <= 0.03 * checked
    assert checked > 30


def test_the_three_worlds_hold_the_same_scenes(vg150: Path, vg200: Path) -> None:
    first = VG150DataModule(vg150, batch_size=8, seed=0, val_images=0, box_frame="image")
    second = VG200DataModule(vg200, batch_size=8, seed=0)
    for a, b in zip(first.train_graphs, second.train_graphs, strict=True):
        assert a.image == b.image
        assert sorted(a.triplets.tolist()) == sorted(b.triplets.tolist())
        outside = (b.boxes_xyxy > np.array([*b.size_wh, *b.size_wh])).any() if b.size_wh else True
        if not outside:
            corners = {tuple(c) for c in b.boxes_xyxy.round().tolist()}
            ends = a.relations[:, [0, 2]].ravel()
            near = [
                min(max(abs(x - y) for x, y in zip(c, box, strict=True)) for c in corners) for box in a.boxes_xyxy[ends]
            ]
            assert max(near) <= 2


@pytest.mark.parametrize(("write", "size"), WRITERS, ids=["vg150", "vg200", "json"])
def test_the_same_parameters_give_the_same_bytes(write: Writer, size: dict[str, int], tmp_path: Path) -> None:
    once, again = (checksums(write(tmp_path / name, **size)) for name in ("once", "again"))
    assert once == again
    without = checksums(write(tmp_path / "without", **size, with_images=False))
    files = {k: v for k, v in once.items() if not k.startswith("VG_100K") and k != "manifest.json"}
    assert {k: v for k, v in without.items() if k != "manifest.json"} == files
    other = checksums(write(tmp_path / "other", seed=1, **size, with_images=False))
    assert all(other[name] != files[name] for name in files)


@pytest.mark.parametrize(("write", "size"), WRITERS, ids=["vg150", "vg200", "json"])
def test_a_complete_world_is_kept_and_anything_else_is_not_touched(
    write: Writer, size: dict[str, int], tmp_path: Path
) -> None:
    root = write(tmp_path / "w", **size, with_images=False)
    before = (root / "image_data.json").stat().st_mtime_ns
    assert write(root, **size, with_images=False) == root
    assert (root / "image_data.json").stat().st_mtime_ns == before
    with pytest.raises(DataError, match="holds something else than the world"):
        write(root, **size, seed=2, with_images=False)
    assert [p.name for p in tmp_path.iterdir()] == ["w"]
    for wrong in ({"num_objects": 4}, {"num_predicates": 256}, {"seed": -1}):
        with pytest.raises(ValueError, match="5 to 255 objects"):
            write(tmp_path / "x", **(size | wrong))


def test_the_releases_numbers_of_classes_are_possible(tmp_path: Path) -> None:
    options = {"train_images": 60, "test_images": 4, "with_images": False}
    first = VG150DataModule(write_vg150_world(tmp_path / "a", num_objects=150, num_predicates=50, **options), 8, 0, 5)
    assert (first.num_objects, first.num_predicates) == (150, 50)
    assert len({int(p) for g in first.train_graphs for p in g.relations[:, 1]}) > 25
    second = VG200DataModule(write_vg200_world(tmp_path / "b", num_objects=200, num_predicates=100, **options), 8, 0)
    assert (second.num_objects, second.num_predicates) == (200, 100)
    second.setup()
