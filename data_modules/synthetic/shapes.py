"""Rendered scenes of textured objects of VOC's 20 classes, with exact boxes and label maps.

A class is recognised by outline, texture and colour, and by the company it keeps. The classes form four groups of five,
and objects of one scene come mostly from one group. Every class has a twin in another group of the same outline and
texture, which differs from it by its hue alone: the less, the more a model needs the context.
"""

from __future__ import annotations

import colorsys
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

GROUPS = (  # labels by VOC's alphabetical order; place i of a group has its twin at place i of the group beside it
    (1, 5, 6, 13, 14),  # road: bicycle, bus, car, motorbike, person
    (9, 11, 12, 16, 2),  # farm: cow, dog, horse, sheep, bird
    (8, 10, 17, 19, 4),  # room: chair, diningtable, sofa, tvmonitor, bottle
    (0, 3, 18, 15, 7),  # harbour: aeroplane, boat, train, pottedplant, cat
)
GROUP_OF = {label: group for group, labels in enumerate(GROUPS) for label in labels}
TWIN_OF = {label: GROUPS[group ^ 1][place] for group, labels in enumerate(GROUPS) for place, label in enumerate(labels)}
LOOKS = 10  # outline and texture that a pair of twins shares
MIN_AREA = 40  # visible pixels that every object has
TRIES = 8  # places tried for one object before it is left out


@dataclass(frozen=True, slots=True)
class Knobs:
    """How hard a world's scenes are: every field is a fraction from 0 to 1, and part of the world's manifest."""

    def __post_init__(self) -> None:
        wrong = {name: value for name, value in asdict(self).items() if not 0 <= value <= 1}
        if wrong:
            raise ValueError(f"knobs are fractions from 0 to 1, found {wrong}")


@dataclass(frozen=True, slots=True)
class ShapeKnobs(Knobs):
    """How hard the scenes are; all are fractions from 0 to 1.

    Attributes:
        context: Probability that an object comes from its scene's group; otherwise any class is as likely.
        ambiguity: How close the hues of twins are; at 1 only the context tells them apart.
        occlusion: Greatest part of an object that others hide, and the probability that one is put at another's side.
        detail: Depth of the fine teeth on outlines, which a coarse prediction can't follow.
        clutter: Contrast of the background's texture.
    """

    context: float = 0.85
    ambiguity: float = 0.5
    occlusion: float = 0.5
    detail: float = 0.5
    clutter: float = 0.5


@dataclass(frozen=True, slots=True, eq=False)
class ShapeScene:
    """One rendered image of N objects.

    Attributes:
        image: uint8 `[H, W, 3]`, RGB.
        instances: uint8 `[H, W]`, 0 is the background, n the visible part of object n - 1.
        labels: int64 `[N]`, 0-based VOC classes.
        boxes_xyxy: int64 `[N, 4]`, edges of the visible parts in pixels: columns x1 to x2 - 1, rows y1 to y2 - 1.
        visible: float64 `[N]`, fraction of each object's pixels in the image that nothing hides.
        truncated: bool `[N]`, objects that the image's border cuts.
        group: The scene's group, an index into `GROUPS`.
    """

    image: NDArray[np.uint8]
    instances: NDArray[np.uint8]
    labels: NDArray[np.int64]
    boxes_xyxy: NDArray[np.int64]
    visible: NDArray[np.float64]
    truncated: NDArray[np.bool_]
    group: int

    @property
    def difficult(self) -> NDArray[np.bool_]:
        """Objects hard to recognise, bool `[N]`: tiny, or mostly hidden."""
        areas = np.bincount(self.instances.ravel(), minlength=len(self.labels) + 1)[1:]
        return (self.visible < 0.6) | (areas < 0.008 * self.instances.size)

    def label_map(self, void: bool) -> NDArray[np.uint8]:
        """Return the class ids, uint8 `[H, W]`: 0 for the background, label + 1 for objects.

        Args:
            void: Give borders of objects and whole difficult objects 255, as VOC does and SBD doesn't.
        """
        ids = np.concatenate([[0], self.labels + 1]).astype(np.uint8)
        if void:
            ids[1:][self.difficult] = 255
        labels = ids[self.instances]
        if void:
            labels[_borders(self.instances)] = 255
        return labels


