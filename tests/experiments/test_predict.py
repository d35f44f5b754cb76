from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data_modules.detections_file import read_detections, write_detections
from data_modules.scene_graph import Detections, SceneGraph
from experiments import build_predict
from experiments.build_data import DETECTIONS
from experiments.build_ranker import context_of
from experiments.config import nested
from experiments.graph_picture import draw_panels
from experiments.run import execute
from experiments.runs import Run, in_order
from experiments.store import CHECKPOINT
from tests.experiments.workspace import PIXELS, REGISTRY, Workspace, smoke_run

RUNS: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "reldn from pixels": ("reldn", "8", "reldn", PIXELS),
    "reldn": ("reldn", "8", "reldn", {}),
    "vrd_tensor": ("vrd_tensor", "1", "vrd_tensor", {}),
    "frequency": ("reldn", "8", "frequency", {}),
    "another world": ("reldn", "8", "frequency", {"data.world.seed": 5}),
}


def run_of(name: str) -> Run:
    return smoke_run(*RUNS[name])


def with_all_losses() -> Run:
    """What differs from the first run of the table, which has no contrastive loss, by its losses alone."""
    spec = REGISTRY.load("reldn", "table", "8", "smoke", nested(PIXELS))
    return [run for run in in_order(spec.runs) if run.stage_name == "reldn"][1]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, generated: Path) -> Workspace:
    """A machine on which these runs are done: read it, never write to it."""
    space = Workspace(tmp_path_factory.mktemp("done"), generated)
    for run in in_order([*map(run_of, RUNS), with_all_losses()]):
        execute(run, space.machine)
    return space


@pytest.fixture
def world_images(done: Workspace) -> Path:
    """The test images of the generated world."""
    (folder,) = done.generated.glob("vrd-*-images/sg_dataset/sg_test_images")
    return folder


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """Two plain images of a user."""
    for name, size in (("a.png", (200, 100)), ("sub/b.jpg", (90, 120))):
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (90, 120, 60)).save(tmp_path / "mine" / name)
    return tmp_path / "mine"


def built(run: Run, space: Workspace) -> tuple[Any, Any]:
    module_name, _, function = run.stage.builder.partition(":")
    data, module = getattr(importlib.import_module(module_name), function)(run, context_of(run, space.machine))
    return data, module.eval()


def detections_file(path: Path, space: Workspace, found: dict[str, tuple[tuple[int, int], Detections]]) -> Path:
    data, _ = built(run_of("frequency"), space)
    sizes, detections = zip(*found.values(), strict=True)
    write_detections(path, data.object_names, list(found), sizes, detections)
    return path


def three_boxes() -> Detections:
    boxes = np.array([[20, 10, 79, 59], [60, 40, 119, 89], [10, 30, 49, 69]], np.float32)
    return Detections(boxes, np.array([0, 3, 1]), np.array([0.9, 0.5, 0.8]))


def results(out: Path) -> dict[str, Any]:
    return {p.relative_to(out).as_posix()[:-5]: json.loads(p.read_text()) for p in sorted(out.rglob("*.json"))}


def rows(content: dict[str, Any]) -> list[tuple[Any, ...]]:
    """Labels, boxes and score of each triplet."""
    keys = ("subject_label", "predicate_label", "object_label", "subject_box_xyxy", "object_box_xyxy")
    return [tuple(t[key] for key in keys) for t in content["triplets"]]


def ranked(prediction: Any, k: int, top: int) -> list[tuple[Any, ...]]:
    """The best triplets by plain loops: k of each pair, sorted by score, earlier pairs first among equals."""
    entries = []
    for pair in range(len(prediction.scores)):
        for slot in range(min(k, prediction.scores.shape[1])):
            labels = prediction.triplets[pair, slot].tolist()
            boxes = [prediction.subject_boxes_xyxy[pair].tolist(), prediction.object_boxes_xyxy[pair].tolist()]
            entries.append((float(prediction.scores[pair, slot]), (*labels, *boxes)))
    return sorted(entries, key=lambda entry: -entry[0])[:top]


def iou(a: list[float], b: list[float]) -> float:
    width, height = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) + 1 for i in (0, 1))
    shared = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (a, b)]
    return shared / (sum(areas) - shared)


def is_right(row: tuple[Any, ...], graph: SceneGraph) -> bool:
    boxes = graph.boxes_xyxy.tolist()
    return any(
        row[:3] == (graph.labels[s], p, graph.labels[o])
        and iou(row[3], boxes[s]) >= 0.5
        and iou(row[4], boxes[o]) >= 0.5
        for s, p, o in graph.relations.tolist()
    )


