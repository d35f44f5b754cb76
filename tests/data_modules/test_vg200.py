from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from data_modules.detections_file import write_detections
from data_modules.errors import DataError
from data_modules.scene_graph import Detections, ImageRelationBatch
from data_modules.synthetic.vg200 import write_vg200_world
from data_modules.vg200 import VG200DataModule, read_meta_names, read_meta_split

SIZES = {1: (100, 80), 20: (50, 60), 3: (10, 10)}


def write(path: Path, **changes: Any) -> Path:
    """A file with two training images and one test image; `changes` replace or remove (None) data sets."""
    content: dict[str, Any] = {
        "gt/train/20/sub_boxes": np.array([[1, 2, 30, 40]], dtype=np.uint16),
        "gt/train/20/obj_boxes": np.array([[5, 6, 7, 8]], dtype=np.uint16),
        "gt/train/20/rlp_labels": np.array([[200, 0, 1]], dtype=np.uint8),
        "gt/train/3/sub_boxes": np.array([[0, 0, 5, 5], [1, 1, 9, 9]], dtype=np.int32),
        "gt/train/3/obj_boxes": np.array([[1, 1, 9, 9], [0, 0, 5, 5]], dtype=np.int32),
        "gt/train/3/rlp_labels": np.array([[1, 99, 2], [2, 1, 1]], dtype=np.int32),
        "gt/test/1/sub_boxes": np.array([[0.5, 0, 5, 5]]),
        "gt/test/1/obj_boxes": np.array([[0, 0, 120, 5.0]]),
        "gt/test/1/rlp_labels": np.array([[7, 3, 7]]),
    }
    content |= {f"meta/imid2path/{i}": np.bytes_(f"VG_100K{'_2' * (i == 20)}/{i}.jpg") for i in SIZES}
    content |= {f"meta/cls/idx2name/{i}": np.bytes_(f"object {i}") for i in range(201)}
    content |= {f"meta/pre/idx2name/{i}": f"predicate {i}" for i in range(100)}
    content |= {name.replace("__", "/"): value for name, value in changes.items()}
    with h5py.File(path, "w") as file:
        for name, value in content.items():
            if value is not None:
                file[name] = value
    return path


def read(path: Path, split: Any = "train", sizes: dict[int, tuple[int, int]] | None = None) -> Any:
    return read_meta_split(path, split, SIZES if sizes is None else sizes, 200, 100)


def test_objects_are_numbered_from_1_and_predicates_from_0(tmp_path: Path) -> None:
    path = write(tmp_path / "m.h5")
    objects, predicates = read_meta_names(path)
    assert (len(objects), objects[0], objects[-1]) == (200, "object 1", "object 200")
    assert (len(predicates), predicates[0], predicates[-1]) == (100, "predicate 0", "predicate 99")
    first, second = read(path)  # in the order of the numbers, which isn't the file's
    assert (first.image, first.size_wh, second.image, second.size_wh) == ("3.jpg", (10, 10), "20.jpg", (50, 60))
    assert first.boxes_xyxy.tolist() == [[0, 0, 5, 5], [1, 1, 9, 9]]
    assert first.labels.tolist() == [0, 1]
    assert first.relations.tolist() == [[0, 99, 1], [1, 1, 0]]
    assert second.triplets.tolist() == [[199, 0, 0]]
    (test,) = read(path, "test")
    assert test.boxes_xyxy.tolist() == [[0.5, 0, 5, 5], [0, 0, 120, 5]]  # used as it is, past the border
    assert test.labels.tolist() == [6, 6]
    assert (test.boxes_xyxy.dtype, test.labels.dtype, test.relations.dtype) == (np.float32, np.int64, np.int64)


def test_images_without_relations_are_empty_graphs(tmp_path: Path) -> None:
    nothing = np.zeros((0,), dtype=np.int32)
    changes = {f"gt__test__1__{name}": nothing for name in ("sub_boxes", "obj_boxes", "rlp_labels")}
    (graph,) = read(write(tmp_path / "m.h5", **changes), "test")
    assert (graph.boxes_xyxy.shape, graph.relations.shape) == ((0, 4), (0, 3))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gt__train__3__sub_boxes": None}, r"holds no data set 'gt/train/3/sub_boxes'"),
        (
            {"gt__train__3__rlp_labels": np.ones((2, 4))},
            r"gt/train/3/rlp_labels: expected 3 numeric columns, .*\(2, 4\)",
        ),
        ({"gt__train__3__sub_boxes": np.full((2, 4), b"a")}, r"gt/train/3/sub_boxes: expected 4 numeric columns"),
        ({"gt__train__3__sub_boxes": np.ones((1, 4))}, r"gt/train/3: 1 sub_boxes, 2 obj_boxes, 2 rlp_labels"),
        ({"gt__train__20__rlp_labels": np.array([[0, 0, 1]])}, r"gt/train/20: rlp_labels: .* found \[0"),
        ({"gt__train__20__rlp_labels": np.array([[201, 0, 1]])}, r"gt/train/20: rlp_labels: .* found \[201"),
        ({"gt__train__20__rlp_labels": np.array([[1, 100, 1]])}, r"gt/train/20: rlp_labels: .* found \[1.*100"),
        ({"gt__train__20__obj_boxes": np.array([[9, 6, 7, 8]])}, r"gt/train/20: obj_boxes: inverted box .*9"),
        ({"gt__train__20__obj_boxes": np.array([[np.nan, 6, 7, 8]])}, r"gt/train/20: obj_boxes: inverted box .*nan"),
        ({"meta__imid2path__20": None}, r"meta/imid2path/20: expected a name, found None"),
        ({"meta__imid2path__20": 7}, r"meta/imid2path/20: expected a name, found .*7"),
        ({"gt__train__x.jpg__sub_boxes": np.ones((1, 4))}, r"gt/train: expected image numbers"),
    ],
)
def test_a_bad_file_is_named_with_image_and_data_set(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=rf"m\.h5: {message}.*; fetch vg1_2_meta\.h5"):
        read(write(tmp_path / "m.h5", **changes))


