"""VRD from the files that RelDN's tools make of the release, and detections from files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_modules.detections_file import write_detections
from data_modules.errors import DataError
from data_modules.scene_graph import Detections, ImageRelationBatch, SceneGraph
from data_modules.vrd import VRDDataModule
from data_modules.vrd_files import find_image


def convert(release: Path, root: Path, sizes: dict[str, tuple[int, int]] | None = None) -> Path:
    """Do what RelDN's two tools do: number the images, rename the annotations, collect the boxes.

    `sizes` replaces reading the images, which then aren't converted either.
    """
    root.mkdir(exist_ok=True)
    for name in ("objects", "predicates"):
        shutil.copy(release / "json_dataset" / f"{name}.json", root)
    names = json.loads((root / "objects.json").read_text())
    for side, new_side in (("train", "train"), ("test", "val")):
        annotations = json.loads((release / "json_dataset" / f"annotations_{side}.json").read_text())
        folder = release / "sg_dataset" / f"sg_{side}_images"
        files = {name: name if sizes else find_image(folder, name).name for name in annotations}
        numbers = {file: i for i, file in enumerate(sorted(files.values()), 1)}
        (root / f"{new_side}_fname_mapping.json").write_text(json.dumps(numbers, sort_keys=True, indent=4))
        renamed = {f"{numbers[files[name]]:012d}.jpg": rows for name, rows in annotations.items()}
        (root / f"new_annotations_{new_side}.json").write_text(json.dumps(renamed))
        if not sizes:
            (root / f"{new_side}_images").mkdir()
            for file, i in numbers.items():
                Image.open(folder / file).convert("RGB").save(root / f"{new_side}_images" / f"{i:012d}.jpg")
        content: dict[str, list[Any]] = {"images": [], "annotations": []}
        for name, rows in annotations.items():
            number = numbers[files[name]]
            size = sizes[name] if sizes else Image.open(folder / files[name]).size
            image = {"file_name": f"{number:012d}.jpg", "width": size[0], "height": size[1], "id": number}
            content["images"].append(image)
            seen = set()
            for end in (row[key] for row in rows for key in ("subject", "object")):
                y1, y2, x1, x2 = end["bbox"]
                if (x1, y1, x2, y2) not in seen:  # a box under two categories keeps the first
                    seen.add((x1, y1, x2, y2))
                    bbox = [x1, y1, x2 - x1 + 1, y2 - y1 + 1]
                    entry = {
                        "bbox": bbox,
                        "area": bbox[2] * bbox[3],
                        "iscrowd": 0,
                        "id": len(content["annotations"]) + 1,
                    }
                    content["annotations"].append(entry | {"image_id": number, "category_id": end["category"]})
        content["categories"] = [{"id": i, "name": n, "supercategory": n} for i, n in enumerate(names)]
        (root / f"detections_{new_side}.json").write_text(json.dumps(content))
    return root


@pytest.fixture(scope="module")
def converted(vrd_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(vrd_world, tmp_path_factory.mktemp("reldn") / "vrd")


def make(root: Path, **options: Any) -> VRDDataModule:
    module = VRDDataModule(root, **({"batch_size": 4, "seed": 0, "held_out_images": 15} | options))
    module.setup()
    return module


def same(a: SceneGraph, b: SceneGraph) -> bool:
    arrays = ("boxes_xyxy", "labels", "relations")
    return (a.image, a.size_wh) == (b.image, b.size_wh) and all(
        np.array_equal(getattr(a, name), getattr(b, name)) for name in arrays
    )


def test_the_conversion_tells_what_the_release_does(vrd_world: Path, converted: Path) -> None:
    options = {"keep_empty_train": True}
    ours, theirs = make(converted, annotations="reldn_json", **options), make(vrd_world, **options)
    assert (ours.object_names, ours.predicate_names) == (theirs.object_names, theirs.predicate_names)
    for side in ("train_graphs", "test_graphs"):
        by_name = {g.image: g for g in getattr(theirs, side)}
        graphs = getattr(ours, side)
        assert len(graphs) == len(by_name)
        assert all(same(g, by_name[g.image]) for g in graphs)
    assert any(g.image.endswith(".png") for g in ours.train_graphs)
    record = ours.provenance()
    assert record["official"] is False
    assert {f["name"] for f in record["files"]} >= {"new_annotations_train.json", "val_fname_mapping.json"}
    assert record["train_images"] == record["counts"]["train_images"] == 40


def test_batches_with_pixels_of_the_numbered_files(vrd_world: Path, converted: Path) -> None:
    module = make(converted, annotations="reldn_json", images="uint8", batch_size=64)
    shapes: dict[str, tuple[int, ...]] = {}
    for batch in (*module.train_dataloader(), *module.test_dataloader()):
        assert isinstance(batch, ImageRelationBatch)
        shapes |= {g.image: s for g, s in zip(batch.graphs, batch.images.shapes, strict=True)}
    for graph in make(vrd_world).train_graphs:
        assert graph.size_wh is not None
        assert shapes[graph.image] == (3, *graph.size_wh[::-1])
    with pytest.raises(ValueError, match="image_size='box_extent'"):
        make(converted, annotations="reldn_json", image_size="box_extent")


def test_the_proposals_of_lu_et_al_fit_too(vrd_world: Path, converted: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(converted, tmp_path / "own"))
    shutil.copytree(vrd_world / "lu2016", own / "lu2016")
    ours, theirs = (
        make(r, proposals="lu2016", annotations=a) for r, a in ((own, "reldn_json"), (vrd_world, "release"))
    )
    assert [g.image for g in ours.test_graphs] == [g.image for g in theirs.test_graphs]
    for a, b in zip(ours.detections, theirs.detections, strict=True):
        assert np.array_equal(a.boxes_xyxy, b.boxes_xyxy)


def test_files_that_do_not_fit_are_named(converted: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(converted, tmp_path / "own"))
    path = own / "val_fname_mapping.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(dict(list(content.items())[1:])))
    with pytest.raises(DataError, match=r"val_fname_mapping\.json: names no image that became '000000000001\.jpg'"):
        make(own, annotations="reldn_json")
    path.write_text(json.dumps(content))
    detections = json.loads((own / "detections_val.json").read_text())
    detections["images"].pop()
    detections["annotations"] = []
    (own / "detections_val.json").write_text(json.dumps(detections))
    with pytest.raises(
        DataError, match=r"new_annotations_val\.json: image '\d+\.jpg': the detections JSON doesn't list"
    ):
        make(own, annotations="reldn_json")
    with pytest.raises(DataError, match=r"json_dataset/objects\.json: no such file"):
        make(own)


def detected(graphs: list[SceneGraph]) -> list[Detections]:
    """The annotated boxes with a score each; the first image has none."""
    rng = np.random.default_rng(0)
    counts = [0 if i == 0 else len(g.labels) for i, g in enumerate(graphs)]
    return [Detections(g.boxes_xyxy[:n], g.labels[:n], rng.random(n)) for g, n in zip(graphs, counts, strict=True)]


def test_detections_from_files(vrd_world: Path, converted: Path, tmp_path: Path) -> None:
    annotated = make(vrd_world)
    graphs, sizes = annotated.test_graphs, [g.size_wh or (0, 0) for g in annotated.test_graphs]
    records = detected(graphs)
    write_detections(tmp_path / "d.npz", annotated.object_names, [g.image for g in graphs], sizes, records)
    numbers = json.loads((converted / "val_fname_mapping.json").read_text())
    numbers |= {str(Path(name).with_suffix(".jpg")): n for name, n in numbers.items()}
    rows = [
        {"image_id": numbers[g.image], "category_id": label, "bbox": [x1, y1, x2 - x1 + 1, y2 - y1 + 1], "score": score}
        for g, d in zip(graphs, records, strict=True)
        for (x1, y1, x2, y2), label, score in zip(
            d.boxes_xyxy.tolist(), d.labels.tolist(), d.scores.tolist(), strict=True
        )
    ]
    (tmp_path / "d.json").write_text(json.dumps(rows))
    own = Path(shutil.copytree(vrd_world, tmp_path / "own"))
    shutil.copy(converted / "val_fname_mapping.json", own)
    cases: list[tuple[Path, dict[str, Any]]] = [
        (vrd_world, {"proposals_file": tmp_path / "d.npz"}),
        (vrd_world, {"proposals_file": tmp_path / "d.npz", "image_size": "box_extent"}),
        (converted, {"proposals_file": tmp_path / "d.json", "annotations": "reldn_json"}),
        (own, {"proposals_file": tmp_path / "d.json", "proposals_index": converted / "detections_val.json"}),
    ]
    for root, options in cases:
        module = make(root, proposals="file", batch_size=64, **options)
        (batch,) = module.test_dataloader()
        assert batch.relations.shape == (0, 3)
        assert sum(len(g.relations) for g in batch.graphs) > 100
        by_name = {g.image: d for g, d in zip(graphs, records, strict=True)}
        for graph, found in zip(module.test_graphs, module.detections, strict=True):
            expected = by_name[graph.image]
            assert np.array_equal(found.boxes_xyxy, expected.boxes_xyxy)
            assert found.labels.tolist() == expected.labels.tolist()
            assert found.scores.tolist() == expected.scores.tolist()
        assert module.provenance()["files"][-1]["name"] in ("d.npz", "d.json", "detections_val.json")
    assert make(vrd_world, proposals="file", proposals_file=tmp_path / "d.npz").provenance()["official"] is False
    with pytest.raises(DataError, match=r"d\.npz: 15 of 15 images, as .* are not in the file"):
        splits = {"train_split": "held_in", "eval_split": "held_out"}
        make(vrd_world, proposals="file", proposals_file=tmp_path / "d.npz", **splits)


@pytest.mark.real_data
def test_the_real_release_converted(data_root: Path, tmp_path: Path) -> None:
    """All 5,000 images; their sizes are made up, for few of the images are at hand."""
    release = data_root / "vrd"
    names = [
        name
        for side in ("train", "test")
        for name in json.loads((release / "json_dataset" / f"annotations_{side}.json").read_text())
    ]
    root = convert(release, tmp_path / "vrd", dict.fromkeys(names, (4000, 4000)))
    ours = VRDDataModule(root, 64, 0, annotations="reldn_json", keep_empty_train=True)
    theirs = VRDDataModule(release, 64, 0, image_size="box_extent", keep_empty_train=True)
    record = ours.provenance()
    assert record["official"] is True
    assert (record["train_images"], record["train_relations"]) == (4000, 30_355)
    assert (record["test_images"], record["test_relations"]) == (1000, 7638)
    assert (record["counts"]["train_objects"], record["counts"]["test_objects"]) == (26_430, 6_735)
    for side in ("train_graphs", "test_graphs"):
        by_name = {g.image: g for g in getattr(theirs, side)}
        for graph in getattr(ours, side):
            other = by_name[graph.image]
            assert np.array_equal(graph.boxes_xyxy, other.boxes_xyxy)
            assert np.array_equal(graph.labels, other.labels)
            assert np.array_equal(graph.relations, other.relations)
