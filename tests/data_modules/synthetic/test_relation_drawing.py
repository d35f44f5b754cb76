from __future__ import annotations

import colorsys
import hashlib
import subprocess
import sys
from collections import Counter, defaultdict
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.linear_model import LogisticRegression

from data_modules.synthetic.relation_classes import HOLDING, WEARING, RelationKnobs, class_hue, twin_of
from data_modules.synthetic.relation_drawing import draw_scene, save_scenes
from data_modules.synthetic.relation_scenes import Scene, make_scenes

Crops = tuple[NDArray[np.float64], NDArray[np.int64]]


def scenes(count: int, seed: int = 0, **knobs: float) -> list[Scene]:
    """The scenes of images of usual size."""
    made = make_scenes(np.random.default_rng([seed, 0]), count, 20, 12, RelationKnobs(**knobs))
    return [scene for scene in made if max(scene.size_wh) < 1024]


def pixels(scene: Scene, clutter: float = 0.5) -> NDArray[np.float64]:
    return np.asarray(draw_scene(scene, clutter)).astype(float)


def alone(scene: Scene, index: int) -> Scene:
    """The scene with one of its objects only."""
    return replace(scene, objects=(scene.objects[index],), hues=(scene.hues[index],))


def test_boxes_are_the_drawn_extents() -> None:
    checked = 0
    for scene in [*scenes(30), *make_scenes(np.random.default_rng(3), 10, 20, 12, RelationKnobs())[8:]]:
        empty = pixels(scene.without_objects())
        for index, ((x1, y1, x2, y2), _) in enumerate(scene.objects):
            changed = (pixels(alone(scene, index)) != empty).any(axis=2)
            rows, columns = np.flatnonzero(changed.any(axis=1)) + 1, np.flatnonzero(changed.any(axis=0)) + 1
            assert (columns[0], rows[0], columns[-1], rows[-1]) == (x1, y1, x2, y2)
            assert 0.25 < changed.sum() / ((x2 - x1 + 1) * (y2 - y1 + 1)) < 0.95  # an outline, not a rectangle
            checked += 1
    assert checked > 130


def test_what_is_nearer_hides_what_is_behind_but_seldom_all_of_it() -> None:
    visible = []
    for scene in scenes(25):
        whole, empty = pixels(scene), pixels(scene.without_objects())
        for index in range(len(scene.objects)):
            own = pixels(alone(scene, index))
            drawn = (own != empty).any(axis=2)
            # What is drawn is of other brightness each time, so an object's pixels are found by its hue's channels.
            others = replace(
                scene,
                objects=scene.objects[:index] + scene.objects[index + 1 :],
                hues=scene.hues[:index] + scene.hues[index + 1 :],
            )
            without = pixels(others)
            visible.append(((whole != without).any(axis=2) & drawn).sum() / drawn.sum())
    assert np.mean(np.array(visible) > 0.3) > 0.97


def test_objects_are_drawn_in_their_hues_with_textures() -> None:
    for scene in scenes(15, multimodality=0.5):
        for index, ((x1, y1, x2, y2), label) in enumerate(scene.objects):
            empty, own = pixels(scene.without_objects()), pixels(alone(scene, index))
            inside = own[(own != empty).any(axis=2)]
            bright = inside[inside.max(axis=1) > 150]
            hue, saturation, _ = colorsys.rgb_to_hsv(*np.median(bright, axis=0) / 255)
            wanted = class_hue(label, 20, scene.ambiguous[index])
            assert abs((hue - wanted + 0.5) % 1 - 0.5) < 0.02
            assert saturation > 0.6  # the ground is grey
            dark = (inside.max(axis=1) < 140).mean()
            assert dark > 0.1, (x1, y1, x2, y2)  # stripes, checks or rings, and a rim


def test_the_ground_is_mottled_as_far_as_the_knob_says() -> None:
    contrast = [np.mean([pixels(s.without_objects(), c).std() for s in scenes(10)]) for c in (0.0, 0.5, 1.0)]
    assert 0 < contrast[0] < contrast[1] - 1 < contrast[2] - 3
    colours = np.concatenate([pixels(s.without_objects()).reshape(-1, 3) for s in scenes(10)])
    assert np.mean(colours.max(axis=1) - colours.min(axis=1) < 60) > 0.99  # greyish


def test_images_are_saved_as_their_names_say(tmp_path: Path) -> None:
    made = scenes(2)
    paths = [tmp_path / "a" / "x.png", tmp_path / "b" / "y.jpg"]
    save_scenes(made, paths, 0.5)
    assert [Image.open(p).format for p in paths] == ["PNG", "JPEG"]
    assert Image.open(paths[1]).size == made[1].size_wh
    assert np.array_equal(np.asarray(Image.open(paths[0])), np.asarray(draw_scene(made[0], 0.5)))


def statistics(crop: NDArray[np.float64]) -> list[float]:
    """Colour and texture of a crop: the commonest hue of its colourful pixels, and how steep it is across and along."""
    vivid = crop.max(axis=2) - crop.min(axis=2) > 70
    red, green, blue = crop[vivid].T
    angles = np.arctan2(np.sqrt(3) * (green - blue), 2 * red - green - blue)
    counts, edges = np.histogram(angles, bins=120, range=(-np.pi, np.pi))
    smooth = counts + np.roll(counts, 1) + np.roll(counts, -1)
    angle = edges[np.argmax(smooth)] + np.pi / 120
    near = angles[np.abs((angles - angle + np.pi) % (2 * np.pi) - np.pi) < 0.1]
    angle = np.median(near) if len(near) else angle
    grey = crop.mean(axis=2)
    across, along = np.abs(np.diff(grey, axis=1)).mean(), np.abs(np.diff(grey, axis=0)).mean()
    shape = np.log(crop.shape[0] / crop.shape[1]) / 3
    return [np.cos(angle), np.sin(angle), vivid.mean(), across / (across + along), shape]


