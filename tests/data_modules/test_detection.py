from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_modules.detection import DetectionDataset, DetectionExample
from data_modules.image_sources import FileImages, Resize


def test_mirrored_images_have_mirrored_boxes(tmp_path: Path) -> None:
    pixels = np.zeros((60, 90, 3), dtype=np.uint8)
    pixels[10:30, 5:25] = (255, 0, 0)
    Image.fromarray(pixels).save(tmp_path / "a.png")  # decoded by its content
    example = DetectionExample(
        image="a",
        path=tmp_path / "a.png",
        size_wh=(90, 60),
        boxes_xyxy=np.array([[5, 10, 25, 30]], dtype=np.float32),
        labels=np.array([3]),
        areas=np.array([400], dtype=np.float32),
        difficult=np.array([False]),
        crowd=np.array([False]),
    )
    for short_side in (60, 180):
        files = FileImages(tmp_path, ("a.png",), "", Resize(short_side, 1000), decoder="torchvision")
        dataset = DetectionDataset([example], files, flip=True, remedy="")
        assert len(dataset) == 2
        plain, mirrored = dataset[0], dataset[1]
        for item in (plain, mirrored):
            x1, y1, x2, y2 = item.boxes_xyxy[0].long().tolist()
            assert item.image.dtype == torch.uint8
            red = item.image[0] / 255
            assert red[y1:y2, x1:x2].mean() > 0.93
            assert red.sum() == pytest.approx(float(red[y1:y2, x1:x2].sum()), rel=0.08)
        assert torch.equal(mirrored.image, plain.image.flip(2))
        assert mirrored.example.boxes_xyxy.tolist() == [[65, 10, 85, 30]]
        assert plain.example is example
    assert example.boxes_xyxy.tolist() == [[5, 10, 25, 30]]  # the record is left as it was


def test_plain_iou_of_edges_is_the_devkit_s_of_inclusive_pixels() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        a, b = (np.sort(rng.integers(1, 30, (2, 2)), axis=0).ravel().tolist() for _ in range(2))  # x1, y1, x2, y2
        pixels = [{(x, y) for x in range(box[0], box[2] + 1) for y in range(box[1], box[3] + 1)} for box in (a, b)]
        edges = [[box[0] - 1, box[1] - 1, box[2], box[3]] for box in (a, b)]
        (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = edges
        common = max(min(ax2, bx2) - max(ax1, bx1), 0) * max(min(ay2, by2) - max(ay1, by1), 0)
        union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - common
        assert common / union == pytest.approx(len(pixels[0] & pixels[1]) / len(pixels[0] | pixels[1]))
