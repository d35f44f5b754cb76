from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, get_worker_info

from data_modules.errors import DataError
from data_modules.image_loading import PIXEL_SCALES, Pixels, decode_rgb, header_size, join_images, scale_pixels
from data_modules.scene_graph import RaggedImages


def test_decoding(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (7, 9), dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    image = decode_rgb(tmp_path / "grey.png", "again")
    assert (image.dtype, tuple(image.shape)) == (torch.uint8, (3, 7, 9))
    assert np.array_equal(image.numpy(), np.stack([grey] * 3))
    Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(tmp_path / "a.jpg")
    pixels = np.asarray(Image.open(tmp_path / "a.jpg")).transpose(2, 0, 1)
    assert np.array_equal(decode_rgb(tmp_path / "a.jpg", "").numpy(), pixels)
    for content in (b"", b"text", (tmp_path / "a.jpg").read_bytes()[:300]):
        (tmp_path / "bad.jpg").write_bytes(content)
        with pytest.raises(DataError, match=r"bad\.jpg: truncated or damaged image .*; again"):
            decode_rgb(tmp_path / "bad.jpg", "again")
    assert header_size(tmp_path / "grey.png", "again") == (9, 7)
    (tmp_path / "bad.jpg").write_bytes(b"text")
    with pytest.raises(DataError, match=r"bad\.jpg: not a readable image"):
        header_size(tmp_path / "bad.jpg", "again")
    for read in (decode_rgb, header_size):
        with pytest.raises(DataError, match=r"gone\.jpg: no such image; again"):
            read(tmp_path / "gone.jpg", "again")


def test_sixteen_bits_become_eight(tmp_path: Path) -> None:
    values = np.array([[0, 255, 256, 65535], [1000, 30000, 40000, 65280]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    image = decode_rgb(tmp_path / "deep.png", "")
    assert image.dtype == torch.uint8 and image.shape == (3, 2, 4)
    assert image[0].tolist() == (values // 256).tolist()


def test_pixel_scales() -> None:
    image = torch.tensor([10, 100, 250], dtype=torch.uint8).view(3, 1, 1).expand(3, 2, 4)
    assert scale_pixels(image, "unit")[:, 0, 0].tolist() == pytest.approx([10 / 255, 100 / 255, 250 / 255])
    caffe = [250 - 104.0, 100 - 116.7, 10 - 122.7]
    assert scale_pixels(image, "caffenet")[:, 0, 0].tolist() == pytest.approx(caffe, abs=0.05)
    assert scale_pixels(image, "detectron")[:, 1, 3].tolist() == pytest.approx([147.0199, -15.9465, -112.7717])
    assert scale_pixels(image, "relnet")[:, 1, 3].tolist() == pytest.approx([250 - 103.06, 100 - 115.9, 10 - 123.15])
    standard = [
        (v / 255 - m) / s for v, m, s in zip((10, 100, 250), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)
    ]
    assert scale_pixels(image, "torchvision")[:, 0, 0].tolist() == pytest.approx(standard, rel=1e-5)
    assert set(PIXEL_SCALES) == {"unit", "caffenet", "detectron", "relnet", "torchvision"}


def test_ragged_images() -> None:
    images = [torch.arange(24).view(2, 3, 4), torch.arange(10).view(1, 5, 2)]
    ragged = RaggedImages.of(images)
    assert len(ragged) == 2
    assert ragged.values.shape == (34,)
    assert all(torch.equal(a, b) for a, b in zip(images, ragged, strict=True))
    assert torch.equal(ragged[1], images[1])
    assert ragged.to(torch.float64)[0].dtype == torch.float64
    with pytest.raises(ValueError, match=r"2 sizes can't be stacked: \[\(1, 5, 2\), \(2, 3, 4\)\]"):
        ragged.stacked()
    same = RaggedImages.of([images[0], images[0] + 1])
    assert torch.equal(same.stacked(), torch.stack([images[0], images[0] + 1]))
    assert same.stacked().data_ptr() == same.values.data_ptr()


@pytest.mark.parametrize("pixels", PIXEL_SCALES)
@pytest.mark.parametrize("strided", [False, True])
def test_scaling_in_strips_gives_the_formula_s_digits(pixels: Pixels, strided: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, 150, 7), dtype=torch.uint8, generator=generator)
    image = image.permute(1, 2, 0).contiguous().permute(2, 0, 1) if strided else image
    scale = PIXEL_SCALES[pixels]
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (scale.mean, scale.std))
    expected = ((image.flip(0) if scale.bgr else image).float() - mean) / std
    scaled = scale_pixels(image, pixels)
    assert scaled.is_contiguous()
    assert torch.equal(scaled, expected)
    assert torch.equal(scale_pixels(image, scale), expected)
    flat = torch.zeros(3 * 150 * 7 + 1)
    assert scale_pixels(image, pixels, out=flat[1:].view(3, 150, 7)).data_ptr() == flat[1:].data_ptr()
    assert torch.equal(flat[1:].view(3, 150, 7), expected)


class Joined(Dataset[RaggedImages]):
    """Two batches of the same two images."""

    def __init__(self, pixels: Pixels | None) -> None:
        self.pixels: Pixels | None = pixels
        self.images = [torch.arange(24).view(3, 2, 4), torch.arange(45).view(3, 5, 3)]

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> RaggedImages:
        dtype = torch.uint8 if self.pixels else torch.float64
        joined = join_images([image.to(dtype) for image in self.images], self.pixels)
        assert joined.values.is_shared() is (get_worker_info() is not None)
        return joined


@pytest.mark.parametrize("pixels", [None, "caffenet"])
@pytest.mark.parametrize("workers", [0, 1])
def test_joined_images_are_the_same_in_a_worker(pixels: Pixels | None, workers: int) -> None:
    data = Joined(pixels)
    batches = list(DataLoader(data, batch_size=None, num_workers=workers))
    assert len(batches) == 2
    for batch in batches:
        assert batch.shapes == ((3, 2, 4), (3, 5, 3))
        for image, found in zip(data.images, batch, strict=True):
            expected = scale_pixels(image.to(torch.uint8), pixels) if pixels else image.double()
            assert found.dtype == expected.dtype
            assert torch.equal(found, expected)
