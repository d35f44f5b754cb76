"""Finished runs on single images: graphs of a user's own images, and pictures of test images."""

from __future__ import annotations

import argparse
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.config import flatten
from experiments.errors import ExperimentError, unknown
from experiments.machine import Machine
from experiments.runs import Run, in_order
from experiments.store import RECORD, Record, Store, read_record, write_atomically

if TYPE_CHECKING:
    from experiments.graph_picture import Graph

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".gif", ".webp"})
SHOWN_DIFFERENCES = 4


def add_commands(commands: Any) -> None:
    """Add `predict` and `figure-graphs` to the subcommands of the command line."""
    predict_ = commands.add_parser("predict", help="write the graphs that a finished run's model sees in your images")
    figure = commands.add_parser("figure-graphs", help="draw what finished runs see in some of their test images")
    for sub, top in ((predict_, 20), (figure, 10)):
        sub.add_argument("paper")
        sub.add_argument("run", help="the hash of a run that scores pairs (`plan` lists them), or its first digits")
        sub.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where to write")
        sub.add_argument("--top", type=_positive, default=top, help=f"triplets an image (default: {top})")
        sub.add_argument(
            "--per-pair", type=_positive, default=0, help="triplets a pair (default: the run's smallest k)"
        )
        sub.add_argument("--overwrite", action="store_true", help="do images again that are done")
    predict_.add_argument("--images", type=Path, nargs="+", required=True, metavar="FOLDER|FILE")
    predict_.add_argument("--detections", type=Path, help="objects in them: our .npz, or a COCO list of results, .json")
    predict_.add_argument("--index", type=Path, help="the COCO annotations whose ids that list uses")
    predict_.add_argument("--truth", action="store_true", help="mark what the run's data set annotates as right")
    figure.add_argument("--against", metavar="RUN", help="a run of the same paper to draw beside it")
    figure.add_argument("--images", type=_positive, default=8, metavar="N", help="how many (default: 8)")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("expected 1 or more")
    return value


def predict(arguments: argparse.Namespace, machine: Machine) -> None:
    """Write `<image>.json` and `<image>.png` of each image into the folder `--out`; those that are there stay.

    Raises:
        ExperimentError: The run is unknown, not done or of no use here, or there is no image, or results of other
            settings are in the way.
        DataError: An image or the detections are damaged.
    """
    run = find_run(machine.store, arguments.paper, arguments.run)
    detector = detector_of(run)
    if arguments.detections is None and detector is None:
        raise ExperimentError(
            f"run {run.name} of {run.paper}: its model sees no pixels and has no detector: name the objects of your "
            "images with --detections FILE"
        )
    images = find_images(arguments.images, arguments.out)
    made_by = {"paper": run.paper, "run": run.name, "top": arguments.top, "per_pair": arguments.per_pair}
    made_by |= {"detections": _sha256(arguments.detections), "truth": arguments.truth}
    todo = {name: images[name] for name in _todo(images, arguments, made_by)}
    if todo:
        from experiments.build_predict import Predictor  # imports torch
        from experiments.graph_picture import draw_panels

        predictor = Predictor(run, detector, machine, todo, arguments.per_pair, arguments.detections, arguments.index)
        for graph, pixels in predictor.predict(arguments.top, arguments.truth):
            picture = draw_panels(pixels, [(graph.image, graph)])
            _write(arguments.out / graph.image, picture, {"made_by": made_by, **graph.to_json()})
    _report(arguments.out, len(todo), len(images))


def figure_graphs(arguments: argparse.Namespace, machine: Machine) -> None:
    """Write a picture of each of some test images with what one run or two see in it, right and wrong marked.

    Raises:
        ExperimentError: A run is unknown, not done or of no use here, or the runs have other test images.
        DataError: The data set is damaged.
    """
    names = [arguments.run, *([arguments.against] if arguments.against else [])]
    runs = [find_run(machine.store, arguments.paper, name) for name in names]
    from experiments.build_predict import ScoredImages  # imports torch
    from experiments.graph_picture import draw_panels

    scored = ScoredImages(runs, machine, arguments.per_pair)
    chosen = scored.chosen(arguments.images)
    made_by = {"paper": arguments.paper, "runs": [run.name for run in runs]}
    made_by |= {"top": arguments.top, "per_pair": arguments.per_pair}
    todo, blank = _todo(chosen, arguments, made_by), 0
    for name in todo:
        graphs, pixels = scored.graphs(chosen[name], arguments.top)
        blank += pixels is None
        picture = draw_panels(pixels, list(zip(_titles(runs), graphs, strict=True)))
        panels = [_marked(run, graph) for run, graph in zip(runs, graphs, strict=True)]
        _write(arguments.out / name, picture, {"made_by": made_by, "panels": panels})
    if blank:
        print(f"{blank} images are not at hand: drawn on a blank ground")
    _report(arguments.out, len(todo), len(chosen))


