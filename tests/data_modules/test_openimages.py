from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data_modules.detections_file import write_detections
from data_modules.errors import DataError
from data_modules.openimages import OpenImagesDataModule
from data_modules.openimages_files import read_descriptions, read_image_list, read_relationships
from data_modules.reldn_files import read_detection_annotations
from data_modules.scene_graph import Detections, ImageRelationBatch, SceneGraph
from data_modules.synthetic.openimages import write_openimages_world

HEADER = "ImageID,LabelName1,LabelName2,XMin1,XMax1,YMin1,YMax1,XMin2,XMax2,YMin2,YMax2,RelationshipLabel"
ROWS = [
    "b,/m/2,/m/1,0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,on",
    "a,/m/1,/m/9,0.0,1.0,0.25,0.5,0.0,1.0,0.25,0.5,is",
    "a,/m/1,/m/1,0.0,0.5,0.0,0.5,0.5,1.0,0.5,1.0,holds",
    "b,/m/2,/m/1,0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,holds",
]
KNOWN: tuple[list[str], ...] = (["/m/1", "/m/2"], ["on", "holds"], ["/m/8", "/m/9"])


def write_csv(path: Path, rows: list[str], header: str = HEADER) -> Path:
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def test_rows_are_read_in_the_order_min_max_of_x_then_of_y(tmp_path: Path) -> None:
    rows = read_relationships(write_csv(tmp_path / "r.csv", ROWS), *KNOWN)
    assert rows.images == ["b", "a"]
    assert rows.row_image.tolist() == [0, 1, 0]
    assert rows.boxes[0].tolist() == [[0.1, 0.3, 0.2, 0.4], [0.5, 0.7, 0.6, 0.8]]
    assert rows.triplets.tolist() == [[1, 0, 0], [0, 1, 0], [1, 1, 0]]
    # "is" rows are apart
    assert rows.attribute_image.tolist() == [1]
    assert rows.attribute_boxes.tolist() == [[0.0, 0.25, 1.0, 0.5]]
    assert rows.attributes.tolist() == [[0, 1]]
    older = write_csv(tmp_path / "o.csv", ROWS, HEADER.replace("RelationshipLabel", "RelationLabel"))
    assert read_relationships(older, *KNOWN).triplets.tolist() == rows.triplets.tolist()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a,/m/7,/m/1,0,1,0,1,0,1,0,1,on", r"row 1, LabelName1: '/m/7' isn't in the description files"),
        ("a,/m/1,/m/9,0,1,0,1,0,1,0,1,on", r"row 1, LabelName2: '/m/9' isn't in"),
        ("a,/m/1,/m/1,0,1,0,1,0,1,0,1,is", r"row 1, LabelName2: '/m/1' isn't in"),
        ("a,/m/1,/m/1,0,1,0,1,0,1,0,1,eats", r"row 1, RelationshipLabel: 'eats' isn't in"),
        ("a,/m/1,/m/1,0,1,0,1,0,1,0.9,0.1,on", r"row 1, YMin2: inverted box, greater than YMax2, found '0\.9'"),
        ("a,/m/1,/m/1,0.5,0.2,0,1,0,1,0,1,on", r"row 1, XMin1: inverted box"),
        ("a,/m/1,/m/1,0,1,0,1.01,0,1,0,1,on", r"row 1, YMax1: expected a fraction from 0 to 1, found '1\.01'"),
        ("a,/m/1,/m/1,0,1,0,1,0,x,0,1,on", r"row 1, XMax2: expected a fraction from 0 to 1, found 'x'"),
        ("a,/m/1,/m/1,0,1,0,1,0,,0,1,on", r"row 1, XMax2: expected a fraction from 0 to 1, found ''"),
        ("a,/m/1,/m/1,nan,1,0,1,0,1,0,1,on", r"row 1, XMin1: expected a fraction"),
        ("a,/m/1,/m/1,0,1,0,1,0,1,0,1,on,extra", r"not a readable CSV file"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: str, message: str) -> None:
    with pytest.raises(DataError, match=rf"r\.csv: {message}.*Open Images Challenge"):
        read_relationships(write_csv(tmp_path / "r.csv", [ROWS[0], row]), *KNOWN)


