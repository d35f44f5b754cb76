"""One run: build, fit from the last checkpoint, test, write the record."""

from __future__ import annotations

import importlib
import io
import logging
import os
import platform
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import TQDMProgressBar
from pytorch_lightning.plugins.io import TorchCheckpointIO

from experiments.callbacks import CheckFinite, History, PeriodicCheckpoint, SeedEveryStep
from experiments.config import Config
from experiments.errors import ExperimentError
from experiments.machine import Machine
from experiments.runs import Run
from experiments.store import CHECKPOINT, Record, write_atomically

PACKAGES = ("torch", "pytorch-lightning", "torchmetrics", "torchvision", "numpy", "scipy")


@dataclass(frozen=True)
class Context:
    """What a builder gets beside the run.

    Attributes:
        machine: This machine's folders.
        folder: The run's own, for files that it leaves beside its record.
        folders: Those of the needed runs.
        checkpoints: Of the needed runs that train.
        records: Of all needed runs.
    """

    machine: Machine
    folder: Path
    folders: dict[str, Path]
    checkpoints: dict[str, Path]
    records: dict[str, Record]

    @classmethod
    def of(cls, run: Run, machine: Machine) -> Context:
        """Return what the builder of a run gets on this machine; all that the run needs is done."""
        store, needs = machine.store, run.needs.items()
        return cls(
            machine,
            store.folder(run),
            {key: store.folder(need) for key, need in needs},
            {key: store.folder(need) / CHECKPOINT for key, need in needs if need.stage.fits},
            {key: store.record(need) or {} for key, need in needs},
        )


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint under another name and renames it, so that a kill never leaves half of one.

    Lightning's own goes through the system's folder for temporary files, which may be on another disk.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Save to `path`.

        Raises:
            ExperimentError: The disk is full; the previous checkpoint stays.
        """
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_atomically(Path(path), buffer.getbuffer())


def execute(run: Run, machine: Machine) -> None:
    """Do a run and write its record, or wait for the process that is doing it.

    Raises:
        ExperimentError: An input is missing or wrong, the disk is full, or the loss became non-finite.
    """
    store = machine.store
    with store.lock(run):
        if store.usable(run):
            return
        if lacking := [need.name for need in run.needs.values() if not store.usable(need)]:
            raise ExperimentError(
                f"run {run.name} needs {', '.join(lacking)}: give the table's command, which does both"
            )
        store.write_record(run, _train_or_test(run, store.folder(run), Context.of(run, machine)))


def _train_or_test(run: Run, folder: Path, context: Context) -> Record:
    settings = run.config["trainer"]
    torch.set_num_threads(settings["threads"])
    pl.seed_everything(run.seed, verbose=False)
    _quiet()
    started = time.monotonic()
    datamodule, module, *finish = build(run, context)
    history = History()
    trainer = _trainer(run, folder, settings, history)
    checkpoint = folder / CHECKPOINT
    if run.stage.fits:
        steps = _steps_done(run, checkpoint)
        datamodule.start_step = steps or 0
        trainer.fit(module, datamodule=datamodule, ckpt_path=None if steps is None else checkpoint)
        if not history.curves:
            raise ExperimentError(f"run {run.name} of {run.paper} ended without a step: look at its trainer's limits")
        metrics = {key: values[-1] for key, values in history.curves.items()}
    else:
        trainer.test(module, datamodule=datamodule, verbose=False)
        for write in finish:
            write()
        metrics = {key.removeprefix("test/"): float(value) for key, value in sorted(trainer.callback_metrics.items())}
    return {
        "paper": run.paper,
        "stage": run.stage_name,
        "run": run.name,
        "seed": run.seed,
        "config": run.config,
        "needs": {key: need.name for key, need in run.needs.items()},
        "method_versions": run.method_versions,
        "metrics": metrics,
        "curves": history.curves,
        "data": datamodule.provenance(),
        "duration_s": round(history.seconds_before + time.monotonic() - started, 1),
        "peak_memory_mb": _peak_memory_mb(),
        "hardware": _hardware(),
        "versions": _versions(),
        "commit": _commit(),
    }


def build(run: Run, context: Context) -> tuple[Any, ...]:
    """Return a run's LightningDataModule and LightningModule.

    An evaluation that leaves a file beside its record has a third: a function that writes it after the test.
    """
    module_name, _, function = run.stage.builder.partition(":")
    built: tuple[Any, ...] = getattr(importlib.import_module(module_name), function)(run, context)
    return built


def _trainer(run: Run, folder: Path, settings: Config, history: History) -> pl.Trainer:
    def limit(key: str) -> int | float:
        return 1.0 if settings[key] < 0 else int(settings[key])

    callbacks: list[pl.Callback] = [history]
    if run.stage.fits:
        callbacks += [SeedEveryStep(run.seed), CheckFinite(run.name)]
        callbacks.append(PeriodicCheckpoint(folder / CHECKPOINT, settings["checkpoint_seconds"], run.method_versions))
    interactive = sys.stderr.isatty()
    if interactive:
        callbacks.append(TQDMProgressBar(leave=False))
    return pl.Trainer(
        accelerator=settings["accelerator"],
        devices=1,
        max_epochs=settings.get("max_epochs", 1),
        limit_train_batches=limit("limit_train_batches") if run.stage.fits else 1.0,
        limit_test_batches=1.0 if run.stage.fits else limit("limit_test_batches"),
        gradient_clip_val=settings.get("gradient_clip_norm") or None,
        callbacks=callbacks,
        plugins=[AtomicCheckpointIO()],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=interactive,
        deterministic=True,
        use_distributed_sampler=False,
        default_root_dir=folder,
    )


def _quiet() -> None:
    """Silence Lightning's banners and its advice on things that are set here on purpose."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*GPU available but not used.*",
        ".*treespec, LeafSpec.*",
        ".*have no `val_dataloader`.*",
        ".*have no `validation_step`.*",
        ".*module\\(s\\) in eval mode at the start of training.*",  # frozen detectors
    ):
        warnings.filterwarnings("ignore", message)