@pytest.mark.parametrize("name", [name for name in RUNS if name != "another world"])
def test_test_images_are_drawn_with_what_the_scorer_ranks(done: Workspace, tmp_path: Path, name: str) -> None:
    run = run_of(name)
    command = ("figure-graphs", run.paper, run.name[:8], "--images", "3", "--top", "12", "--per-pair", "2")
    assert done.command(*command, "--out", str(tmp_path / "out")) == 0
    data, module = built(run, done)
    expected = {}
    for batch in data.test_dataloader():
        with torch.inference_mode():
            predictions = module.predict_pairs(batch)
        for graph, prediction in zip(batch.graphs, predictions, strict=True):
            expected[graph.image] = graph, ranked(prediction, 2, 12)
    found = results(tmp_path / "out")
    assert len(found) == 3 and any(content["panels"][0]["triplets"] for content in found.values())
    marks = set()
    for image, content in found.items():
        (panel,) = content["panels"]
        graph, wanted = expected[image]
        assert len(graph.relations)
        assert rows(panel) == [row for _, row in wanted]
        np.testing.assert_allclose([t["score"] for t in panel["triplets"]], [score for score, _ in wanted], rtol=1e-5)
        for triplet, row in zip(panel["triplets"], rows(panel), strict=True):
            assert triplet["is_right"] == is_right(row, graph)
            assert (triplet["subject"], triplet["object"]) == tuple(data.object_names[row[i]] for i in (0, 2))
            assert triplet["predicate"] == data.predicate_names[row[1]]
            assert panel["boxes"][triplet["subject_box"]]["box_xyxy"] == triplet["subject_box_xyxy"]
            marks.add(triplet["is_right"])
        assert Image.open(tmp_path / "out" / f"{image}.png").width > 200
    assert False in marks and (name in ("reldn from pixels", "vrd_tensor") or True in marks)


def test_runs_stand_side_by_side_under_what_differs(
    done: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs, titles = [run_of("reldn from pixels"), with_all_losses()], []

    def draw(image: Any, panels: Any) -> Image.Image:
        titles.append([title for title, _ in panels])
        assert image is not None and image.shape[2] == 3
        return draw_panels(image, panels)

    monkeypatch.setattr("experiments.graph_picture.draw_panels", draw)
    command = ["figure-graphs", "reldn", runs[0].name, "--against", runs[1].name, "--images", "2", "--out"]
    assert done.command(*command, str(tmp_path)) == 0
    assert [[panel["run"] for panel in content["panels"]] for content in results(tmp_path).values()] == [
        [run.name for run in runs]
    ] * 2
    assert len(titles) == 2
    for run, title, weight in zip(runs, titles[0], (0.0, 1.0), strict=True):
        assert title.startswith(f"reldn {run.name}: loss.class_agnostic_weight={weight}, ")
    command[4] = run_of("reldn").name  # which estimates the images' sizes
    assert done.command(*command, str(tmp_path / "estimated")) == 0
    for content in results(tmp_path / "estimated").values():
        assert content["panels"][0]["size_wh"] == content["panels"][1]["size_wh"]
    command[4] = run_of("another world").name
    assert done.command(*command, str(tmp_path / "other")) == 2
    assert "scores other images than run" in capsys.readouterr().err


def test_a_model_with_pixels_uses_its_own_detector(done: Workspace, world_images: Path, tmp_path: Path) -> None:
    run = run_of("reldn from pixels")
    data, _ = built(run, done)
    path = done.store.folder(run.needs["detections"]) / DETECTIONS
    detected = read_detections(path, data.object_names).detections
    names = [name for name, found in detected.items() if len(found.scores)]
    assert len(names) == 2  # the smoke profile detects in so many
    files = [str(next(world_images.glob(f"{Path(name).stem}.*"))) for name in names]
    command = ("predict", "reldn", run.name, "--images", *files, "--out")
    assert done.command(*command, str(tmp_path / "own"), "--truth") == 0
    assert done.command(*command, str(tmp_path / "given"), "--detections", str(path)) == 0
    own, given = results(tmp_path / "own"), results(tmp_path / "given")
    for name, file in zip(names, files, strict=True):
        content, other = own[Path(file).name], given[Path(file).name]
        boxes = np.array([box["box_xyxy"] for box in content["boxes"]], np.float32)
        np.testing.assert_allclose(boxes, detected[name].boxes_xyxy, atol=1e-3)
        assert [box["label"] for box in content["boxes"]] == detected[name].labels.tolist()
        assert all("is_right" in t for t in content["triplets"]) and content["triplets"]
        assert not any("is_right" in t for t in other["triplets"])
        np.testing.assert_allclose(
            [t["score"] for t in content["triplets"]], [t["score"] for t in other["triplets"]], rtol=1e-4
        )
        assert tuple(content["size_wh"]) == Image.open(file).size


def test_a_model_without_pixels_ranks_given_boxes(done: Workspace, mine: Path, tmp_path: Path) -> None:
    nothing = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0))
    half = three_boxes()  # in a frame of half the image's size
    half = Detections((half.boxes_xyxy / 2).astype(np.float32), half.labels, half.scores)
    file = detections_file(
        tmp_path / "found.npz", done, {"sub/b.jpg": ((90, 120), nothing), "a.jpg": ((100, 50), half)}
    )
    run, out = run_of("frequency"), tmp_path / "out"
    command = ("predict", "reldn", run.name, "--images", str(mine), "--detections", str(file), "--out", str(out))
    assert done.command(*command, "--per-pair", "2", "--top", "5") == 0
    data, module = built(run, done)
    boxes, labels, scores = three_boxes().boxes_xyxy.tolist(), [0, 3, 1], [0.9, 0.5, 0.8]
    entries = []
    for s in range(3):
        for o in range(3):
            touching = all(min(boxes[s][i + 2], boxes[o][i + 2]) > max(boxes[s][i], boxes[o][i]) for i in (0, 1))
            if s != o and (touching or module.pairs == "all"):
                chances = (module.probabilities[labels[s], labels[o]] * scores[s] * scores[o]).tolist()
                best = sorted(range(len(chances)), key=lambda p: -chances[p])[:2]
                entries += [(chances[p], (labels[s], p, labels[o], boxes[s], boxes[o])) for p in best]
    wanted = sorted(entries, key=lambda entry: -entry[0])[:5]
    found = results(out)
    assert set(found) == {"a.png", "sub/b.jpg"}
    assert rows(found["a.png"]) == [row for _, row in wanted]
    np.testing.assert_allclose([t["score"] for t in found["a.png"]["triplets"]], [s for s, _ in wanted])
    assert [box["name"] for box in found["a.png"]["boxes"]] == [data.object_names[label] for label in labels]
    assert found["sub/b.jpg"]["triplets"] == found["sub/b.jpg"]["boxes"] == []
    for name in found:
        assert Image.open(out / f"{name}.png").size[0] > 200