def make_scene(rng: np.random.Generator, size_wh: tuple[int, int], knobs: ShapeKnobs) -> ShapeScene:
    """Render one scene of at least one object; an image in four is upright, and sizes vary by a tenth."""
    scale = rng.uniform(0.9, 1.1, 2)
    width, height = (max(48, round(side * s)) for side, s in zip(size_wh, scale, strict=True))
    if rng.random() < 0.25:
        width, height = height, width
    image = _background(rng, width, height, knobs.clutter)
    instances = np.zeros((height, width), dtype=np.uint8)
    group = int(rng.integers(len(GROUPS)))
    wanted: list[int] = []
    for _ in range(int(rng.integers(2, 6))):
        repeat = bool(wanted) and rng.random() < 0.25  # several instances of one class
        own = GROUPS[group] if rng.random() < knobs.context else range(20)
        wanted.append(wanted[-1] if repeat else int(rng.choice(own)))
    labels: list[int] = []
    areas: list[int] = []  # of whole objects, as far as they are in the image
    truncated: list[bool] = []
    centres: list[NDArray[np.float64]] = []
    shown = np.zeros(0, dtype=np.int64)  # visible pixels of each object
    for label in wanted:
        for _ in range(TRIES):
            size = rng.uniform(0.13, 0.30) * min(width, height)  # half the longer extent
            centre = rng.uniform((0.0, 0.1 * height), (width, height))
            if centres and rng.random() < knobs.occlusion:
                centre = centres[int(rng.integers(len(centres)))] + rng.normal(0, size, 2)
            outline = _Outline(
                label, centre.clip(0, (width, height)), size, rng.normal(0, 0.25), (width, height), knobs
            )
            area = int(outline.inside.sum())
            under = instances[outline.rows, outline.columns]
            covered = np.bincount(under[outline.inside], minlength=len(labels) + 1)[1:]
            remaining = shown - covered
            least = np.maximum((1 - knobs.occlusion) * np.array(areas), MIN_AREA)
            if area < MIN_AREA or (remaining < least).any():
                continue
            image[outline.rows, outline.columns][outline.inside] = outline.colours(rng, knobs.ambiguity)
            labels.append(label)
            centres.append(centre)
            areas.append(area)
            shown = np.append(remaining, area)
            truncated.append(outline.cut)
            under[outline.inside] = len(labels)
            break
    if not labels:  # nothing fitted: rare, and only in tiny images
        return make_scene(rng, size_wh, knobs)
    noisy = image + 5 * rng.standard_normal((height, width, 1), dtype=np.float32)
    return ShapeScene(
        image=noisy.clip(0, 255).astype(np.uint8),
        instances=instances,
        labels=np.array(labels, dtype=np.int64),
        boxes_xyxy=_visible_boxes(instances, len(labels)),
        visible=shown / np.array(areas),
        truncated=np.array(truncated, dtype=np.bool_),
        group=group,
    )


def make_scenes(rng: np.random.Generator, count: int, size_wh: tuple[int, int], knobs: ShapeKnobs) -> list[ShapeScene]:
    """Render `count` scenes, a stream of random numbers each: a scene doesn't depend on how many there are."""
    return [make_scene(child, size_wh, knobs) for child in rng.spawn(count)]


def world_manifest(generator: str, version: int, seed: int, knobs: Knobs, **parameters: Any) -> dict[str, Any]:
    """Return the manifest of a generated world as JSON reads it back."""
    plain = {name: list(v) if isinstance(v, tuple) else v for name, v in parameters.items()}
    return {"generator": generator, "version": version, "seed": seed, **asdict(knobs), **plain}


def _look(label: int) -> int:
    group = GROUP_OF[label]
    return group // 2 * 5 + GROUPS[group].index(label)


def class_hue(label: int, ambiguity: float) -> float:
    """Return a class's hue, from 0 to 1: its look's, and a shift that tells it from its twin."""
    shift = 0.022 * (1 - ambiguity)
    return (_look(label) / LOOKS + (shift if GROUP_OF[label] % 2 else -shift)) % 1.0