def _steps_done(run: Run, checkpoint: Path) -> int | None:
    """Return the steps that a checkpoint goes on from; None without one, or if older code wrote it."""
    if not checkpoint.exists():
        return None
    content = read_checkpoint(checkpoint)
    return int(content["global_step"]) if content["method_versions"] == run.method_versions else None


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return a checkpoint, on the CPU.

    Raises:
        ExperimentError: It is missing or damaged.
    """
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds, some with advice that is wrong here
        raise ExperimentError(
            f"{path}: not a readable checkpoint ({type(error).__name__}); delete it and give the same command again, "
            "which then trains this run from its beginning"
        ) from error
    return content


def _peak_memory_mb() -> float:
    """Return the peak of GPU memory if a GPU was used, else of this process's resident memory."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10, 1)


def _hardware() -> Mapping[str, Any]:
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].partition(":")[2].strip() if lines else model
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": model, "cores": os.cpu_count(), "gpu": gpu}


def _versions() -> Mapping[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


def _commit() -> str:
    """Return the commit this code is at, with `-dirty` where files of the code differ from it."""
    here = Path(__file__).parent.parent
    try:
        head = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=here, capture_output=True, text=True)
        # Without locks, so as never to stand in the way of a commit that is being made.
        code = ["git", "--no-optional-locks", "status", "--porcelain"]
        folders = ["experiments", "lit_modules", "data_modules"]
        changed = subprocess.run([*code, "--", *folders], cwd=here, capture_output=True, text=True)
    except OSError:
        return "unknown"
    if head.returncode:
        return "unknown"
    return head.stdout.strip() + ("-dirty" if changed.stdout.strip() else "")
