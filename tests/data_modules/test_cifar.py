from __future__ import annotations

import hashlib
import json
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor

from data_modules import cifar
from data_modules.cifar import CIFARDataModule
from data_modules.cifar_files import OFFICIAL_MD5
from data_modules.resident import ImageBatch
from data_modules.synthetic.cifar import write_cifar_world


@pytest.fixture(scope="module")
def world_10(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("generated") / "cifar10"
    return write_cifar_world(root, dataset=10, train_images=200, test_images=40)


@pytest.fixture(scope="module")
def world_100(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("generated") / "cifar100"
    return write_cifar_world(root, dataset=100, train_images=400, test_images=100)


def make_10(root: Path, **options: Any) -> CIFARDataModule:
    return CIFARDataModule(root, **({"batch_size": 16, "seed": 0, "dataset": 10, "val_images": 40} | options))


def make_100(root: Path, **options: Any) -> CIFARDataModule:
    return CIFARDataModule(root, **({"batch_size": 16, "seed": 0, "dataset": 100, "val_images": 100} | options))


def contents(loader: Any) -> set[bytes]:
    return {image.numpy().tobytes() for batch in loader for image in batch.images}


def unpickled(path: Path) -> dict[bytes, Any]:
    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy 2 dislikes the module name that the official files have
        return pickle.load(file, encoding="bytes")


def test_batches_have_the_networks_format(world_10: Path, world_100: Path) -> None:
    for module, classes, sizes in (
        (make_10(world_10), 10, (160, 40, 40)),
        (make_100(world_100), 100, (300, 100, 100)),
    ):
        loaders = module.train_dataloader(), module.val_dataloader(), module.test_dataloader()
        for loader, size in zip(loaders, sizes, strict=True):
            batches = list(loader)
            assert [len(b.labels) for b in batches] == [16] * (size // 16) + [size % 16] * (size % 16 > 0)
            assert len(loader) == len(batches)
            for batch in batches:
                assert isinstance(batch, ImageBatch)
                assert batch.images.shape == (len(batch.labels), 3, 32, 32)
                assert batch.images.dtype == torch.float32
                assert batch.images.is_contiguous()
                assert (batch.labels.dtype, batch.index.dtype) == (torch.int64, torch.int64)
                assert batch.labels.min() >= 0
                assert batch.labels.max() < classes
                assert -2.8 < batch.images.min() < -0.5
                assert 0.5 < batch.images.max() < 2.8
        assert module.num_classes == len(module.class_names) == classes
        assert sorted(torch.cat([b.index for b in module.train_dataloader()]).tolist()) == sorted(
            module.split("train").rows.tolist()
        )


def test_the_evaluated_pixels_are_the_files(world_100: Path) -> None:
    content = unpickled(world_100 / "cifar-100-python" / "test")
    batches = list(make_100(world_100, normalisation="smooth_topk").test_dataloader())
    mean, std = np.array([125.3, 123.0, 113.9]), np.array([63.0, 62.1, 66.7])
    expected = (content[b"data"].reshape(-1, 3, 32, 32) - mean[:, None, None]) / std[:, None, None]
    np.testing.assert_allclose(torch.cat([b.images for b in batches]).numpy(), expected, atol=1e-5)
    assert torch.cat([b.labels for b in batches]).tolist() == content[b"fine_labels"]


def test_the_five_training_files_follow_one_another(world_10: Path) -> None:
    files = [unpickled(world_10 / "cifar-10-batches-py" / f"data_batch_{i}") for i in range(1, 6)]
    labels = [label for file in files for label in file[b"labels"]]
    pixels = np.concatenate([file[b"data"] for file in files]).reshape(-1, 3, 32, 32)
    split = make_10(world_10).split("train")
    assert split.labels.tolist() == [labels[row] for row in split.rows]
    assert np.array_equal(np.asarray(split.images.read(range(200))), pixels)


@pytest.mark.parametrize(
    ("dataset", "normalisation", "mean", "std"),
    [
        (10, "smooth_topk", 125.3, 63.0),
        (10, "dataset", 0.4914 * 255, 0.2470 * 255),
        (100, "dataset", 0.5071 * 255, 0.2673 * 255),
        (100, "imagenet", 0.485 * 255, 0.229 * 255),
    ],
)
def test_normalisation(
    world_10: Path, world_100: Path, dataset: Any, normalisation: Any, mean: float, std: float
) -> None:
    make, root = (make_10, world_10) if dataset == 10 else (make_100, world_100)
    module = make(root, normalisation=normalisation, augment=False)
    batch = next(iter(module.train_dataloader()))
    raw = np.asarray(module.split("train").images.read(batch.index.tolist()))[:, 0].astype(float)
    np.testing.assert_allclose(batch.images[:, 0].numpy(), (raw - mean) / std, atol=1e-5)


# Splits


def test_the_split_of_berrada_et_al_ignores_every_seed(world_100: Path) -> None:
    # The oracle draws from the global legacy generator, as the official code does.
    np.random.seed(1234)  # noqa: NPY002
    order = np.random.permutation(np.random.choice(400, size=400, replace=False))  # noqa: NPY002
    for options in ({}, {"seed": 5}, {"split_seed": 5}):
        module = make_100(world_100, split="smooth_topk", **options)
        assert module.split("train").rows.tolist() == order[:300].tolist()
        assert module.split("val").rows.tolist() == order[300:].tolist()


def test_the_seeded_split_is_shared_by_runs_unless_told_otherwise(world_10: Path) -> None:
    def held_out(**options: Any) -> list[int]:
        return make_10(world_10, **options).split("val").rows.tolist()

    assert held_out() == held_out(seed=1) == held_out(noise_seed=1)
    assert held_out() != held_out(split_seed=1)
    per_run = [held_out(seed=s, resplit_per_run=True) for s in (0, 0, 1)]
    assert per_run[0] == per_run[1] != per_run[2]
    assert held_out() != make_10(world_10, split="smooth_topk").split("val").rows.tolist()


def test_a_stratified_split_holds_out_equally_of_every_class(world_10: Path) -> None:
    module = make_10(world_10, stratified=True)
    assert np.bincount(module.split("val").labels).tolist() == [4] * 10
    assert np.bincount(module.split("train").labels).tolist() == [16] * 10
    assert np.bincount(make_10(world_10).split("val").labels, minlength=10).tolist() != [4] * 10


@pytest.mark.parametrize("options", [{}, {"split": "smooth_topk"}, {"resplit_per_run": True, "seed": 3}])
def test_setup_again_gives_the_same_split(world_10: Path, options: dict[str, Any]) -> None:
    module = make_10(world_10, **options)
    first = module.split("train")
    module.setup("fit")
    module.setup("test")
    assert module.split("train") is first
    assert make_10(world_10, **options).split("train").rows.tolist() == first.rows.tolist()


@pytest.mark.parametrize("resident", [False, True])
@pytest.mark.parametrize("split", ["seeded", "smooth_topk"])
def test_no_validation_or_test_image_enters_training(world_100: Path, split: Any, resident: bool) -> None:
    module = make_100(world_100, split=split, resident=resident, augment=False)
    train, val = contents(module.train_dataloader()), contents(module.val_dataloader())
    test = contents(module.test_dataloader())
    assert (len(train), len(val), len(test)) == (300, 100, 100)
    assert not train & val
    assert not (train | val) & test


# Batches


@pytest.mark.parametrize("augment", [True, False])
def test_resident_batches_equal_those_of_the_loader(world_100: Path, augment: bool) -> None:
    loaded, resident = (make_100(world_100, resident=r, augment=augment, noise=0.5) for r in (False, True))
    for name in ("train_dataloader", "val_dataloader", "test_dataloader"):
        first, second = getattr(loaded, name)(), getattr(resident, name)()
        for _ in range(2):
            for a, b in zip(first, second, strict=True):
                assert torch.equal(a.images, b.images)
                assert torch.equal(a.labels, b.labels)
                assert torch.equal(a.index, b.index)


def test_resident_images_are_held_once_and_freed(world_100: Path) -> None:
    module = make_100(world_100, resident=True)
    loaders = module.train_dataloader(), module.val_dataloader(), module.train_dataloader()
    assert len({loader.images.data_ptr() for loader in loaders}) == 1
    module.teardown("fit")
    assert not module._on_device


def test_training_images_are_augmented_and_others_are_not(world_10: Path) -> None:
    module, plain = make_10(world_10), make_10(world_10, augment=False)
    train = module.train_dataloader()
    epochs = [torch.cat([b.images[b.index.argsort()] for b in train]) for _ in range(2)]
    assert not torch.equal(epochs[0], epochs[1])
    unchanged = contents(plain.train_dataloader())
    augmented = contents(module.train_dataloader())
    assert len(augmented & unchanged) < 10  # one in 162 is neither moved nor mirrored
    assert contents(module.val_dataloader()) == contents(plain.val_dataloader())
    assert contents(module.test_dataloader()) == contents(plain.test_dataloader())


def test_augmentation_follows_the_seed(world_10: Path) -> None:
    def epoch(**options: Any) -> set[bytes]:
        return contents(make_10(world_10, **options).train_dataloader())

    assert epoch() == epoch(batch_size=7)
    assert epoch() != epoch(seed=1)


def test_without_validation_images_there_is_no_loader(world_10: Path) -> None:
    module = make_10(world_10, val_images=0)
    assert module.val_dataloader() == []
    assert len(module.split("train").rows) == 200
    with pytest.raises(ValueError, match="val_images=200: there are 200 training images"):
        make_10(world_10, val_images=200).setup()


@pytest.mark.parametrize("resident", [False, True])
def test_loaders_leave_the_global_random_states_alone(world_100: Path, resident: bool) -> None:
    module = make_100(world_100, resident=resident, split="smooth_topk", noise=0.5)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    for loader in (module.train_dataloader(), module.val_dataloader(), module.test_dataloader()):
        list(loader)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002


class Recorder(pl.LightningModule):
    """Notes a checksum of every training batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[float, list[int]]] = []

    def training_step(self, batch: ImageBatch[Tensor], batch_idx: int) -> Tensor:
        self.seen.append((float(batch.images.double().sum()), batch.labels.tolist()))
        return self.weight * batch.images.sum()

    def validation_step(self, batch: ImageBatch[Tensor], batch_idx: int) -> None:
        assert not batch.images.requires_grad

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def trainer(**options: Any) -> pl.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return pl.Trainer(accelerator="cpu", devices=1, max_epochs=3, **quiet, **options)


@pytest.mark.parametrize("resident", [False, True])
def test_training_goes_on_where_its_checkpoint_ended(world_10: Path, tmp_path: Path, resident: bool) -> None:
    whole, first, second = Recorder(), Recorder(), Recorder()
    options = {"batch_size": 32, "resident": resident}
    trainer(enable_checkpointing=False).fit(whole, datamodule=make_10(world_10, **options))
    assert len(whole.seen) == 15
    keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    trainer(max_steps=7, callbacks=[keep]).fit(first, datamodule=make_10(world_10, **options))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*not resumable")
        module = make_10(world_10, **options)
        resumed = trainer(enable_checkpointing=False)
        resumed.fit(second, datamodule=module, ckpt_path=tmp_path / "step=7.ckpt", weights_only=False)
    assert first.seen + second.seen == whole.seen


@pytest.mark.slow
def test_worker_processes_give_the_same_batches(world_100: Path) -> None:
    alone, helped = make_100(world_100).train_dataloader(), make_100(world_100, num_workers=2).train_dataloader()
    for _ in range(2):
        for a, b in zip(alone, helped, strict=True):
            assert torch.equal(a.images, b.images)
            assert torch.equal(a.labels, b.labels)


def test_provenance_lists_the_files_and_knows_the_official_ones(
    world_10: Path, world_100: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, count in ((make_10(world_10), 7), (make_100(world_100), 3)):
        provenance = module.provenance()
        json.dumps(provenance)
        assert provenance["official"] is False
        assert len(provenance["files"]) == count
        for file in provenance["files"]:
            content = (module.root / file["name"]).read_bytes()
            assert file["name"] in OFFICIAL_MD5
            assert (file["bytes"], file["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    assert (provenance["dataset"], provenance["classes"]) == ("CIFAR-100", 100)
    assert (provenance["train_images"], provenance["val_images"], provenance["test_images"]) == (300, 100, 100)
    own = {name: hashlib.md5((world_100 / name).read_bytes()).hexdigest() for name in list(OFFICIAL_MD5)[-3:]}
    monkeypatch.setattr(cifar, "OFFICIAL_MD5", own)
    assert make_100(world_100).provenance()["official"] is True
    monkeypatch.setitem(own, "cifar-100-python/test", "0" * 32)
    assert make_100(world_100).provenance()["official"] is False


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": 20}, "dataset=20: expected 10 or 100"),
        ({"split": "half"}, "split='half': expected one of"),
        ({"normalisation": "none"}, "normalisation='none'"),
        ({"split": "smooth_topk", "stratified": True}, "one fixed split"),
        ({"split": "smooth_topk", "resplit_per_run": True}, "one fixed split"),
        ({"dataset": 10, "noise": 0.2}, "CIFAR-10 hasn't: use dataset=100"),
        ({"noise": 1.2}, "noise=1.2: expected a fraction"),
        ({"noise_groups": "fine"}, "noise_groups='fine'"),
        ({"noise_seed": -1}, "noise_seed=-1"),
    ],
)
def test_contradictory_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_100(Path("unread"), **options)
