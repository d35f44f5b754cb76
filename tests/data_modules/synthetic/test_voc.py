from __future__ import annotations

import colorsys
import hashlib
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat

from data_modules.errors import DataError
from data_modules.synthetic.sbd import write_sbd_world
from data_modules.synthetic.shapes import (
    GROUP_OF,
    GROUPS,
    TWIN_OF,
    ShapeKnobs,
    ShapeScene,
    class_hue,
    make_scene,
    make_scenes,
)
from data_modules.synthetic.voc import write_voc_world
from data_modules.voc_detection import VOCDetectionDataModule
from data_modules.voc_files import VOC_CLASSES

SIZE = (200, 160)


def scenes(count: int, seed: int = 0, **knobs: float) -> list[ShapeScene]:
    return make_scenes(np.random.default_rng(seed), count, SIZE, ShapeKnobs(**knobs))


def checksums(root: Path) -> dict[str, str]:
    files = (p for p in sorted(root.rglob("*")) if p.is_file())
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_classes_have_a_group_and_a_twin_elsewhere() -> None:
    assert sorted(label for group in GROUPS for label in group) == list(range(20))
    for label, twin in TWIN_OF.items():
        assert TWIN_OF[twin] == label
        assert GROUP_OF[twin] != GROUP_OF[label]
        assert class_hue(label, 1.0) == pytest.approx(class_hue(twin, 1.0))
        assert class_hue(label, 0.0) != pytest.approx(class_hue(twin, 0.0))


def test_boxes_are_those_of_the_visible_pixels_and_sizes_fit() -> None:
    for scene in scenes(40, occlusion=0.9):
        height, width = scene.instances.shape
        assert scene.image.shape == (height, width, 3)
        assert scene.image.dtype == np.uint8
        assert 1 <= len(scene.labels) == len(scene.boxes_xyxy) == len(scene.visible) <= 5
        assert set(np.unique(scene.instances)) - {0} == set(range(1, len(scene.labels) + 1))
        for number, (x1, y1, x2, y2) in enumerate(scene.boxes_xyxy.tolist(), start=1):
            pixels = [
                (x, y) for y, row in enumerate(scene.instances.tolist()) for x, i in enumerate(row) if i == number
            ]
            assert len(pixels) >= 40
            assert (x1, y1) == (min(x for x, _ in pixels), min(y for _, y in pixels))
            assert (x2, y2) == (max(x for x, _ in pixels) + 1, max(y for _, y in pixels) + 1)
        touching = [x1 == 0 or y1 == 0 or x2 == width or y2 == height for x1, y1, x2, y2 in scene.boxes_xyxy.tolist()]
        # What the border cuts touches it (or would, but for what hides it).
        assert all(t or v < 1 for t, c, v in zip(touching, scene.truncated, scene.visible, strict=True) if c)
    sizes = {s.instances.shape for s in scenes(40)}
    assert {height > width for height, width in sizes} == {True, False}


def test_objects_are_drawn_in_their_classes_colours() -> None:
    right = 0
    total = 0
    for scene in scenes(60, ambiguity=0.0, occlusion=0.2, context=0.0):
        for number, label in enumerate(scene.labels, start=1):
            colour = np.median(scene.image[scene.instances == number], axis=0) / 255
            hue, saturation, _ = colorsys.rgb_to_hsv(*colour)
            assert saturation > 0.4  # the ground is grey
            distance = [abs((hue - class_hue(k, 0.0) + 0.5) % 1 - 0.5) for k in range(20)]
            right += int(np.argmin(distance)) == label
            total += 1
    assert right / total > 0.9  # 20 classes; the annotated one is what is seen


def group_by_company(scene: ShapeScene, number: int) -> int:
    others = [GROUP_OF[int(label)] for i, label in enumerate(scene.labels) if i != number]
    return Counter(others).most_common(1)[0][0] if others else -1


@pytest.mark.parametrize(("context", "low", "high"), [(1.0, 1.0, 1.0), (0.85, 0.72, 0.95), (0.0, 0.35, 0.62)])
def test_company_tells_twins_apart_as_far_as_the_knob_says(context: float, low: float, high: float) -> None:
    right: list[bool] = []
    for scene in scenes(250, ambiguity=1.0, context=context):
        for number, label in enumerate(scene.labels.tolist()):
            company = group_by_company(scene, number)
            if company in (GROUP_OF[label], GROUP_OF[TWIN_OF[label]]) and Counter(scene.labels.tolist())[label] == 1:
                right.append(company == GROUP_OF[label])
    assert len(right) > 60
    assert low <= np.mean(right) <= high