def test_what_is_done_is_not_done_again(
    done: Workspace, mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = detections_file(
        tmp_path / "found.npz", done, {"a.png": ((200, 100), three_boxes()), "sub/b.jpg": ((90, 120), three_boxes())}
    )
    out = mine / "out"  # pictures in the folder of images are no images
    command = ["predict", "reldn", run_of("frequency").name, "--images", str(mine), "--detections", str(file)]
    command += ["--out", str(out)]
    assert done.command(*command) == 2  # a box reaches outside
    (mine / "sub" / "b.jpg").unlink()
    assert not out.exists() and "x1 <= x2 and y1 <= y2 within the image" in capsys.readouterr().err
    file = detections_file(tmp_path / "found.npz", done, {"a.png": ((200, 100), three_boxes())})
    for number in range(2):
        shutil.copy(mine / "a.png", mine / f"{number}.png")
    boxes = {f"{name}.png": ((200, 100), three_boxes()) for name in ("a", 0, 1)}
    detections_file(tmp_path / "found.npz", done, boxes)
    assert done.command(*command) == 0
    assert set(results(out)) == {"0.png", "1.png", "a.png"}
    written = {p: p.stat().st_mtime_ns for p in out.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(build_predict, "Predictor", None)
        assert done.command(*command) == 0
    assert {p: p.stat().st_mtime_ns for p in out.iterdir()} == written
    (out / "1.png.json").unlink()  # as if killed between the two files
    assert done.command(*command) == 0
    changed = {p.name for p, when in written.items() if p.stat().st_mtime_ns != when}
    assert changed == {"1.png.json", "1.png.png"}
    assert "written: " in capsys.readouterr().out
    assert done.command(*command, "--top", "3") == 2
    assert "of another run or other settings; name another --out, or add --overwrite" in capsys.readouterr().err
    assert done.command(*command, "--top", "3", "--overwrite") == 0
    assert all(len(content["triplets"]) <= 3 for content in results(out).values())


def damaged(mine: Path) -> list[str]:
    (mine / "a.png").write_bytes(b"no image")
    return ["reldn from pixels", "--images", str(mine)]


def truncated(mine: Path) -> list[str]:
    noise = np.random.default_rng(0).integers(0, 255, (80, 80, 3), np.uint8)
    Image.fromarray(noise).save(mine / "a.png")
    (mine / "a.png").write_bytes((mine / "a.png").read_bytes()[:2000])
    return ["reldn from pixels", "--images", str(mine / "a.png")]


def empty(mine: Path) -> list[str]:
    (mine / "empty").mkdir()
    return ["reldn", "--images", str(mine / "empty"), "--detections", "found.npz"]


def twice(mine: Path) -> list[str]:
    Image.new("RGB", (9, 9)).save(mine / "sub" / "a.png")
    return ["reldn from pixels", "--images", str(mine / "a.png"), str(mine / "sub" / "a.png")]


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (damaged, "a.png: not a readable image"),
        (truncated, "a.png: truncated or damaged image"),
        (empty, "empty: no image in this folder (.gif, .jpeg, .jpg, .png, .webp)"),
        (twice, "a.png have one name"),
        (lambda mine: ["reldn", "--images", str(mine)], "its model sees no pixels and has no detector: name the obj"),
        (lambda mine: ["reldn", "--images", str(mine / "c.png")], "--detections FILE"),
        (lambda mine: ["frequency", "--images", "x", "--detections", "y.npz"], "x: no such image or folder of images"),
        (lambda mine: ["frequency", "--images", str(mine), "--detections", "y.npz"], "y.npz: no such file"),
        (lambda mine: ["frequency", "--images", str(mine), "--detections", "y.json"], "with --index FILE"),
        (lambda mine: ["reldn from pixels", "--images", str(mine), "--truth"], "--truth: VRD annotates none of these"),
    ],
)
def test_bad_input_gets_one_error(
    done: Workspace,
    mine: Path,
    tmp_path: Path,
    prepare: Callable[[Path], list[str]],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name, *arguments = prepare(mine)
    assert done.command("predict", "reldn", run_of(name).name, *arguments, "--out", str(tmp_path / "out")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line


def test_detections_must_have_every_image(
    done: Workspace, mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = detections_file(tmp_path / "found.npz", done, {"a.png": ((200, 100), three_boxes())})
    command = ("predict", "reldn", run_of("reldn").name, "--images", str(mine), "--detections", str(file))
    assert done.command(*command, "--out", str(tmp_path / "out")) == 2
    assert "1 of 2 images, as 'sub/b.jpg', are not in the file" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_coco_results_with_their_index(done: Workspace, mine: Path, tmp_path: Path) -> None:
    data, _ = built(run_of("reldn"), done)
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(data.object_names)]
    images = [{"id": 7, "file_name": "a.png", "width": 200, "height": 100}]
    index = {"images": images, "categories": categories, "annotations": []}
    (tmp_path / "index.json").write_text(json.dumps(index))
    boxes = [{"image_id": 7, "category_id": c, "bbox": [20 * c, 10, 50, 40], "score": 0.5} for c in (1, 3)]
    (tmp_path / "found.json").write_text(json.dumps(boxes))
    command = ["predict", "reldn", run_of("reldn").name, "--images", str(mine / "a.png"), "--out", str(tmp_path / "o")]
    command += ["--detections", str(tmp_path / "found.json"), "--index", str(tmp_path / "index.json")]
    assert done.command(*command) == 0
    content = results(tmp_path / "o")["a.png"]
    assert [box["box_xyxy"] for box in content["boxes"]] == [[20, 10, 69, 49], [60, 10, 109, 49]]
    assert [box["label"] for box in content["boxes"]] == [0, 2] and len(content["triplets"]) == 2


def test_a_run_is_found_by_the_beginning_of_its_name(
    done: Workspace, tmp_path: Path, mine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of("reldn from pixels")

    def message(name: str, space: Workspace = done, paper: str = "reldn") -> str:
        command = ("predict", paper, name, "--images", str(mine), "--out", str(tmp_path / "out"))
        assert space.command(*command) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "unknown run of reldn 'nothing'; there is: " in message("nothing")
    assert "several begin so: " in message("")
    assert "of stage reldn.training, whose model ranks no triplets" in message(run.needs["network"].name)
    assert "no run of 'lml' is done in " in message("1", paper="lml")
    elsewhere = Workspace(tmp_path / "elsewhere", done.generated)
    shutil.copytree(done.machine.runs_dir, elsewhere.machine.runs_dir)
    (elsewhere.store.folder(run.needs["network"]) / CHECKPOINT).unlink()
    assert f"reldn.training {run.needs['network'].name}, which it needs, is not done on this machine" in message(
        run.name, elsewhere
    )
    shutil.rmtree(elsewhere.store.folder(run.needs["network"]))
    assert "the record of run" in message(run.name, elsewhere)
