from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from data_modules.scene_graph import RaggedImages
from data_modules.synthetic.vg150 import write_vg150_world
from data_modules.synthetic.voc import write_voc_world
from data_modules.vg150 import VG150DataModule
from data_modules.voc_detection import VOCDetectionDataModule
from lit_modules.detector_batches import DetectorInput
from tests.lit_modules.batches import Image, make_batch
from tests.lit_modules.detections import edge_batch, with_images

TWO = (
    Image(boxes=[[10, 20, 19, 39], [0, 0, 49, 59]], labels=[2, 0], size=(50, 60)),
    Image(boxes=[[5, 5, 5, 5]], labels=[1], size=(40, 30)),
)


def test_boxes_of_pixels_become_edges_in_the_resized_images() -> None:
    given = DetectorInput.of(with_images(*TWO, scale=2.0))
    assert given.images.shape == (2, 3, 128, 128) and given.sizes_hw == [(120, 100), (60, 80)]
    assert given.edges_xyxy.tolist() == [[20, 40, 39, 79], [0, 0, 99, 119], [10, 10, 11, 11]]
    assert given.labels.tolist() == [2, 0, 1] and given.image_index.tolist() == [0, 0, 1]
    assert given.areas.tolist() == [200, 3000, 1] and not given.ignored.any()
    assert given.names == ("0.jpg", "1.jpg")
    back = given.annotated(given.edges_xyxy, given.image_index)
    torch.testing.assert_close(back, with_images(*TWO).boxes_xyxy)


def test_edges_stay_what_they_are() -> None:
    boxes = [[[10.0, 20.0, 30.0, 40.0]], [], [[0.0, 0.0, 96.0, 64.0], [2.0, 2.0, 4.0, 4.0]]]
    batch = edge_batch(boxes, [[3], [], [1, 1]], ignored=[[False], [], [True, False]], scale=2.0)
    given = DetectorInput.of(batch)
    assert torch.equal(given.edges_xyxy, batch.boxes_xyxy) and given.ignored.tolist() == [False, True, False]
    assert given.areas.tolist() == [100, 48 * 32, 1] and given.names == ("0.jpg", "1.jpg", "2.jpg")
    assert given.annotated(given.edges_xyxy, given.image_index)[1].tolist() == [0, 0, 48, 32]
    first, second, third = given.targets(num_classes=4)
    assert first["boxes"].tolist() == boxes[0] and first["labels"].tolist() == [4]
    assert second["boxes"].shape == (0, 4) and second["labels"].shape == (0,)
    assert third["boxes"].tolist() == [[2, 2, 4, 4]] and third["labels"].tolist() == [2]  # no ignored ones
    assert third["size_wh"].tolist() == [96, 64]


def test_of_equal_boxes_the_first_label_may_be_kept() -> None:
    box, other = [10, 20, 19, 39], [10, 20, 19, 38]
    images = Image(boxes=[other, box, box, box], labels=[0, 3, 1, 3]), Image(boxes=[box], labels=[2])
    given = DetectorInput.of(with_images(*images), one_label_per_box=True)
    assert given.labels.tolist() == [0, 3, 2] and given.image_index.tolist() == [0, 0, 1]
    assert len(given.edges_xyxy) == len(given.ignored) == len(given.areas) == 3
    assert len(DetectorInput.of(with_images(*images)).labels) == 5
    empty = DetectorInput.of(with_images(Image()), one_label_per_box=True)
    assert empty.edges_xyxy.shape == (0, 4)


@pytest.mark.parametrize(
    ("box", "label", "message"),
    [
        ([10.0, 10.0, 10.0, 20.0], 0, r"'1\.jpg': box \[10\.0, 10\.0, 10\.0, 20\.0\] with label 0"),
        ([10.0, 10.0, 20.0, float("nan")], 0, "nan"),
        ([10.0, 10.0, 20.0, 20.0], 4, r"label 4 \(there are 4 categories\)"),
        ([10.0, 10.0, 20.0, 20.0], -1, "label -1"),
    ],
)
def test_annotations_that_cannot_be_trained_on_are_named(box: list[float], label: int, message: str) -> None:
    given = DetectorInput.of(edge_batch([[[1.0, 1.0, 5.0, 5.0]], [box]], [[0], [label]]))
    with pytest.raises(ValueError, match=message):
        given.targets(num_classes=4)


def test_batches_without_scaled_images_are_refused() -> None:
    with pytest.raises(ValueError, match="the batch has no images"):
        DetectorInput.of(make_batch(*TWO))
    batch = with_images(*TWO)
    raw = RaggedImages.of([torch.zeros(3, 60, 50, dtype=torch.uint8), torch.zeros(3, 30, 40, dtype=torch.uint8)])
    with pytest.raises(ValueError, match="pixel scale"):
        DetectorInput.of(replace(batch, images=raw))


def test_batches_of_both_kinds_of_data_modules_are_taken(tmp_path: Path) -> None:
    """Boxes lie in the images, and targets fit the categories."""
    voc = VOCDetectionDataModule(
        write_voc_world(tmp_path / "voc", train_images=6, val_images=1, test_images=2, size_wh=(96, 64)),
        batch_size=3,
        seed=0,
        short_side=80,
        long_side=200,
    )
    vg = VG150DataModule(
        write_vg150_world(tmp_path / "vg", train_images=12, test_images=4),
        batch_size=3,
        seed=0,
        images="torchvision",
        image_sides=(100, 200),
        val_images=2,
    )
    for module, classes in ((voc, 20), (vg, 150)):
        module.setup("fit")
        given = DetectorInput.of(next(iter(module.train_dataloader())))
        assert len(given.sizes_hw) == 3 and len(given.labels)
        for (height, width), target in zip(given.sizes_hw, given.targets(classes), strict=True):
            assert min(height, width) <= 100
            assert (target["boxes"] >= -0.01).all()
            assert (target["boxes"] <= torch.tensor([width, height, width, height]) + 1.01).all()
