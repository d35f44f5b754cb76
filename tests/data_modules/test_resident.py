from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_modules.image_loading import PixelScale, scale_pixels
from data_modules.resident import ImageBatch, Preprocessing, ResidentLoader, augmentation_draws
from data_modules.sampling import ResumableBatchSampler
from data_modules.scene_graph import RaggedImages

SCALE = PixelScale((125.3, 123.0, 113.9), (63.0, 62.1, 66.7))
BGR = PixelScale((103.06, 115.90, 123.15), (1.0, 2.0, 3.0), bgr=True)


def random_images(count: int = 12, height: int = 32, width: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


def one(preprocessing: Preprocessing, image: Tensor, draw: Tensor | None) -> Tensor:
    return scale_pixels(preprocessing.one(image, draw), preprocessing.scale)


def prepared(
    image: NDArray[np.uint8], draw: list[float] | None, pad: int, crop: int, flip: bool
) -> NDArray[np.float32]:
    """One image, pixel by pixel."""
    _, height, width = image.shape
    if draw is None:
        pad, row, column = 0, round((height - crop) / 2), round((width - crop) / 2)
    else:
        row, column = int(draw[0] * (height + 2 * pad - crop + 1)), int(draw[1] * (width + 2 * pad - crop + 1))
    result = np.zeros((3, crop, crop), dtype=np.float32)
    for c in range(3):
        for y in range(crop):
            for x in range(crop):
                source_y, source_x = row + y - pad, column + x - pad
                inside = 0 <= source_y < height and 0 <= source_x < width
                value = float(image[c, source_y, source_x]) if inside else 0.0
                target = crop - 1 - x if draw is not None and flip and draw[2] < 0.5 else x
                result[c, y, target] = (value - SCALE.mean[c]) / SCALE.std[c]
    return result


@pytest.mark.parametrize(("pad", "crop", "flip"), [(4, 32, True), (0, 20, True), (2, 17, False)])
def test_augmentation_equals_a_loop_over_pixels(pad: int, crop: int, flip: bool) -> None:
    images, draws = random_images(6), augmentation_draws(6, seed=1, epoch=0)
    assert 0 < (draws[:, 2] < 0.5).sum() < 6
    preprocessing = Preprocessing(SCALE, crop=crop, pad=pad, flip=flip)
    together = preprocessing.many(images, draws)
    assert together.dtype == torch.float32
    for image, draw, result in zip(images, draws, together, strict=True):
        expected = prepared(image.numpy(), draw.tolist(), pad, crop, flip)
        np.testing.assert_allclose(result.numpy(), expected, atol=1e-5)
        assert torch.equal(one(preprocessing, image, draw), result)


@pytest.mark.parametrize("crop", [None, 20, 21])
def test_evaluation_takes_the_middle_and_never_mirrors(crop: int | None) -> None:
    images = random_images(3, 32, 40)
    preprocessing = Preprocessing(SCALE, crop=crop, pad=4)
    together = preprocessing.many(images, None)
    for image, result in zip(images, together, strict=True):
        assert torch.equal(one(preprocessing, image, None), result)
        if crop is not None:
            np.testing.assert_allclose(result.numpy(), prepared(image.numpy(), None, 0, crop, False), atol=1e-5)
        else:
            assert result.shape == image.shape


def test_without_a_crop_images_are_only_mirrored() -> None:
    images, draws = random_images(8, 5, 7), augmentation_draws(8, seed=0, epoch=2)
    preprocessing = Preprocessing(SCALE)
    plain, augmented = preprocessing.many(images, None), preprocessing.many(images, draws)
    for i in range(8):
        mirrored = draws[i, 2] < 0.5
        assert torch.equal(augmented[i], plain[i].flip(2) if mirrored else plain[i])
        assert torch.equal(augmented[i], one(preprocessing, images[i], draws[i]))
    assert torch.equal(Preprocessing(SCALE, flip=False).many(images, draws), plain)


def test_channels_are_scaled_in_the_network_s_order() -> None:
    image = torch.tensor([10, 20, 30], dtype=torch.uint8).view(3, 1, 1)
    result = one(Preprocessing(BGR), image, None).flatten().tolist()
    assert result == pytest.approx([(30 - 103.06) / 1, (20 - 115.90) / 2, (10 - 123.15) / 3], rel=1e-6)
    assert Preprocessing(BGR).many(image[None], None).flatten().tolist() == result


def test_every_crop_and_both_directions_are_equally_likely() -> None:
    draws = augmentation_draws(40500, seed=5, epoch=1)
    # An image whose pixels tell their own place: the middle pixel of a crop says where it was cut out.
    place = torch.stack([*torch.meshgrid(torch.arange(9), torch.arange(9), indexing="ij"), torch.zeros(9, 9)])
    unit = PixelScale((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    cut = Preprocessing(unit, crop=1, flip=False).many(place.to(torch.uint8).expand(40500, 3, 9, 9), draws)
    counts = Counter(map(tuple, cut[:, :2].flatten(1).int().tolist()))
    assert set(counts) == {(r, c) for r in range(9) for c in range(9)}
    assert all(abs(n - 500) < 5 * 500**0.5 for n in counts.values())
    assert abs(int((draws[:, 2] < 0.5).sum()) - 20250) < 5 * 100
    assert draws.min() >= 0
    assert draws.max() < 1


def test_draws_depend_on_seed_and_epoch_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = augmentation_draws(100, seed=7, epoch=3)
    torch.manual_seed(1)
    assert torch.equal(augmentation_draws(100, seed=7, epoch=3), first)
    assert not torch.equal(augmentation_draws(100, seed=7, epoch=4), first)
    assert not torch.equal(augmentation_draws(100, seed=8, epoch=3), first)
    torch.manual_seed(0)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_crop_larger_than_the_image_is_refused() -> None:
    preprocessing = Preprocessing(SCALE, crop=33)
    for call in (
        lambda: preprocessing.many(random_images(2), None),
        lambda: preprocessing.many(random_images(2), augmentation_draws(2, 0, 0)),
        lambda: preprocessing.one(random_images(1)[0], None),
        lambda: preprocessing.one(random_images(1)[0], augmentation_draws(1, 0, 0)[0]),
    ):
        with pytest.raises(ValueError, match="crop=33: an image has only 32 rows and 32 columns"):
            call()


ROWS = torch.tensor([11, 2, 5, 7, 0, 3, 9])


def loader(start_step: int = 0, seed: int | None = 4, training: bool = True, **options: Any) -> ResidentLoader:
    batches = ResumableBatchSampler(7, 3, seed=4, start_step=start_step, **options) if training else None
    labels = torch.arange(7) * 10
    return ResidentLoader(random_images(), ROWS, labels, Preprocessing(SCALE, 32, 4), batches, 3, seed)


def test_training_batches_follow_the_resumable_sampler() -> None:
    resident, sampler = loader(), ResumableBatchSampler(7, 3, seed=4)
    assert len(resident) == 3
    images = random_images()
    for epoch in range(3):
        draws = augmentation_draws(7, seed=4, epoch=epoch)
        for batch, positions in zip(resident, sampler, strict=True):
            assert batch.labels.tolist() == [10 * p for p in positions]
            assert batch.index.tolist() == ROWS[positions].tolist()
            expected = Preprocessing(SCALE, 32, 4).many(images[ROWS[positions]], draws[positions])
            assert torch.equal(batch.images, expected)


@pytest.mark.parametrize("start", [1, 3, 4, 8])
def test_a_resumed_loader_goes_on_bit_for_bit(start: int) -> None:
    whole, resumed = loader(), loader(start_step=start)
    expected = [batch for _ in range(3) for batch in whole][start:]
    found = [batch for _ in range(3 - start // 3) for batch in resumed]
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.labels, b.labels)


def test_an_epoch_that_was_cut_short_is_over() -> None:
    cut, sampler = loader(limit=2), ResumableBatchSampler(7, 3, seed=4)
    for epoch in range(2):
        iterator = iter(cut)
        for positions in sampler.epoch_batches(epoch)[:2]:
            assert next(iterator).labels.tolist() == [10 * p for p in positions]


def test_processes_share_every_step_with_the_same_augmentation() -> None:
    alone = next(iter(loader()))
    labels = torch.arange(7) * 10
    shares = []
    for rank in range(3):
        batches = ResumableBatchSampler(7, 1, seed=4, rank=rank, world_size=3)
        shared = ResidentLoader(random_images(), ROWS, labels, Preprocessing(SCALE, 32, 4), batches, 1, 4)
        shares.append(next(iter(shared)))
    assert torch.equal(torch.cat([s.images for s in shares]), alone.images)


def test_evaluation_takes_all_images_in_their_order() -> None:
    resident = loader(training=False)
    assert len(resident) == 3
    for _ in range(2):
        batches = list(resident)
        assert [len(b.labels) for b in batches] == [3, 3, 1]
        assert torch.cat([b.index for b in batches]).equal(ROWS)
        plain = Preprocessing(SCALE, 32, 4).many(random_images()[ROWS], None)
        assert torch.equal(torch.cat([b.images for b in batches]), plain)


def test_without_a_seed_training_images_stay_as_they_are() -> None:
    for batch in loader(seed=None):
        plain = Preprocessing(SCALE, 32, 4).many(random_images()[batch.index], None)
        assert torch.equal(batch.images, plain)


def test_preparing_several_batches_at_once_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = list(loader())
    monkeypatch.setattr("data_modules.resident._VALUES_AT_ONCE", {"cpu": 2 * 3 * 3 * 32 * 32})
    for a, b in zip(loader(), alone, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.index, b.index)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same_batches() -> None:
    labels = torch.arange(7) * 10
    batches = ResumableBatchSampler(7, 3, seed=4)
    on_gpu = ResidentLoader(random_images().cuda(), ROWS, labels, Preprocessing(SCALE, 32, 4), batches, 3, 4)
    for a, b in zip(on_gpu, loader(), strict=True):
        assert a.images.is_cuda
        torch.testing.assert_close(a.images.cpu(), b.images)
        assert torch.equal(a.labels.cpu(), b.labels)


def test_a_batch_moves_with_all_its_tensors() -> None:
    square = ImageBatch(torch.zeros(2, 3, 4, 4), torch.zeros(2, dtype=torch.int64), torch.arange(2)).to("meta")
    assert {t.device.type for t in (square.images, square.labels, square.index)} == {"meta"}
    images = RaggedImages.of([torch.zeros(3, 4, 5), torch.ones(3, 2, 2)])
    ragged = ImageBatch(images, torch.zeros(2, dtype=torch.int64), torch.arange(2)).to("meta")
    assert ragged.images.values.device.type == "meta"
    assert ragged.images.shapes == ((3, 4, 5), (3, 2, 2))