def test_knobs_move_what_they_name() -> None:
    free, crowded = scenes(60, occlusion=0.0), scenes(60, occlusion=0.9)
    assert min(s.visible.min() for s in free) == 1
    assert np.mean([s.visible.mean() for s in crowded]) < 0.95
    assert min(s.visible.min() for s in crowded) >= 0.1
    assert not any((s.visible < 0.6).any() for s in free)
    assert any(s.difficult.any() for s in crowded)
    assert not all(s.difficult.all() for s in crowded)

    def roughness(detail: float) -> float:
        """Border pixels for the area that they enclose."""
        made = scenes(40, detail=detail, occlusion=0.0)
        return float(np.mean([(s.label_map(True) == 255).sum() / (s.instances > 0).sum() for s in made]))

    assert roughness(1.0) > 1.1 * roughness(0.0)
    ground = [np.mean([s.image[s.instances == 0].std() for s in scenes(20, clutter=c)]) for c in (0.0, 1.0)]
    assert ground[1] > 1.3 * ground[0]
    with pytest.raises(ValueError, match=r"fractions from 0 to 1, found \{'context': 1\.5\}"):
        ShapeKnobs(context=1.5)


def test_label_maps() -> None:
    for scene in scenes(30, occlusion=0.9):
        voc, sbd = scene.label_map(void=True), scene.label_map(void=False)
        assert (voc.dtype, voc.shape) == (np.uint8, scene.instances.shape)
        assert np.array_equal(sbd > 0, scene.instances > 0)
        for number, (label, difficult) in enumerate(zip(scene.labels, scene.difficult, strict=True), start=1):
            mask = scene.instances == number
            assert (sbd[mask] == label + 1).all()
            assert set(np.unique(voc[mask])) <= {255, 255 if difficult else label + 1}
        i = scene.instances.astype(int)
        for y, x in ((0, 0), (40, 60), (70, 90), (100, 50)):
            window = i[max(y - 1, 0) : y + 2, x], i[y, max(x - 1, 0) : x + 2]
            border = any((w != i[y, x]).any() for w in window)
            is_difficult = i[y, x] > 0 and scene.difficult[i[y, x] - 1]
            assert (voc[y, x] == 255) == (border or is_difficult)


def test_scenes_don_t_depend_on_how_many_there_are() -> None:
    few, many = scenes(3), scenes(5)
    assert all(np.array_equal(a.image, b.image) for a, b in zip(few, many, strict=False))
    assert not np.array_equal(few[0].image, few[1].image)
    assert not np.array_equal(few[0].image, scenes(1, seed=1)[0].image)


def test_scenes_of_the_smallest_size_hold_something() -> None:
    assert all(len(make_scene(np.random.default_rng(s), (64, 64), ShapeKnobs()).labels) for s in range(20))


def test_the_layout_is_the_devkit_s(tmp_path: Path) -> None:
    root = write_voc_world(tmp_path / "w", 0, 5, 3, 4, voc2012_images=4)
    year = root / "VOCdevkit" / "VOC2007"
    lists = {p.stem: p.read_text().splitlines() for p in (year / "ImageSets" / "Main").iterdir()}
    assert {name: len(own) for name, own in lists.items()} == {"train": 5, "val": 3, "test": 4, "trainval": 8}
    assert lists["trainval"] == sorted(lists["train"] + lists["val"])
    every = sorted(lists["trainval"] + lists["test"])
    assert every == [f"{n:06d}" for n in range(1, 13)]
    for folder, suffix in (("JPEGImages", "jpg"), ("Annotations", "xml")):
        assert sorted(p.name for p in (year / folder).iterdir()) == [f"{i}.{suffix}" for i in every]
    assert Image.open(year / "JPEGImages" / "000001.jpg").format == "JPEG"
    assert len(list((root / "VOCdevkit" / "VOC2012" / "Annotations").iterdir())) == 4
    with pytest.raises(ValueError, match="a world has an image or more"):
        write_voc_world(tmp_path / "none", test_images=0)