def test_missing_parts_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "m.h5", meta__cls__idx2name__7=None)
    with pytest.raises(DataError, match=r"meta/cls/idx2name: expected names numbered from 0 without gaps"):
        read_meta_names(path)
    with pytest.raises(DataError, match=r"gt/train: image_data\.json has no size of \['20'\]"):
        read(path, sizes={1: (9, 9), 3: (9, 9)})
    with h5py.File(path, "r+") as file:
        del file["gt/train"]
    with pytest.raises(DataError, match=r"holds no group 'gt/train'"):
        read(path)
    with h5py.File(path, "r+") as file:
        del file["meta"]
    with pytest.raises(DataError, match=r"holds no group 'meta/imid2path'"):
        read(path, "test")
    with pytest.raises(DataError, match=r"meta/cls/idx2name"):
        read_meta_names(path)
    with pytest.raises(DataError, match=r"gone\.h5: no such file"):
        read(tmp_path / "gone.h5")
    whole = write(path).read_bytes()
    for cut in np.linspace(0, len(whole) - 1, 12).astype(int):
        path.write_bytes(whole[:cut])
        with pytest.raises(DataError, match=r"m\.h5: "):
            read(path)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vg200_world(tmp_path_factory.mktemp("vg200") / "w", train_images=40, test_images=24)


def make(root: Path, **options: Any) -> VG200DataModule:
    module = VG200DataModule(root, **({"batch_size": 4, "seed": 0} | options))
    module.setup()
    return module


def test_splits(world: Path) -> None:
    with h5py.File(world / "vg1_2_meta.h5") as file:
        train, test = (sorted(map(int, file[f"gt/{split}"])) for split in ("train", "test"))
    module = make(world, val_images=5)
    assert [g.image for g in module.val_graphs] == [f"{i}.jpg" for i in train[:5]]
    assert [g.image for g in module.train_graphs] == [f"{i}.jpg" for i in train[5:]]
    assert [g.image for g in module.test_graphs] == [f"{i}.jpg" for i in test]
    assert not set(train) & set(test)
    again = make(world, val_images=5, seed=3)
    assert [g.image for g in again.train_graphs] == [g.image for g in module.train_graphs]
    module.setup()
    assert [g.image for g in make(world).train_graphs] == [f"{i}.jpg" for i in train]
    with pytest.raises(ValueError, match="val_images=37: there are 37 training images"):
        make(world, val_images=37)


def test_batches_from_the_generated_world(world: Path) -> None:
    module = make(world, images="caffenet", image_sides=(100, 140), flip="random", one_predicate_per_pair=True)
    assert (module.num_objects, module.num_predicates) == (20, 12)
    assert module.object_names[0] == "walker 1"  # and not the background
    seen = 0
    for batch in module.train_dataloader():
        assert isinstance(batch, ImageRelationBatch)
        assert batch.images.values.dtype == torch.float32
        assert -125 <= float(batch.images.values.min()) < float(batch.images.values.max()) <= 152
        assert all(100 <= max(shape) <= 140 for shape in batch.images.shapes)
        assert 0 <= int(batch.labels.min()) <= int(batch.labels.max()) < 20
        assert 0 <= int(batch.relations[:, 1].min()) <= int(batch.relations[:, 1].max()) < 12
        seen += len(batch.graphs)
    assert seen == 37
    record = module.provenance()
    assert (record["dataset"], record["official"]) == ("VG200", False)
    assert record["counts"]["boxes_outside_image"] == 1
    assert record["counts"]["train_images"] == 37
    json.dumps(record)


def test_detections_from_files(world: Path, tmp_path: Path) -> None:
    annotated = make(world, val_images=5)
    graphs = annotated.test_graphs + annotated.val_graphs
    sizes = [g.size_wh or (0, 0) for g in graphs]
    records = [
        Detections(np.clip(g.boxes_xyxy, 0, np.array(size * 2, dtype=np.float32)), g.labels, g.labels / 20)
        for g, size in zip(graphs, sizes, strict=True)
    ]
    write_detections(tmp_path / "d.npz", annotated.object_names, [g.image for g in graphs], sizes, records)
    module = make(world, val_images=5, proposals="file", proposals_file=tmp_path / "d.npz", batch_size=64)
    (test,), (val,) = module.test_dataloader(), module.val_dataloader()
    assert (len(test.relations), len(val.relations)) == (0, 0)
    boxes = torch.cat([test.boxes_xyxy, val.boxes_xyxy]).numpy()
    assert np.array_equal(boxes, np.concatenate([r.boxes_xyxy for r in records]))
    assert len(next(iter(module.train_dataloader())).relations) > 0


def test_a_resumed_loader_goes_on(world: Path) -> None:
    options = {"one_predicate_per_pair": True, "flip": "random"}
    loader = make(world, **options).train_dataloader()
    whole = [b.relations.tolist() for _ in range(2) for b in loader]
    module = make(world, **options)
    module.start_step = 13
    assert [b.relations.tolist() for b in module.train_dataloader()] == whole[13:]


def test_an_image_that_does_not_fit(world: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(world, tmp_path / "own"))
    path = own / "image_data.json"
    entries = json.loads(path.read_text())
    for entry in entries:
        entry["width"] += 1
    path.write_text(json.dumps(entries))
    with pytest.raises(DataError, match=r"\.jpg: .* pixels don't fit the annotated size"):
        list(make(own, images="uint8").test_dataloader())