def find_run(store: Store, paper: str, prefix: str) -> Run:
    """Return the finished run that scores pairs and whose name begins with `prefix`.

    Raises:
        ExperimentError: There is no such run or several, it doesn't score pairs, or it was done by other code.
    """
    records = _records(store, paper)
    if not records:
        raise ExperimentError(f"no run of {paper!r} is done in {store.runs_dir} or {store.results_dir}")
    found = [name for name in sorted(records) if name.startswith(prefix)] if prefix not in records else [prefix]
    if not found:
        raise unknown(f"run of {paper}", prefix, records)
    if len(found) > 1:
        raise ExperimentError(f"run {prefix!r} of {paper}: several begin so: {', '.join(found)}; give more digits")
    run = _rebuilt(records, found[0])
    if run.stage.fits or "evaluation" not in run.stage.sections or run.stage_name == "precomputed":
        scoring = sorted(name for name, record in records.items() if "evaluation" in record["config"])
        raise ExperimentError(
            f"run {run.name} of {paper} is of stage {run.stage_name}, whose model ranks no triplets; such runs are: "
            f"{', '.join(scoring) or 'none'}"
        )
    if store.state(run) != "done":
        raise ExperimentError(f"run {run.name} of {paper} is {store.state(run)}: give its table's command again")
    return run


def detector_of(run: Run) -> Run | None:
    """Return the training of the detector whose boxes a run ranks, or else that its model starts from."""
    for key, need in sorted(run.needs.items(), key=lambda item: item[0] != "detections"):
        found = need if need.stage_name == "detector" else detector_of(need)
        if found is not None and key != "choice":
            return found
    return None


def find_images(given: Sequence[Path], out: Path) -> dict[str, Path]:
    """Return image files by name: that in its folder, or of a single file its own.

    Args:
        given: Files, and folders that are searched with all in them.
        out: Where pictures are written, which is not searched.

    Raises:
        ExperimentError: A path doesn't exist, a folder holds no image, or two images have one name.
    """
    images: dict[str, Path] = {}
    for path in given:
        if path.is_dir():
            files = [p for p in sorted(path.rglob("*")) if p.suffix.lower() in SUFFIXES and p.is_file()]
            found = {p.relative_to(path).as_posix(): p for p in files if out.resolve() not in p.resolve().parents}
            if not found:
                raise ExperimentError(f"{path}: no image in this folder ({', '.join(sorted(SUFFIXES))})")
        elif path.is_file():
            found = {path.name: path}
        else:
            raise ExperimentError(f"{path}: no such image or folder of images")
        for name, file in found.items():
            if images.get(name, file).resolve() != file.resolve():
                raise ExperimentError(f"{images[name]} and {file} have one name: give them in commands of their own")
            images[name] = file
    return images


def _records(store: Store, paper: str) -> dict[str, Record]:
    """Return the records of all finished runs of a paper by name, fresh ones rather than others."""
    paths = [*sorted((store.results_dir / "records" / paper).glob("*.json"))]
    paths += sorted((store.runs_dir / paper).glob(f"*/{RECORD}"))
    records = [read_record(path) for path in paths]
    return {record["run"]: record for record in records}


def _rebuilt(records: Mapping[str, Record], name: str) -> Run:
    """Return the run of a record, with all that it needs."""
    if name not in records:
        raise ExperimentError(f"the record of run {name} is missing: give its table's command again")
    record = records[name]
    needs = {key: _rebuilt(records, need) for key, need in record["needs"].items()}
    run = Run(record["paper"], record["stage"], record["seed"], record["config"], needs)
    if run.name != name:
        raise ExperimentError(f"run {name} was done by code with other config keys: give its table's command again")
    return run


def _todo(names: Mapping[str, Any], arguments: argparse.Namespace, made_by: Mapping[str, Any]) -> list[str]:
    """Return the images that are not done.

    Raises:
        ExperimentError: One was done with other settings.
    """
    todo = []
    for name in names:
        path = _beside(arguments.out / name, ".json")
        if arguments.overwrite or not path.exists() or not _beside(arguments.out / name, ".png").exists():
            todo.append(name)
            continue
        try:
            done = json.loads(path.read_text(encoding="utf-8"))["made_by"]
        except (ValueError, KeyError, TypeError):
            done = None
        if done != made_by:
            raise ExperimentError(f"{path}: of another run or other settings; name another --out, or add --overwrite")
    return todo


def _write(image: Path, picture: Any, content: Mapping[str, Any]) -> None:
    """Write an image's files; the JSON, which comes last, says that it is done."""
    buffer = io.BytesIO()
    picture.save(buffer, "png")
    write_atomically(_beside(image, ".png"), buffer.getvalue())
    write_atomically(_beside(image, ".json"), json.dumps(content, indent=1) + "\n")


def _beside(image: Path, suffix: str) -> Path:
    return image.with_name(image.name + suffix)


def _report(out: Path, done: int, images: int) -> None:
    print(f"written: {out} ({done} images, {images - done} were done before)")


def _sha256(path: Path | None) -> str | None:
    return None if path is None or not path.is_file() else hashlib.sha256(path.read_bytes()).hexdigest()


def _marked(run: Run, graph: Graph) -> dict[str, Any]:
    return {"run": run.name, **graph.to_json()}


def _settings(run: Run) -> list[tuple[str, Any]]:
    return [*flatten(run.config), ("seed", run.seed)]


def _titles(runs: Sequence[Run]) -> list[str]:
    """Return a run's name, and, of two, what differs in how they were made."""
    settings = [
        {f"{r.stage_name} {key}": value for r in in_order([run]) for key, value in _settings(r)} for run in runs
    ]
    titles = []
    for run, own in zip(runs, settings, strict=True):
        different = {k.split()[1]: v for k, v in own.items() if any(s.get(k) != v for s in settings)}
        shown = [f"{key}={value}" for key, value in list(different.items())[:SHOWN_DIFFERENCES]]
        more = ["…"] if len(different) > SHOWN_DIFFERENCES else []
        titles.append(": ".join([f"{run.stage_name} {run.name}", *([", ".join(shown + more)] if shown else [])]))
    return titles