class _Outline:
    """Where an object is: its surroundings in the image and its mask there."""

    def __init__(
        self,
        label: int,
        centre: NDArray[np.float64],
        size: float,
        angle: float,
        size_wh: tuple[int, int],
        knobs: ShapeKnobs,
    ) -> None:
        self.label, look = label, _look(label)
        aspect = (1.0, 0.55, 0.75, 0.9, 0.65)[look % 5]
        (x1, y1), (x2, y2) = np.floor(centre - size).astype(int), np.ceil(centre + size).astype(int)
        self.columns, self.rows = slice(max(x1, 0), min(x2, size_wh[0])), slice(max(y1, 0), min(y2, size_wh[1]))
        dx = np.arange(self.columns.start, self.columns.stop, dtype=np.float32) + np.float32(0.5 - centre[0])
        dy = (np.arange(self.rows.start, self.rows.stop, dtype=np.float32) + np.float32(0.5 - centre[1]))[:, None]
        cos, sin = np.float32(np.cos(angle) / size), np.float32(np.sin(angle) / size)
        u, v = cos * dx + sin * dy, (cos * dy - sin * dx) / np.float32(aspect)
        radius, theta = np.hypot(u, v), np.arctan2(v, u)
        corners = 3 + look % 5
        if look < 5:  # lobes
            outline = np.float32(0.78) + np.float32(0.22) * np.cos(corners * theta)
        else:  # a polygon
            sector = np.float32(2 * np.pi / corners)
            outline = np.cos(sector / 2) / np.cos(np.mod(theta, sector) - sector / 2)
        teeth = 1 - np.float32(0.08 * knobs.detail) * (1 + np.cos(16 * theta))
        self.inside: NDArray[np.bool_] = radius < outline * teeth
        self._uvr = u[self.inside], v[self.inside], radius[self.inside]
        borders = (x1 < 0, y1 < 0, x2 > size_wh[0], y2 > size_wh[1])
        lines = (self.inside[:, :1], self.inside[:1], self.inside[:, -1:], self.inside[-1:])
        self.cut = any(bool(line.any()) for border, line in zip(borders, lines, strict=True) if border)

    def colours(self, rng: np.random.Generator, ambiguity: float) -> NDArray[np.float32]:
        """Return the colours of the pixels inside, float32 `[P, 3]`."""
        u, v, radius = self._uvr
        pattern = texture(_look(self.label), u, v, radius)[:, None]
        hue = (class_hue(self.label, ambiguity) + rng.normal(0, 0.006)) % 1
        light = np.array(colorsys.hsv_to_rgb(hue, 0.75, rng.uniform(0.85, 1.0)), dtype=np.float32) * 255
        dark = np.array(colorsys.hsv_to_rgb(hue, 0.95, rng.uniform(0.40, 0.55)), dtype=np.float32) * 255
        shade = np.float32(0.925) - np.float32(0.075) * v[:, None]
        colours: NDArray[np.float32] = (dark + (light - dark) * pattern) * shade
        return colours


def texture(
    look: int, u: NDArray[np.float32], v: NDArray[np.float32], radius: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return how light an object is at each pixel, float32 from 0 to 1.

    Args:
        look: Its remainder by 5 is the pattern: stripes across, along, checks, rings, slanted stripes. The rest is how
            fine that is.
        u: Places across the object in half its extent, -1 to 1.
        v: Places along it.
        radius: Distances from its middle.
    """
    frequency = np.float32(7 + 2 * (look // 5))
    waves = (
        np.sin(frequency * u),
        np.sin(frequency * v),
        np.sin(frequency * u) * np.sin(frequency * v),
        np.sin(1.4 * frequency * radius),
        np.sin(frequency * (u + v)),
    )
    light: NDArray[np.float32] = (0.5 + 2 * waves[look % 5]).clip(0, 1).astype(np.float32)
    return light


def _background(rng: np.random.Generator, width: int, height: int, clutter: float) -> NDArray[np.float32]:
    """Return grey-brown mottled ground, float32 `[H, W, 3]`; its colours say nothing about the classes."""
    coarse = rng.normal(128, 18, (4, 5, 3)).clip(0, 255).astype(np.uint8)
    ground = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    mottle = rng.normal(0, 1, (height // 6 + 1, width // 6 + 1)).astype(np.float32)
    texture = np.asarray(Image.fromarray(mottle).resize((width, height), Image.Resampling.BILINEAR))
    return (np.asarray(ground) + 40 * clutter * texture[..., None]).astype(np.float32)


def _borders(instances: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return the pixels beside another instance or the background, bool `[H, W]`: lines of two pixels."""
    borders = np.zeros(instances.shape, dtype=np.bool_)
    across = instances[:, 1:] != instances[:, :-1]
    along = instances[1:] != instances[:-1]
    borders[:, 1:] |= across
    borders[:, :-1] |= across
    borders[1:] |= along
    borders[:-1] |= along
    return borders


def _visible_boxes(instances: NDArray[np.uint8], count: int) -> NDArray[np.int64]:
    boxes = []
    for number in range(1, count + 1):
        mask = instances == number
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        boxes.append([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    return np.array(boxes, dtype=np.int64)
