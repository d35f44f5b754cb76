from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_modules.errors import DataError
from data_modules.relation_data import (
    EpochsCounted,
    ImageReader,
    RelationDataset,
    collate_items,
    in_frame,
)
from data_modules.sampling import ResumableBatchSampler
from data_modules.scene_graph import ImageRelationBatch, RelationBatch, SceneGraph


def graph(name: str = "a.png", boxes: list[list[float]] | None = None) -> SceneGraph:
    rows = [[0, 1, 1], [1, 5, 0], [0, 1, 1], [0, 2, 1], [0, 3, 0]]
    xyxy = np.array(boxes or [[10, 20, 30, 40], [50, 5, 90, 60]], dtype=np.float32)
    return SceneGraph(name, (100, 60), xyxy, np.array([3, 4]), np.array(rows))


def write_image(path: Path) -> None:
    """A black image, white where the first box is."""
    pixels = np.zeros((60, 100, 3), dtype=np.uint8)
    pixels[20:40, 10:30] = 255
    Image.fromarray(pixels).save(path)


def reader(folder: Path, **changes: object) -> ImageReader:
    return replace(ImageReader((folder,), "uint8", None, None, "fetch it"), **changes)  # type: ignore[arg-type]


def test_one_predicate_of_every_pair_is_drawn_with_equal_chance_per_row() -> None:
    data = RelationDataset([graph()], [(100, 60)], seed=3, one_predicate_per_pair=True)
    drawn: Counter[int] = Counter()
    for epoch in range(3000):
        rows = data[epoch][0].relations.tolist()
        assert sorted((s, o) for s, _, o in rows) == [(0, 0), (0, 1), (1, 0)]
        assert {tuple(r) for r in rows} <= {tuple(r) for r in graph().relations.tolist()}
        drawn.update(p for s, p, o in rows if (s, o) == (0, 1))
    assert set(drawn) == {1, 2}
    assert drawn[1] / 3000 == pytest.approx(2 / 3, abs=0.04)  # annotated twice
    assert data[5][0].graph.relations.tolist() == graph().relations.tolist()  # the metrics see all


def test_draws_depend_on_seed_epoch_and_image_alone() -> None:
    graphs = [graph(str(i)) for i in range(8)]
    options = {"one_predicate_per_pair": True, "flip": "random"}
    data = RelationDataset(graphs, [(100, 60)] * 8, seed=3, **options)  # type: ignore[arg-type]

    def seen(dataset: RelationDataset, indices: list[int]) -> list[list[float]]:
        items = [dataset[i][0] for i in indices]
        return [[*e.relations.ravel().tolist(), *e.boxes.boxes_xyxy.ravel().tolist()] for e in items]

    in_order = seen(data, list(range(80)))
    np.random.seed(7)  # noqa: NPY002
    assert seen(data, list(range(79, -1, -1))) == in_order[::-1]
    assert in_order[:8] != in_order[8:16]
    assert len({tuple(row) for row in in_order[:8]}) > 1  # images differ
    assert seen(RelationDataset(graphs, [(100, 60)] * 8, seed=4, **options), list(range(80))) != in_order  # type: ignore[arg-type]


def test_without_options_an_example_is_its_graph() -> None:
    example, image = RelationDataset([graph()], [(100, 60)])[0]
    assert image is None
    assert example.boxes.boxes_xyxy is example.graph.boxes_xyxy
    assert example.relations is example.graph.relations
    assert example.boxes.scores.tolist() == [1, 1]
    assert example.size_wh == (100, 60)


@pytest.mark.parametrize(("offset", "expected"), [(0, [70, 20, 90, 40]), (-1, [69, 20, 89, 40]), (1, [71, 20, 91, 40])])
def test_mirroring_counts_columns_as_the_data_set_does(offset: float, expected: list[float]) -> None:
    data = RelationDataset([graph()], [(100, 60)], flip="double", column_offset=offset)
    assert len(data) == 2
    assert data[0][0].boxes.boxes_xyxy[0].tolist() == [10, 20, 30, 40]
    assert data[1][0].boxes.boxes_xyxy[0].tolist() == expected
    assert data[1][0].graph.boxes_xyxy[0].tolist() == expected
    assert data[3][0].boxes.boxes_xyxy[0].tolist() == expected  # the second epoch


def test_random_mirroring_takes_about_half() -> None:
    data = RelationDataset([graph()], [(100, 60)], flip="random")
    assert len(data) == 1
    mirrored = sum(data[i][0].boxes.boxes_xyxy[0, 0] == 70 for i in range(1000))
    assert 440 < mirrored < 560


def test_clipping_cuts_what_the_model_gets_and_not_what_is_scored() -> None:
    wide = graph(boxes=[[-3, 20, 30, 70], [50, 5, 120, 60]])
    example, _ = RelationDataset([wide], [(100, 60)], clip=True)[0]
    assert example.boxes.boxes_xyxy.tolist() == [[0, 20, 30, 60], [50, 5, 100, 60]]
    assert example.graph.boxes_xyxy.tolist() == wide.boxes_xyxy.tolist()


