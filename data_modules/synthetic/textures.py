"""Small generated pictures whose class shows: a shape and a colour for the family, a texture for the kind within it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SHAPES = ("disc", "box", "ring", "cross", "wedge", "bar", "lozenge")
COLOURS = ("red", "orange", "amber", "lime", "green", "jade", "teal", "azure", "blue", "violet", "magenta", "rose")
TEXTURES = ("banded", "coarse", "fine", "plain", "ribbed", "slanted", "striped", "tilted")
GOLDEN = 0.618034  # steps of this round the colour circle keep neighbours apart
_PIXELS_AT_ONCE = 2**21


def family_of(num_classes: int, per_family: int = 5) -> NDArray[np.int64]:
    """Return the family of each class, int64 `[num_classes]`, in families of `per_family` classes or one fewer.

    With F families, class c is kind c // F of family c mod F, so that the classes of a family lie apart: CIFAR-100's
    fine classes are in alphabetical order, which doesn't group them by their coarse ones either.
    """
    return np.arange(num_classes) % -(-num_classes // per_family)


def kind_of(num_classes: int, per_family: int = 5) -> NDArray[np.int64]:
    """Return which kind of its family each class is, int64 `[num_classes]`."""
    return np.arange(num_classes) // -(-num_classes // per_family)


def family_names(num_families: int) -> list[str]:
    """Return distinct names of the families, in alphabetical order."""
    # The colours go the other way round their circle than the angles of `render`.
    colours = [COLOURS[round(-f * GOLDEN * len(COLOURS)) % len(COLOURS)] for f in range(num_families)]
    return [f"family_{f:03d}_{colour}_{SHAPES[f % len(SHAPES)]}" for f, colour in enumerate(colours)]


def class_names(num_classes: int, per_family: int = 5) -> list[str]:
    """Return distinct names of all classes, in alphabetical order.

    Raises:
        ValueError: A family would have more kinds than there are names.
    """
    families, kinds = family_of(num_classes, per_family), kind_of(num_classes, per_family)
    if per_family > len(TEXTURES):
        raise ValueError(f"per_family={per_family}: there are names for {len(TEXTURES)} kinds of one family")
    names = family_names(int(families.max()) + 1)
    return [f"{TEXTURES[k]}_{names[f].removeprefix('family_')}" for f, k in zip(families, kinds, strict=True)]


def render(
    families: NDArray[np.int64],
    kinds: NDArray[np.int64],
    size: int,
    rng: np.random.Generator,
    kind_contrast: float = 0.6,
    noise: float = 18.0,
) -> NDArray[np.uint8]:
    """Render one picture for each pair of a family and a kind.

    A family fixes the shape and its colour. A kind fixes the direction and number of the shape's stripes, and shifts
    its colour a little. Place, extent, light, background, the stripes' phase and the noise differ from picture to
    picture. So families differ in their mean pictures, and the kinds of one family mostly in their texture.

    Args:
        families: Family of each picture, int64 `[B]`.
        kinds: Kind within the family, int64 `[B]`.
        size: Width and height in pixels.
        rng: Where all else is drawn from.
        kind_contrast: How strong the texture is, a fraction: at 0 the kinds of one family are alike.
        noise: Standard deviation of the pixel noise, in grey levels of 255.

    Returns:
        uint8 `[B, size, size, 3]`, RGB.
    """
    pictures = np.empty((len(families), size, size, 3), dtype=np.uint8)
    step = max(1, _PIXELS_AT_ONCE // size**2)
    for start in range(0, len(families), step):
        part = slice(start, start + step)
        pictures[part] = _render(families[part], kinds[part], size, rng, kind_contrast, noise)
    return pictures


def _render(
    families: NDArray[np.int64],
    kinds: NDArray[np.int64],
    size: int,
    rng: np.random.Generator,
    kind_contrast: float,
    noise: float,
) -> NDArray[np.uint8]:
    count = len(families)

    def draw(low: float, high: float) -> NDArray[np.float32]:
        return rng.uniform(low, high, (count, 1, 1)).astype(np.float32)

    axis = np.linspace(-1, 1, size, dtype=np.float32)
    extent = draw(0.85, 1.15)
    x = (axis[None, None, :] - draw(-0.2, 0.2)) / extent
    y = (axis[None, :, None] - draw(-0.2, 0.2)) / extent
    inside = _inside(families % len(SHAPES), x, y)

    angle = (np.pi * (kinds * GOLDEN % 1)).astype(np.float32)[:, None, None]
    waves = (1.5 + kinds % 3).astype(np.float32)[:, None, None]
    along = x * np.cos(angle) + y * np.sin(angle)
    stripes = 1 + kind_contrast * np.sin(np.pi * waves * along + draw(0, 2 * np.pi))
    hue = families * GOLDEN + 0.15 * kind_contrast * (kinds * GOLDEN % 1 - 0.5)
    thirds = np.arange(3) / 3
    colour = (0.5 + 0.5 * np.cos(2 * np.pi * (hue[:, None] + thirds))).astype(np.float32)

    grey = draw(0.25, 0.75) + draw(-0.15, 0.15) * axis[None, None, :] + draw(-0.15, 0.15) * axis[None, :, None]
    shade = (stripes * draw(0.5, 0.75))[..., None] * colour[:, None, None, :]
    picture = np.where(inside[..., None], shade, grey[..., None]) * 255
    picture += noise * rng.standard_normal(picture.shape, dtype=np.float32)
    rendered: NDArray[np.uint8] = np.clip(np.rint(picture), 0, 255).astype(np.uint8)
    return rendered


def _inside(shapes: NDArray[np.int64], x: NDArray[np.float32], y: NDArray[np.float32]) -> NDArray[np.bool_]:
    x, y = np.broadcast_arrays(x, y)
    radius, across, down = np.hypot(x, y), np.abs(x), np.abs(y)
    masks = (
        radius < 0.65,
        np.maximum(across, down) < 0.55,
        (radius > 0.35) & (radius < 0.75),
        (np.minimum(across, down) < 0.22) & (np.maximum(across, down) < 0.75),
        (y < 0.6) & (2 * across < y + 0.75),
        (down < 0.25) & (across < 0.85),
        across + down < 0.75,
    )
    which = shapes[:, None, None]
    return np.select([which == i for i in range(len(SHAPES))], masks)
