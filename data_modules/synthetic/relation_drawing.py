"""How generated relation scenes look: silhouettes with textures and hues, before mottled ground."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops

from data_modules.synthetic.relation_classes import COVER, PLATFORM, SHELTER, TOOL, WALKER, Box
from data_modules.synthetic.relation_scenes import Scene
from data_modules.synthetic.shapes import texture

DEPTHS = {SHELTER: 0, PLATFORM: 1, WALKER: 2, TOOL: 3, COVER: 3}  # what is drawn later hides what was before
FINEST = 96  # samples of a texture on each side
GROUND_ROWS = 40  # mottles of the background from top to bottom

Curve = NDArray[np.float32]


def draw_scene(scene: Scene, clutter: float) -> Image.Image:
    """Draw a scene as RGB.

    An outline fills its box exactly: its outermost pixels lie in the first and last column and row, unless something
    nearer hides them. It is of the kind, as is the pattern of the texture; how fine that is and the hue are of the
    class. Brightness and shading vary from one to the next.

    Args:
        scene: What there is.
        clutter: Contrast of the background's texture, a fraction.
    """
    rng = np.random.default_rng(scene.drawing)
    image = _ground(rng, scene.size_wh, clutter)
    nearness = [(DEPTHS[label % 5], box[3], i) for i, (box, label) in enumerate(scene.objects)]
    for _, _, i in sorted(nearness):
        (box, label), hue = scene.objects[i], scene.hues[i]
        _draw(rng, image, box, label, hue)
    return image


def save_scenes(scenes: Sequence[Scene], paths: Sequence[Path], clutter: float) -> None:
    """Draw each scene into its file, whose folder may not exist yet and whose suffix says the format."""
    for scene, path in zip(scenes, paths, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        draw_scene(scene, clutter).save(path, quality=85)


def _draw(rng: np.random.Generator, image: Image.Image, box: Box, label: int, hue: float) -> None:
    x1, y1, x2, y2 = box
    wide, high = x2 - x1 + 1, y2 - y1 + 1
    corner = (x1 - 1, y1 - 1)  # Pillow counts from 0
    outer, inner = (Image.fromarray(m) for m in _masks(label % 5, label // 10, wide, high))
    light = colorsys.hsv_to_rgb(hue, 0.75, rng.uniform(0.78, 0.93))
    dark = colorsys.hsv_to_rgb(hue, 0.95, rng.uniform(0.37, 0.51))
    bright = _pattern(label % 5, label // 10 % 4).resize((wide, high), Image.Resampling.BILINEAR)
    masks = (outer, inner, ImageChops.multiply(inner, bright))
    for colour, strength, mask in zip((dark, dark, light), (128, 255, 255), masks, strict=True):
        red, green, blue = (round(strength * part) for part in colour)
        image.paste((red, green, blue), corner, mask)


@cache
def _pattern(kind: int, fineness: int) -> Image.Image:
    """Return how light a texture is, an image of 8 bits a pixel."""
    line = np.linspace(-1, 1, FINEST, dtype=np.float32)
    u, v = np.meshgrid(line, line)
    shaded = texture(5 * fineness + kind, u, v, np.hypot(u, v)) * (np.float32(0.9) - np.float32(0.1) * v)
    return Image.fromarray((255 * shaded).astype(np.uint8))


def _masks(kind: int, look: int, wide: int, high: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return 255 at the pixels of an outline, uint8 `[high, wide]`, and at those of them that aren't its rim."""
    v = ((np.arange(high) + 0.5) / high).astype(np.float32)
    outside, gap = _profile(kind, look * 0.381966 % 1, v)
    x = np.abs(np.arange(wide, dtype=np.float32) + 0.5 - wide / 2)
    # The widest row reaches both borders, and every row has a pixel.
    reach = np.maximum(outside / outside.max() * (wide / 2), 1.0)[:, None]
    hollow = np.minimum(gap[:, None] * (wide / 2), reach - 1)
    outer = (x < reach) & (x >= hollow)
    rim = 1.0 + 0.006 * high
    inner = (x < reach - rim) & (x >= hollow + rim * (hollow > 0))
    edge = round(rim)
    inner[:edge] = inner[-edge:] = False
    return outer.astype(np.uint8) * 255, inner.astype(np.uint8) * 255


def _profile(kind: int, variant: float, v: Curve) -> tuple[Curve, Curve]:
    """Return half the width of an outline and of the gap in its middle at heights v from 0 (top) to 1.

    `variant`, 0 to 1, tells classes of one kind apart.
    """
    nothing = np.zeros_like(v)
    if kind == WALKER:  # a head on a neck, shoulders, and legs
        head = 0.55 * np.sqrt(np.maximum(1 - ((v - 0.11) / 0.11) ** 2, 0))
        body = np.where(v < 0.26, 0.2, np.where(v < 0.62, 1 - (0.5 + 0.5 * variant) * (v - 0.26), 0.75))
        return np.where(v < 0.2, head, body), np.where(v > 0.66, 0.15 + 0.1 * variant, nothing)
    if kind == PLATFORM:  # a slab on two legs
        slab = v < 0.35 + 0.2 * variant
        return np.where(slab, 1.0, 0.9).astype(np.float32), np.where(slab, nothing, 0.6)
    if kind == TOOL:  # a head on a shaft
        return np.where(v < 0.3 + 0.3 * variant, 1.0, 0.45).astype(np.float32), nothing
    if kind == COVER:  # a dome on a brim
        dome = (0.6 + 0.2 * variant) * np.sqrt(np.maximum(1 - (1 - v / 0.75) ** 2, 0))
        return np.where(v < 0.75, dome, 1.0).astype(np.float32), nothing
    roof = np.minimum(v / (0.25 + 0.3 * variant), 1)
    return np.where(roof < 1, roof, 0.88).astype(np.float32), nothing


def _ground(rng: np.random.Generator, size_wh: tuple[int, int], clutter: float) -> Image.Image:
    """Return grey-brown mottled ground; its colours say nothing about the classes."""
    width, height = size_wh
    cells = (round(GROUND_ROWS * width / height), GROUND_ROWS)
    tints = rng.normal((134, 128, 118), 5, (4, 5, 3)) + rng.normal(0, 18, (4, 5, 1))
    coarse = Image.fromarray(tints.clip(0, 255).astype(np.uint8))
    smooth = np.asarray(coarse.resize(cells, Image.Resampling.BICUBIC), dtype=np.float32)
    mottled = smooth + 40 * np.float32(clutter) * rng.standard_normal((*cells[::-1], 1), dtype=np.float32)
    return Image.fromarray(mottled.clip(0, 255).astype(np.uint8)).resize(size_wh, Image.Resampling.BILINEAR)