def test_the_segmentation_layout_is_that_of_both_releases(tmp_path: Path) -> None:
    root = write_sbd_world(tmp_path / "w", 0, 6, 6, 2, 8, labels="both")
    year, sbd = root / "VOCdevkit" / "VOC2012", root / "benchmark_RELEASE" / "dataset"
    lists = {p.stem: p.read_text().split() for p in (year / "ImageSets" / "Segmentation").iterdir()}
    assert set(lists) == {"train", "val", "trainval", "test", "train_aug"}
    assert sorted(p.stem for p in (year / "SegmentationClass").iterdir()) == lists["trainval"]
    assert len(list((year / "SegmentationClassAug").iterdir())) == 20
    assert len(lists["train_aug"]) == 14
    labelled = {p.stem for p in (sbd / "cls").iterdir()}
    assert labelled == {p.stem for p in (sbd / "img").iterdir()}
    assert labelled == {i for s in ("train", "val") for i in (sbd / f"{s}.txt").read_text().split()}
    assert len(labelled) == 8 + 4 + 4
    assert not labelled & set(lists["test"])
    for name in sorted(labelled):
        struct = loadmat(sbd / "cls" / f"{name}.mat")["GTcls"]
        labels = struct[0]["Segmentation"][0]
        width, height = Image.open(sbd / "img" / f"{name}.jpg").size
        assert (struct.shape, labels.dtype, labels.shape) == ((1, 1), np.uint8, (height, width))
        present = struct[0]["CategoriesPresent"][0].ravel().tolist()
        assert present == sorted(set(labels.ravel().tolist()) - {0})
        boundaries = struct[0]["Boundaries"][0]
        assert boundaries.shape == (20, 1)
        for label in range(1, 21):
            edge = boundaries[label - 1, 0].toarray()
            assert edge.any() == (label in present)
            assert (labels[edge > 0] == label).all()
        if name in lists["trainval"]:
            voc = np.asarray(Image.open(year / "SegmentationClass" / f"{name}.png"))
            assert np.array_equal(voc[voc < 255], labels[voc < 255])
            assert (voc == 255).any()
    aug = Image.open(next((year / "SegmentationClassAug").iterdir()))
    assert aug.mode == "L"
    with pytest.raises(ValueError, match="a world has an image or more a part"):
        write_sbd_world(tmp_path / "none", sbd_images=0)


def test_the_same_parameters_give_the_same_bytes_and_a_complete_world_is_kept(tmp_path: Path) -> None:
    for write, options in (
        (write_voc_world, {"train_images": 3, "val_images": 2, "test_images": 2}),
        (write_sbd_world, {"train_images": 3, "val_images": 3, "test_images": 1, "sbd_images": 3, "labels": "both"}),
    ):
        one = write(tmp_path / write.__name__ / "one", **options)  # type: ignore[operator]
        two = write(tmp_path / write.__name__ / "two", **options)  # type: ignore[operator]
        other = write(tmp_path / write.__name__ / "other", seed=1, **options)  # type: ignore[operator]
        assert checksums(one) == checksums(two) != checksums(other)
        path = next(one.rglob("*.jpg"))
        stamp = path.stat().st_mtime_ns
        write(one, **options)  # type: ignore[operator]
        assert path.stat().st_mtime_ns == stamp
        with pytest.raises(DataError, match="holds something else than the world"):
            write(one, seed=2, **options)  # type: ignore[operator]
        with pytest.raises(DataError, match="holds something else than the world"):
            write(one, knobs=ShapeKnobs(detail=0.1), **options)  # type: ignore[operator]


def test_every_class_and_both_flags_occur(tmp_path: Path) -> None:
    root = write_voc_world(tmp_path / "w", 0, 100, 1, 1)
    module = VOCDetectionDataModule(root, batch_size=1, seed=0)
    labels = np.concatenate([e.labels for e in module.train_examples])
    assert set(labels.tolist()) == set(range(len(VOC_CLASSES)))
    difficult = np.concatenate([e.difficult for e in module.train_examples])
    assert 0.005 < difficult.mean() < 0.3
    twice = [len(e.labels) - len(set(e.labels.tolist())) for e in module.train_examples]
    assert np.mean(np.array(twice) > 0) > 0.2  # several instances of one class


@pytest.mark.slow
def test_500_images_take_seconds(tmp_path: Path) -> None:
    start = time.process_time()
    write_voc_world(tmp_path / "w", 0, 300, 50, 150)
    assert time.process_time() - start < 5