def test_images_are_mirrored_and_resized_with_their_boxes(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    data = RelationDataset([graph()], [(100, 60)], flip="double", reader=reader(tmp_path, sides=(30, 1000)))
    for index in (0, 1):
        example, image = data[index]
        assert image is not None
        assert (image.dtype, tuple(image.shape)) == (torch.uint8, (3, 30, 50))
        x1, y1, x2, y2 = (example.boxes.boxes_xyxy[0] / 2).astype(int)
        assert image[:, y1 + 1 : y2 - 1, x1 + 1 : x2 - 1].min() == 255
        assert image.float().mean() / 255 == pytest.approx(20 * 20 / 6000, abs=0.01)


@pytest.mark.parametrize(("sides", "expected"), [((30, 1000), (30, 50)), ((600, 60), None), ((600, 80), (48, 80))])
def test_the_long_side_is_bounded(tmp_path: Path, sides: tuple[int, int], expected: tuple[int, int] | None) -> None:
    write_image(tmp_path / "a.png")
    if expected is None:  # both sides the same number: that of the long side
        assert reader(tmp_path, sides=(60, 60)).read("a.png", (100, 60), False).shape == (3, 36, 60)
    else:
        assert reader(tmp_path, sides=sides).read("a.png", (100, 60), False).shape[1:] == expected


def test_pixels_are_scaled_for_a_network(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    image = reader(tmp_path, pixels="torchvision").read("a.png", (100, 60), False)
    assert image.dtype == torch.float32
    assert image[:, 30, 20].tolist() == pytest.approx([(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225])


def test_images_that_do_not_fit_their_annotations_are_named(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png: 100 x 60 pixels don't fit the annotated size \(60, 100\); fetch it"):
        reader(tmp_path).read("a.png", (60, 100), False)
    assert reader(tmp_path, frame=0).read("a.png", (7, 7), False).shape == (3, 60, 100)  # the frame says nothing
    assert in_frame((100, 60), 1024) == (1024, 614)
    assert reader(tmp_path, frame=1024).read("a.png", (1024, 614), False).shape == (3, 60, 100)
    with pytest.raises(DataError, match=r"don't fit the annotated size \(1024, 768\)"):
        reader(tmp_path, frame=1024).read("a.png", (1024, 768), False)
    with pytest.raises(DataError, match=r"b\.png: no such image; fetch it"):
        reader(tmp_path).read("b.png", (100, 60), False)
    noise = np.random.default_rng(0).integers(0, 256, (60, 100, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "c.jpg")
    content = (tmp_path / "c.jpg").read_bytes()
    (tmp_path / "c.jpg").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"c\.jpg: truncated or damaged image .*fetch it"):
        reader(tmp_path).read("c.jpg", (100, 60), False)


def test_images_may_lie_in_several_folders(tmp_path: Path) -> None:
    (tmp_path / "second").mkdir()
    write_image(tmp_path / "second" / "a.png")
    folders = tmp_path / "first", tmp_path / "second"
    assert reader(tmp_path, folders=folders).read("a.png", (100, 60), False).shape == (3, 60, 100)


def test_batches_have_pixels_only_where_they_were_read(tmp_path: Path) -> None:
    plain = RelationDataset([graph()], [(100, 60)])
    batch = collate_items([plain[0], plain[0]])
    assert type(batch) is RelationBatch
    write_image(tmp_path / "a.png")
    Image.new("RGB", (80, 40)).save(tmp_path / "b.png")
    graphs = [graph(), replace(graph("b.png"), size_wh=(80, 40))]
    data = RelationDataset(graphs, [(100, 60), (80, 40)], reader=reader(tmp_path))
    batch = collate_items([data[0], data[1]])
    assert isinstance(batch, ImageRelationBatch)
    assert batch.images.shapes == ((3, 60, 100), (3, 40, 80))
    assert batch.images.values.shape == (3 * (60 * 100 + 40 * 80),)  # no padding
    assert batch.relations.shape == (10, 3)
    moved = batch.to("cpu", non_blocking=True)
    assert isinstance(moved, ImageRelationBatch)
    assert torch.equal(moved.images[0], batch.images[0])
    doubled = batch.to(torch.float64)
    assert (doubled.boxes_xyxy.dtype, doubled.images.values.dtype) == (torch.float64, torch.float64)


def test_indices_count_on_from_epoch_to_epoch() -> None:
    plain, counted = ResumableBatchSampler(10, 4, seed=1), EpochsCounted(ResumableBatchSampler(10, 4, seed=1))
    assert len(counted) == 3
    for epoch in range(3):
        expected = [[epoch * 10 + i for i in batch] for batch in plain]
        assert list(counted) == expected
    resumed = EpochsCounted(ResumableBatchSampler(10, 4, seed=1, start_step=4))
    second = [[10 + i for i in batch] for batch in ResumableBatchSampler(10, 4, seed=1).epoch_batches(1)]
    assert list(resumed) == second[1:]
