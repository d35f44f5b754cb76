from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import loadmat

import data_modules.voc_segmentation as voc_segmentation
from data_modules.errors import DataError
from data_modules.segmentation import SegmentationBatch, read_labels
from data_modules.synthetic.sbd import write_sbd_world
from data_modules.voc_segmentation import VOCSegmentationDataModule

pytestmark = pytest.mark.filterwarnings("ignore:VOC and SBD label")
NO_VAL = {"train_pool": "no_val"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read it, never write to it: 12 train, 9 val, 3 test images, 20 of SBD alone, which labels 14 of the 21 too."""
    return write_sbd_world(tmp_path_factory.mktemp("sbd") / "world", 0, 12, 9, 3, 20, labels="both")


@pytest.fixture
def own_world(world: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(world, tmp_path / "own"))


def make(root: Path, **options: Any) -> VOCSegmentationDataModule:
    return VOCSegmentationDataModule(root, **({"batch_size": 4, "seed": 0, "input_size": 64} | options))


def lists(root: Path) -> Path:
    return root / "VOCdevkit" / "VOC2012" / "ImageSets" / "Segmentation"


def ids(root: Path, name: str) -> list[str]:
    return (lists(root) / f"{name}.txt").read_text().split()


def sbd_ids(root: Path) -> set[str]:
    return {i for s in ("train", "val") for i in (root / "benchmark_RELEASE/dataset" / f"{s}.txt").read_text().split()}


def names(module: VOCSegmentationDataModule, side: str = "train") -> set[str]:
    examples = module.train_examples if side == "train" else module.test_examples
    assert len({e.image for e in examples}) == len(examples)
    return {e.image for e in examples}


def test_val_batches_hold_warped_images_and_label_maps_in_their_own_size(world: Path) -> None:
    module = make(world, pixels="unit")
    module.setup("test")
    batches = list(module.test_dataloader())
    assert [e.image for b in batches for e in b.examples] == ids(world, "val")
    sizes = set()
    for batch in batches:
        assert isinstance(batch, SegmentationBatch)
        images = batch.images.stacked()
        assert (images.shape, images.dtype) == ((len(batch.examples), 3, 64, 64), torch.float32)
        assert 0 <= images.min() < 0.4 < images.max() <= 1
        assert batch.labels is not None
        assert batch.mirrored == (False,) * len(batch.examples)
        for example, labels in zip(batch.examples, batch.labels, strict=True):
            year = world / "VOCdevkit" / "VOC2012"
            expected = np.asarray(Image.open(year / "SegmentationClass" / f"{example.image}.png"))
            assert labels.dtype == torch.uint8
            assert np.array_equal(labels.numpy(), expected)
            assert set(np.unique(expected)) <= {*range(21), 255}
            assert labels.shape[::-1] == Image.open(example.path).size
            sizes.add(tuple(labels.shape))
    assert len(sizes) > 5
    assert len(list(module.predict_dataloader())) == len(batches)


def test_without_a_size_images_stay_as_they_are(world: Path) -> None:
    batch = next(iter(make(world, input_size=None, pixels="unit").test_dataloader()))
    assert batch.labels is not None
    for example, image, labels in zip(batch.examples, batch.images, batch.labels, strict=True):
        assert image.shape[1:] == labels.shape
        pixels = np.asarray(Image.open(example.path)).transpose(2, 0, 1) / 255
        assert np.allclose(image.numpy(), pixels, atol=1e-6)


def test_image_and_labels_are_mirrored_together(world: Path) -> None:
    (batch,) = make(world, train_pool="train", input_size=None, batch_size=100).train_dataloader()
    assert batch.labels is not None
    assert sum(batch.mirrored) == 12
    assert len(batch.examples) == 24
    found: dict[tuple[str, bool], tuple[torch.Tensor, torch.Tensor]] = {}
    for example, mirrored, image, labels in zip(
        batch.examples, batch.mirrored, batch.images, batch.labels, strict=True
    ):
        found[example.image, mirrored] = image, labels
    for image in ids(world, "train"):
        (a, a_labels), (b, b_labels) = found[image, False], found[image, True]
        assert torch.equal(b, a.flip(2))
        assert torch.equal(b_labels, a_labels.flip(1))
        assert not torch.equal(b_labels, a_labels)


def test_no_val_image_is_trained_on_though_sbd_lists_them(world: Path) -> None:
    val, train, sbd = set(ids(world, "val")), set(ids(world, "train")), sbd_ids(world)
    in_sbd_train = val & set((world / "benchmark_RELEASE/dataset/train.txt").read_text().split())
    assert in_sbd_train  # the trap
    assert names(make(world, train_pool="train")) == train
    assert names(make(world)) == (train | sbd) - val
    assert len(names(make(world))) == 32
    assert not names(make(world)) & names(make(world), "test")


def test_the_paper_s_pool_has_val_and_is_scored_fold_by_fold(world: Path) -> None:
    union = set(ids(world, "train")) | set(ids(world, "val")) | sbd_ids(world)
    seen: list[str] = []
    for fold in range(4):
        module = make(world, train_pool="trainval_sbd", eval_split="fold", fold=fold, num_folds=4)
        train, scored = names(module), names(module, "test")
        assert train | scored == union
        assert not train & scored
        assert len(scored) in (10, 11)
        assert module.provenance()["leaks_val"] is True
        seen += scored
        again = make(world, train_pool="trainval_sbd", eval_split="fold", fold=fold, num_folds=4, seed=7)
        assert names(again) == train  # the run's seed doesn't move the folds
    assert sorted(seen) == sorted(union)
    first = make(world, train_pool="trainval_sbd", eval_split="fold", fold=0, num_folds=4)
    other = make(world, train_pool="trainval_sbd", eval_split="fold", fold=0, num_folds=4, fold_seed=1)
    assert names(other, "test") != names(first, "test")
    clean = make(world, eval_split="fold", fold=1, num_folds=4)
    assert names(clean) | names(clean, "test") == union - set(ids(world, "val"))
    assert clean.provenance()["leaks_val"] is False
    nine_tenths = make(world, fold=1, num_folds=4)  # scored on val
    assert names(nine_tenths) == names(clean)
    assert names(nine_tenths, "test") == set(ids(world, "val"))


def test_a_part_of_val_keeps_all_of_it_out_of_training(own_world: Path) -> None:
    val = ids(own_world, "val")
    (lists(own_world) / "val_official.txt").write_text("\n".join(val))
    (lists(own_world) / "val.txt").write_text("\n".join(val[:3]))
    for image in val[3:]:  # their files aren't there either
        for folder, suffix in (("JPEGImages", "jpg"), ("SegmentationClass", "png")):
            (own_world / "VOCdevkit" / "VOC2012" / folder / f"{image}.{suffix}").unlink()
    module = make(own_world)
    assert [e.image for e in module.test_examples] == val[:3]
    assert len(names(module)) == 32
    assert not names(module) & set(val)
    (lists(own_world) / "val.txt").write_text("\n".join([*val[:3], "2008_999999"]))
    with pytest.raises(DataError, match=r"val\.txt: 1 images aren't in val_official\.txt, '2008_999999' first"):
        make(own_world).setup("fit")


def test_labels_are_voc_s_where_it_has_the_image_and_sbd_s_elsewhere(world: Path) -> None:
    expected = {"mat": "cls", "png": "SegmentationClassAug", "auto": "cls"}
    train = set(ids(world, "train"))
    for choice, folder in expected.items():
        module = make(world, sbd_labels=choice)
        sources = {e.image: e.label_path.parent.name for e in module.train_examples if e.label_path}
        assert {i for i, source in sources.items() if source == "SegmentationClass"} == train
        assert {i for i, source in sources.items() if source == folder} == names(module) - train
    example = next(e for e in make(world).train_examples if e.image not in train)
    assert example.label_path is not None
    labels = read_labels(example.label_path)
    assert np.array_equal(labels, loadmat(example.label_path)["GTcls"][0]["Segmentation"][0])
    png = world / "VOCdevkit" / "VOC2012" / "SegmentationClassAug" / f"{example.image}.png"
    assert np.array_equal(labels, read_labels(png))
    assert not (labels == 255).any()  # SBD has no void


def test_the_png_folder_and_its_list_stand_in_for_the_release(own_world: Path) -> None:
    whole = names(make(own_world))
    shutil.rmtree(own_world / "benchmark_RELEASE")
    module = make(own_world)
    assert names(module) == whole
    assert len(list(module.train_dataloader())) == 16
    (lists(own_world) / "train_aug.txt").unlink()
    with pytest.raises(DataError, match=r"dataset/train\.txt: no such file, nor .*train_aug\.txt; extract SBD"):
        make(own_world).setup("fit")
    assert names(make(own_world, train_pool="train")) == set(ids(own_world, "train"))  # needs no SBD


def test_sbd_s_own_copies_of_images_are_used_where_voc_s_are_missing(own_world: Path) -> None:
    image = next(iter(names(make(own_world)) - set(ids(own_world, "train"))))
    (own_world / "VOCdevkit" / "VOC2012" / "JPEGImages" / f"{image}.jpg").unlink()
    (example,) = (e for e in make(own_world).train_examples if e.image == image)
    assert example.path == own_world / "benchmark_RELEASE" / "dataset" / "img" / f"{image}.jpg"


def test_test_images_have_no_labels(world: Path) -> None:
    module = make(world, eval_split="test", train_pool="trainval_sbd")  # one net on all data, for the server
    (batch,) = module.predict_dataloader()
    assert [e.image for e in batch.examples] == ids(world, "test")
    assert batch.labels is None
    assert batch.to("meta").labels is None
    assert not names(module) & set(ids(world, "test"))


def test_pool_sizes_are_checked_softly(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    message = r"label 41 images, 32 without val; the releases label 12031 and 10582"
    with pytest.warns(UserWarning, match=message):
        make(world).setup("fit")
    monkeypatch.setattr(voc_segmentation, "UNION_IMAGES", 41)
    monkeypatch.setattr(voc_segmentation, "NO_VAL_IMAGES", 32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(world).setup("fit")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_pool": "all"}, "train_pool='all'"),
        ({"train_pool": "trainval_sbd"}, "holds val images: score each fold"),
        ({"train_pool": "trainval_sbd", "fold": 0}, "holds val images"),
        ({"eval_split": "fold"}, "name it with fold="),
        ({"eval_split": "train"}, "eval_split='train'"),
        ({"fold": 10}, "fold=10, num_folds=10"),
        ({"fold": 0, "num_folds": 1}, "num_folds=1"),
        ({"sbd_labels": "jpg"}, "sbd_labels='jpg'"),
        ({"pixels": "rgb"}, "pixels='rgb'"),
    ],
)
def test_contradictory_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(Path("unread"), **options)


def test_lists_that_contradict_each_other(own_world: Path) -> None:
    (lists(own_world) / "train.txt").write_text("\n".join([*ids(own_world, "train"), ids(own_world, "val")[0]]))
    with pytest.raises(DataError, match=r"train\.txt: 1 images are val's"):
        make(own_world).setup("fit")
    (lists(own_world) / "train.txt").write_text("\n".join(ids(own_world, "train")[:-1]))
    (lists(own_world) / "test.txt").write_text("\n".join([*ids(own_world, "test"), ids(own_world, "train")[0]]))
    with pytest.raises(DataError, match="1 images that are scored are trained on too"):
        make(own_world, eval_split="test").setup("fit")


def test_setup_twice_reads_once(world: Path) -> None:
    module = make(world)
    module.setup("fit")
    module.setup("test")
    train, test = module.train_examples, module.test_examples
    module.setup()
    assert module.train_examples is train
    assert module.test_examples is test
    assert module.class_names[0] == "background"
    assert (len(module.class_names), module.class_names[15]) == (21, "person")


def test_a_resumed_loader_goes_on_with_the_next_batch(world: Path) -> None:
    def order(module: VOCSegmentationDataModule) -> list[list[str]]:
        return [[e.image for e in batch.examples] for batch in module.train_dataloader()]

    whole, resumed = make(world), make(world)
    resumed.start_step = 5
    assert order(resumed) == order(whole)[5:]


def test_hostile_files(own_world: Path) -> None:
    year = own_world / "VOCdevkit" / "VOC2012"
    first, third, _, second = ids(own_world, "val")[:4]  # of the second, SBD has no copy
    dataset = make(own_world).test_dataloader().dataset
    png = year / "SegmentationClass" / f"{first}.png"
    labels = np.asarray(Image.open(png)).copy()
    Image.fromarray(labels[:, :-1]).save(png)
    height, width = labels.shape
    with pytest.raises(
        DataError, match=rf"{first}\.png: the label map has {width - 1} x {height} pixels, its image {width}"
    ):
        dataset[0]
    labels[0, 0] = 77
    Image.fromarray(labels).save(png)
    with pytest.raises(DataError, match=rf"{first}\.png: illegal ids \[77\]"):
        dataset[0]
    jpg = year / "JPEGImages" / f"{second}.jpg"
    jpg.write_bytes(jpg.read_bytes()[:-100])
    with pytest.raises(DataError, match=rf"{second}\.jpg: truncated"):
        dataset[3]
    (year / "SegmentationClass" / f"{third}.png").unlink()
    jpg.unlink()
    with pytest.raises(DataError, match=r"2008_\d{6}\.(jpg|png): no such file, nor 1 others; extract the devkit"):
        make(own_world).setup("test")


def test_provenance(world: Path, own_world: Path) -> None:
    module = make(world)
    provenance = module.provenance()
    json.dumps(provenance)
    assert provenance["official"] is False
    files = {f["name"]: f for f in provenance["files"]}
    assert set(files) == {"train.txt", "val.txt", "SBD train.txt", "SBD val.txt"}
    content = (lists(world) / "val.txt").read_bytes()
    assert files["val.txt"]["sha256"] == hashlib.sha256(content).hexdigest()
    assert provenance["counts"] == {
        "train_images": 32,
        "train_labels_SegmentationClass": 12,
        "train_labels_cls": 20,
        "test_images": 9,
        "test_labels_SegmentationClass": 9,
    }
    shutil.rmtree(own_world / "benchmark_RELEASE")
    scoring = make(own_world)
    scoring.setup("test")
    assert scoring.provenance()["counts"] == {"test_images": 9, "test_labels_SegmentationClass": 9}