@pytest.mark.parametrize("column", ["ImageID", "LabelName2", "YMin2", "RelationshipLabel"])
def test_a_missing_column_is_named(tmp_path: Path, column: str) -> None:
    with pytest.raises(DataError, match=rf"r\.csv: has no column '{column}'"):
        read_relationships(write_csv(tmp_path / "r.csv", ROWS, HEADER.replace(column, "Other")), *KNOWN)


def test_descriptions_and_lists(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text('/m/2,Cup\n/m/1,"Table, round"\nNA,null\n')
    assert list(read_descriptions(path).items()) == [("/m/2", "Cup"), ("/m/1", "Table, round"), ("NA", "null")]
    for wrong, message in (
        ("/m/1,a\n/m/1,b\n", "row 1: '/m/1' occurs twice"),
        ("/m/1\n", "expected two columns"),
        ("/m/1,\n", "expected two columns"),
        ("", "not a readable CSV file"),
    ):
        path.write_text(wrong)
        with pytest.raises(DataError, match=rf"d\.csv: {message}"):
            read_descriptions(path)
    path.write_bytes(b"\xff\xfe\x00,\x80\n")
    with pytest.raises(DataError, match=r"d\.csv: not a readable CSV file"):
        read_descriptions(path)
    with pytest.raises(DataError, match=r"gone\.csv: no such file"):
        read_descriptions(tmp_path / "gone.csv")
    path.write_text("ImageID\n00af\n0012\n")
    assert read_image_list(path) == ["00af", "0012"]  # never numbers
    path.write_text("Image\n00af\n")
    with pytest.raises(DataError, match="has no column 'ImageID'"):
        read_image_list(path)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_openimages_world(tmp_path_factory.mktemp("oi") / "w", train_images=40, test_images=24)


def make(root: Path, **options: Any) -> OpenImagesDataModule:
    module = OpenImagesDataModule(root, **({"batch_size": 4, "seed": 0} | options))
    module.setup()
    return module


def described(graphs: list[SceneGraph], tolerance: float) -> list[tuple[str, list[list[float]], list[list[int]]]]:
    """Graphs in an order of their own, boxes rounded to a multiple of the tolerance."""
    rows = [(g.image, (g.boxes_xyxy / tolerance).round().tolist(), g.triplets.tolist()) for g in graphs]
    return sorted(rows, key=lambda row: row[0])


def test_all_sources_tell_of_the_same_scenes(world: Path) -> None:
    newer, older, reldn = (make(world, source=s) for s in ("csv2019", "csv2018", "reldn"))
    for side in ("train_graphs", "test_graphs"):
        assert described(getattr(newer, side), 0.01) == described(getattr(older, side), 0.01)
        for a, b in zip(
            sorted(getattr(newer, side), key=lambda g: g.image),
            sorted(getattr(reldn, side), key=lambda g: g.image),
            strict=True,
        ):
            assert (a.image, a.size_wh) == (b.image, b.size_wh)
            assert a.triplets.tolist() == b.triplets.tolist()
            # Pixels from 0 with the last column included, against the edges of the columns.
            np.testing.assert_allclose(a.boxes_xyxy, b.boxes_xyxy + np.array([0, 0, 1, 1]), atol=1e-3)
    assert newer.object_names == older.object_names == reldn.object_names
    assert (newer.num_objects, newer.num_predicates) == (20, 9)
    assert "is" not in newer.predicate_names
    assert reldn.predicate_names == newer.predicate_names


@pytest.mark.parametrize("source", ["csv2019", "csv2018", "reldn"])
def test_splits(world: Path, source: str) -> None:
    module = make(world, source=source)
    train, test = ({g.image for g in side} for side in (module.train_graphs, module.test_graphs))
    assert not train & test
    assert len(train) + len(test) < 64  # some have "is" rows alone, or nothing
    assert all(len(g.relations) for g in [*module.train_graphs, *module.test_graphs])
    first = module.train_graphs
    module.setup("fit")
    assert module.train_graphs is first
    assert module.val_dataloader() == []


def test_attributes_are_kept_apart(world: Path) -> None:
    module = make(world)
    lines = [r.split(",") for r in (world / "challenge-2019-validation-vrd.csv").read_text().splitlines()[1:]]
    marked = [r for r in lines if r[-1] == "is"]
    found = module.test_attributes
    assert list(found.images) == [f"{r[0]}.jpg" for r in marked]
    assert len(marked) > 20
    assert {f"{r[0]}.jpg" for r in marked} - {g.image for g in module.test_graphs}  # images with nothing else
    sizes = {g.image: g.size_wh for g in module.test_graphs}
    checked = 0
    for row, image, box in zip(marked, found.images, found.boxes_xyxy.tolist(), strict=True):
        if image in sizes:
            width, height = sizes[image] or (0, 0)
            fractions = [float(v) for v in (row[3], row[5], row[4], row[6])]
            expected = [f * s for f, s in zip(fractions, (width, height) * 2, strict=True)]
            assert box == pytest.approx(expected, abs=1e-3)
            checked += 1
    assert checked > 10
    assert module.attribute_names[0] == "(made of)Textile"
    assert (found.attributes == found.labels % 5).all()  # what the world says
    assert sum(len(g.relations) for g in module.test_graphs) == len(lines) - len(marked)
    older = make(world, source="csv2018")
    assert sorted(older.test_attributes.images) == sorted(found.images)
    assert len(older.train_attributes.images) == len(module.train_attributes.images)


def test_sizes_are_nominal_where_there_are_no_images(world: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(world, tmp_path / "own"))
    for side in ("train", "validation"):
        shutil.rmtree(own / side)
    with pytest.raises(DataError, match=r'train/\w+\.jpg: no such image; .*image_size="nominal"'):
        make(own)
    module = make(own, image_size="nominal")
    assert all(g.size_wh is None for g in module.test_graphs)
    for a, b in zip(module.test_graphs, make(world).test_graphs, strict=True):
        assert b.size_wh is not None
        np.testing.assert_allclose(a.boxes_xyxy / 1024, b.boxes_xyxy / np.array(b.size_wh * 2), atol=1e-6)
    (batch,) = make(own, image_size="nominal", batch_size=24).test_dataloader()
    assert batch.sizes_wh.unique().tolist() == [1024]
    with_pixels = make(world, image_size="nominal", images="uint8", batch_size=24)
    (batch,) = with_pixels.test_dataloader()  # whatever their sizes
    assert len(batch.images) == len(batch.graphs)


@pytest.mark.parametrize("source", ["csv2019", "reldn"])
def test_batches(world: Path, source: str) -> None:
    options = {"images": "torchvision", "image_sides": (80, 120), "one_predicate_per_pair": True}
    module = make(world, source=source, flip="double", **options)
    total = 0
    for batch in module.train_dataloader():
        assert isinstance(batch, ImageRelationBatch)
        assert batch.images.values.dtype == torch.float32
        assert batch.images.values.abs().max() < 3
        assert all(min(shape[1:]) == 80 or max(shape[1:]) == 120 for shape in batch.images.shapes)
        assert float(batch.boxes_xyxy.min()) >= -1e-3
        last = 1 if source == "reldn" else 0
        assert (batch.boxes_xyxy[:, 2:] <= batch.sizes_wh[batch.image_index] - last + 1e-3).all()
        assert 0 <= int(batch.labels.min()) <= int(batch.labels.max()) < 20
        assert 0 <= int(batch.relations[:, 1].min()) <= int(batch.relations[:, 1].max()) < 9
        assert len(torch.unique(batch.relations[:, ::2], dim=0)) == len(batch.relations)
        total += len(batch.graphs)
    assert total == 2 * len(module.train_graphs)


def test_all_boxes_may_be_nodes(world: Path) -> None:
    related, every = make(world, source="reldn"), make(world, source="reldn", all_boxes=True)
    more = 0
    for a, b in zip(related.train_graphs, every.train_graphs, strict=True):
        assert b.boxes_xyxy[: len(a.labels)].tolist() == a.boxes_xyxy.tolist()
        assert b.relations.tolist() == a.relations.tolist()
        rows = [(*box, label) for box, label in zip(b.boxes_xyxy.tolist(), b.labels.tolist(), strict=True)]
        assert len(set(rows)) == len(rows)
        more += len(b.labels) - len(a.labels)
    assert more > 10
    with pytest.raises(ValueError, match="all_boxes=True"):
        make(world, all_boxes=True)


def test_the_mini_lists_of_reldn(world: Path) -> None:
    full, mini = make(world, source="reldn"), make(world, source="reldn", subset="mini")
    listed = json.loads((world / "rel" / "rel_only_annotations_train_mini.json").read_text())
    assert {g.image for g in mini.train_graphs} == set(listed)
    assert len(listed) < len(full.train_graphs)
    assert [g.image for g in mini.full_train_graphs] == [g.image for g in full.train_graphs]
    assert mini.provenance()["dataset"] == "Open Images VRD (reldn, mini)"


def test_a_mini_of_our_own_is_drawn_so_that_every_class_occurs(world: Path) -> None:
    options = {"subset": "mini", "mini_images": (25, 14)}
    full, mini = make(world), make(world, **options)
    assert (len(mini.train_graphs), len(mini.test_graphs)) == (25, 14)
    for some, everything in ((mini.train_graphs, full.train_graphs), (mini.test_graphs, full.test_graphs)):
        assert {int(v) for g in some for v in g.labels} == {int(v) for g in everything for v in g.labels}
        assert {int(v) for g in some for v in g.relations[:, 1]} == {
            int(v) for g in everything for v in g.relations[:, 1]
        }
        assert {g.image for g in some} < {g.image for g in everything}
    names = [g.image for g in mini.train_graphs]
    assert [g.image for g in make(world, seed=7, **options).train_graphs] == names
    assert [g.image for g in make(world, split_seed=7, **options).train_graphs] != names
    assert len(mini.full_train_graphs) == len(full.train_graphs)
    record = mini.provenance()
    assert (record["dataset"], record["official"]) == ("Open Images VRD (csv2019, re-sampled mini)", False)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"source": "json"}, "source='json'"), ({"subset": "tiny"}, "subset='tiny'"), ({"image_size": "x"}, "image_size")],
)
def test_unknown_arguments_are_refused(world: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(world, **options)


def test_an_image_in_two_splits_is_found(world: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(world, tmp_path / "own"))
    rows = [r for r in (own / "challenge-2019-validation-vrd.csv").read_text().splitlines() if not r.endswith(",is")]
    with (own / "challenge-2019-train-vrd.csv").open("a") as file:
        file.write(rows[1] + "\n")
    with pytest.raises(DataError, match=rf"1 images are in both train and test, as '{rows[1][:16]}\.jpg'"):
        make(own)
    (own / "challenge-2018-image-ids-valset-vrd.csv").write_text("ImageID\nother\n")
    with pytest.raises(DataError, match=r"valset-vrd\.csv: lists no image of challenge-2018-train-vrd\.csv"):
        make(own, source="csv2018")


def test_detections_of_other_classes_are_found(world: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(world, tmp_path / "own"))
    path = own / "rel" / "detections_val.json"
    content = json.loads(path.read_text())
    content["categories"][0]["name"] = "other"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"detections_val\.json: its categories differ"):
        make(own, source="reldn")