def crops(made: list[Scene]) -> Crops:
    features, labels = [], []
    for scene in made:
        image = pixels(scene)
        for (x1, y1, x2, y2), label in scene.objects:
            features.append(statistics(image[y1 - 1 : y2, x1 - 1 : x2]))
            labels.append(label)
    return np.array(features), np.array(labels)


def centroids(train: Crops) -> NDArray[np.float64]:
    features, labels = train
    return np.stack([features[labels == c].mean(axis=0) for c in range(20)])


def classify(features: NDArray[np.float64], centres: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.argmin(((features[:, None] - centres) ** 2).sum(axis=2), axis=1)


def test_a_crop_s_colour_and_texture_tell_its_class() -> None:
    train, (features, labels) = crops(scenes(120)), crops(scenes(60, seed=1))
    guessed = classify(features, centroids(train))
    assert np.mean(guessed == labels) > 0.5  # by chance 0.05
    assert np.mean(guessed % 5 == labels % 5) > 0.7


def twins_told_apart(multimodality: float, count: int) -> float:
    """How often a linear classifier of crops finds which of two twins it is, averaged over the pairs of twins."""
    train, test = (crops(scenes(count, seed, multimodality=multimodality)) for seed in (0, 1))
    right: list[bool] = []
    for label in range(20):
        twin = twin_of(label, 20)
        if label < twin:
            (x, y), (v, w) = ((f[np.isin(c, (label, twin))], c[np.isin(c, (label, twin))]) for f, c in (train, test))
            centre, spread = x.mean(axis=0), x.std(axis=0) + 1e-9
            model = LogisticRegression(C=10.0, max_iter=500).fit((x - centre) / spread, y)
            right += (model.predict((v - centre) / spread) == w).tolist()
    return float(np.mean(right))


def test_nothing_tells_twins_apart_where_they_are_drawn_alike() -> None:
    assert twins_told_apart(0.0, 70) > 0.9
    assert 0.45 < twins_told_apart(1.0, 150) < 0.55


def entropy(rows: list[tuple[int, ...]]) -> float:
    counts = np.array(list(Counter(rows).values()))
    return float(-(counts / len(rows) * np.log2(counts / len(rows))).sum())


@cache
def clear_centroids() -> NDArray[np.float64]:
    return centroids(crops(scenes(90, seed=1, multimodality=0)))


def correlation_given_pixels(multimodality: float) -> float:
    """Total correlation in bits of walker, predicate and tool, given what classes their crops look like."""
    centres = clear_centroids()
    seen: dict[tuple[int, int], list[tuple[int, ...]]] = defaultdict(list)
    for scene in scenes(160, multimodality=multimodality):
        rows = [(s, p, o) for s, p, o in scene.facts if p in (HOLDING, WEARING) and scene.objects[o][1] % 5 == 2]
        if not rows:
            continue
        image = pixels(scene)
        for s, p, o in rows:
            boxes = (scene.objects[s][0], scene.objects[o][0])
            features = [statistics(image[y1 - 1 : y2, x1 - 1 : x2]) for x1, y1, x2, y2 in boxes]
            # The look of a kind is known, its twins are not told apart but by the hue.
            found = [classify(np.array([f]), centres[kind::5])[0] for f, kind in zip(features, (0, 2), strict=True)]
            seen[int(found[0]), int(found[1])].append((scene.objects[s][1], p, scene.objects[o][1]))
    rng, bits, total = np.random.default_rng(0), 0.0, 0

    def correlation(rows: list[tuple[int, ...]]) -> float:
        return sum(entropy([(r[i],) for r in rows]) for i in range(3)) - entropy(rows)

    for rows in (r for r in seen.values() if len(r) > 4):
        shuffled = [
            list(zip(*(rng.permutation(c).tolist() for c in zip(*rows, strict=True)), strict=True)) for _ in "123"
        ]
        bits += len(rows) * (correlation(rows) - np.mean([correlation(s) for s in shuffled]))
        total += len(rows)
    return bits / total


def test_pixels_leave_several_triplets_open_as_far_as_the_knob_says() -> None:
    clear, half, alike = (correlation_given_pixels(m) for m in (0.0, 0.4, 1.0))
    assert abs(clear) < 0.05
    assert half > clear + 0.3
    assert alike > max(half + 0.2, 1.0)


def test_other_processes_draw_the_same(tmp_path: Path) -> None:
    code = (
        "import sys, hashlib, numpy as np\n"
        "from data_modules.synthetic.relation_classes import RelationKnobs\n"
        "from data_modules.synthetic.relation_scenes import make_scenes\n"
        "from data_modules.synthetic.relation_drawing import draw_scene\n"
        "made = make_scenes(np.random.default_rng([0, 0]), 9, 20, 12, RelationKnobs())\n"
        "print(hashlib.sha256(b''.join(draw_scene(s, 0.5).tobytes() for s in made[::-1])).hexdigest())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    here = b"".join(draw_scene(s, 0.5).tobytes() for s in scenes(9)[::-1])
    assert done.stdout.strip() == hashlib.sha256(here).hexdigest()