def test_a_damaged_image_is_named(world: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(world, tmp_path / "own"))
    module = make(own, images="uint8")
    path = own / "validation" / module.test_graphs[2].image
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=rf"{path.name}: truncated or damaged image .*Open Images into train/"):
        list(module.test_dataloader())
    Image.new("RGB", (9, 9)).save(path)
    with pytest.raises(DataError, match=r"9 x 9 pixels don't fit"):
        list(module.test_dataloader())


@pytest.mark.parametrize("options", [{}, {"image_size": "nominal"}, {"source": "reldn"}, {"source": "csv2018"}])
def test_detections_from_files(world: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    annotated = make(world)
    graphs, rng = annotated.test_graphs, np.random.default_rng(0)
    records = [Detections(g.boxes_xyxy, g.labels, rng.random(len(g.labels))) for g in graphs]
    sizes = [g.size_wh or (0, 0) for g in graphs]
    path = tmp_path / "d.npz"
    write_detections(path, annotated.object_names, [g.image for g in graphs], sizes, records)
    module = make(world, proposals="file", proposals_file=path, batch_size=64, **options)
    (batch,) = module.test_dataloader()
    assert batch.relations.shape == (0, 3)
    by_name = {g.image: (s, r) for g, s, r in zip(graphs, sizes, records, strict=True)}
    for i, (graph, found) in enumerate(zip(module.test_graphs, module.detections, strict=True)):
        size, record = by_name[graph.image]
        scale = np.array((1024, 1024) if graph.size_wh is None else size) / np.array(size)
        np.testing.assert_allclose(found.boxes_xyxy, record.boxes_xyxy * np.tile(scale, 2), rtol=1e-5)
        assert np.array_equal(batch.boxes_xyxy[batch.image_index == i].numpy(), found.boxes_xyxy)
        assert found.scores.tolist() == record.scores.tolist()
    assert len(make(world, **options).train_graphs) == len(module.train_graphs)


def test_a_coco_list_of_detections_uses_reldn_s_ids(world: Path, tmp_path: Path) -> None:
    content = json.loads((world / "rel" / "detections_val.json").read_text())
    rows = [
        {"image_id": a["image_id"], "category_id": a["category_id"], "bbox": a["bbox"], "score": 0.5}
        for a in content["annotations"]
    ]
    (tmp_path / "d.json").write_text(json.dumps(rows))
    options = {"proposals": "file", "proposals_file": tmp_path / "d.json"}
    module = make(world, source="reldn", **options)
    annotations = read_detection_annotations(world / "rel" / "detections_val.json")
    for graph, found in zip(module.test_graphs, module.detections, strict=True):
        assert np.array_equal(found.boxes_xyxy, annotations.boxes_xyxy[graph.image])
        assert np.array_equal(found.labels, annotations.labels[graph.image])
    assert sum(len(d.labels) for d in module.detections) > 30
    indexed = make(world, proposals_index=world / "rel" / "detections_val.json", **options)
    assert [g.image for g in indexed.test_graphs] != []
    with pytest.raises(ValueError, match="proposals_index"):
        make(world, **options)


def test_a_resumed_loader_goes_on(world: Path) -> None:
    loader = make(world, flip="random").train_dataloader()
    whole = [b.boxes_xyxy.tolist() for _ in range(2) for b in loader]
    module = make(world, flip="random")
    module.start_step = 11
    assert [b.boxes_xyxy.tolist() for b in module.train_dataloader()] == whole[11:]


@pytest.mark.real_data
def test_the_real_validation_file_has_the_known_counts(data_root: Path) -> None:
    module = OpenImagesDataModule(data_root / "openimages-vrd", batch_size=64, seed=0, image_size="nominal")
    module.setup("test")  # the training file isn't there
    names = module.attribute_names
    assert (module.num_objects, module.num_predicates, len(names)) == (57, 9, 5)
    expected = ["at", "on", "holds", "plays", "interacts_with", "wears", "inside_of", "under", "hits"]
    assert module.predicate_names == expected
    graphs, attributes = module.test_graphs, module.test_attributes
    relations = sum(len(g.relations) for g in graphs)
    assert (relations + len(attributes.images), relations) == (3_991, 1_418)
    assert len({g.image for g in graphs} | set(attributes.images)) == 1_537
    assert len(graphs) == 625
    record = module.provenance()
    assert record["official"] is True
    counted = {"test_images": 625, "test_objects": 1995, "test_relations": 1418, "boxes_outside_image": 0}
    assert record["counts"] == counted
    batches = list(module.test_dataloader())
    assert sum(len(b.relations) for b in batches) == 1_418
    boxes = torch.cat([b.boxes_xyxy for b in batches])
    assert 0 <= float(boxes.min()) < float(boxes.max()) <= 1024
    assert (boxes[:, :2] < boxes[:, 2:]).all()
    with pytest.raises(DataError, match=r"challenge-2019-train-vrd\.csv: no such file"):
        module.setup("fit")
    rows = (data_root / "openimages-vrd" / "challenge-2019-relationship-triplets.csv").read_text().splitlines()[1:]
    allowed = {tuple(row.split(",")) for row in rows}
    mids = list(read_descriptions(data_root / "openimages-vrd" / "challenge-2019-classes-vrd.csv"))
    seen = {(mids[s], mids[o], expected[p]) for g in graphs for s, p, o in g.triplets.tolist()}
    assert seen <= allowed  # subject, object and predicate are read as such
