"""Where the objects of a generated relation scene stand: in one to three groups beside one another."""

from __future__ import annotations

import numpy as np

from data_modules.synthetic.relation_classes import (
    COVER,
    PLATFORM,
    SHELTER,
    TOOL,
    WALKER,
    Node,
    RelationKnobs,
    numbers_of,
    twin_of,
)
from data_modules.synthetic.textures import GOLDEN

SIZES = ((0.13, 0.42), (0.30, 0.16), (0.07, 0.10), (0.10, 0.08), (0.45, 0.60))  # of the image, by kind
COMPANY = 0.85  # probability that what belongs together is of one family; otherwise of any
MIN_SIDE = 6  # pixels; what the image's border leaves less of is left out

Extent = tuple[float, float, float, float]  # x1, y1, x2, y2 as fractions of the image


def place(
    rng: np.random.Generator, size_wh: tuple[int, int], num_objects: int, knobs: RelationKnobs
) -> tuple[list[Node], list[bool]]:
    """Return the objects of one scene, and of each whether it is drawn halfway to its twin."""
    stage = _Stage(rng, size_wh, num_objects, knobs)
    groups = int(rng.integers(1, 4))
    for group in range(groups):
        stage.group((group + rng.uniform(0.3, 0.7)) / groups, rng.uniform(0.75, 0.95))
    return stage.objects, stage.ambiguous


class _Stage:
    """A scene that is being set; `number` and `other` are the family of the present group and of its main's company."""

    def __init__(
        self, rng: np.random.Generator, size_wh: tuple[int, int], num_objects: int, knobs: RelationKnobs
    ) -> None:
        self.rng, self.size_wh, self.num_objects, self.knobs = rng, size_wh, num_objects, knobs
        self.numbers = numbers_of(WALKER, num_objects)
        self.family = int(rng.integers(self.numbers))
        self.objects: list[Node] = []
        self.ambiguous: list[bool] = []

    def group(self, x: float, ground: float) -> None:
        """Put one group about a place."""
        rng, knobs = self.rng, self.knobs
        self.halfway = bool(rng.random() < knobs.multimodality)
        number = self.family if rng.random() < knobs.context else int(rng.integers(self.numbers))
        doubled = bool(rng.random() < knobs.entity_confusion)
        if rng.random() < knobs.proximity:
            (self.close_carriers if rng.random() < 0.6 else self.close_riders)(number, x, ground, doubled)
        else:
            kinds = (self.carrier, self.rider, self.sheltered, self.display)
            kinds[rng.choice(4, p=[0.4, 0.3, 0.2, 0.1])](number, x, ground, doubled)

    def carrier(self, number: int, x: float, ground: float, doubled: bool) -> None:
        """A walker with a tool at one side and perhaps a cover; a walker of its class beside it."""
        partner = self.company(number)
        side = self.free_side(x)
        body = self.add(WALKER, number, x, ground)
        self.tool_at(body, partner, side, self.rng.uniform(0.4, 0.6))
        if self.rng.random() < 0.5:
            self.cover_on(body, partner)
        if doubled:
            far = self.rng.uniform(1.3, 1.8) * (body[2] - body[0])
            self.add(WALKER, number, x + side * far, ground + self.rng.uniform(-0.03, 0.03))

    def rider(self, number: int, x: float, ground: float, doubled: bool) -> None:
        """A walker on a platform; a platform of its class beside it."""
        partner = self.company(number)
        base = self.add(PLATFORM, partner, x, ground)
        wide = base[2] - base[0]
        self.stand_on(base, number, x + self.rng.uniform(-0.2, 0.2) * wide)
        if doubled:
            far = self.free_side(x) * self.rng.uniform(1.1, 1.3) * wide
            self.add(PLATFORM, partner, x + far, ground + self.rng.uniform(-0.02, 0.02))

    def sheltered(self, number: int, x: float, ground: float, doubled: bool) -> None:
        """Something inside a shelter; another of its class outside."""
        x1, _, x2, _ = self.add(SHELTER, self.company(number), x, ground)
        kind = int(self.rng.choice([WALKER, TOOL]))
        self.add(kind, number, x + self.rng.uniform(-0.2, 0.2) * (x2 - x1), ground - 0.02)
        if doubled:
            side = self.free_side(x)
            self.add(kind, number, (x1 if side < 0 else x2) + side * 0.08, ground)

    def display(self, number: int, x: float, ground: float, doubled: bool) -> None:
        """A tool on a platform and a cover above; a tool of its class on the ground."""
        x1, y1, x2, y2 = self.add(PLATFORM, self.company(number), x, ground)
        self.add(TOOL, number, x - 0.2 * (x2 - x1), y1 + 0.3 * (y2 - y1))
        self.add(COVER, number, x + 0.2 * (x2 - x1), y1 - self.rng.uniform(0.03, 0.2))
        if doubled:
            side = self.free_side(x)
            self.add(TOOL, number, (x1 if side < 0 else x2) + side * 0.06, ground)

    def close_carriers(self, number: int, x: float, ground: float, alike: bool) -> None:
        """Two walkers, each with a tool in the narrow gap between them; all of two classes if `alike`."""
        partner = self.company(number)
        second = (number, partner) if alike else self.of_the_same_use(number, partner)
        first = self.add(WALKER, number, x - 0.5 * self.width(WALKER, number), ground)
        self.tool_at(first, partner, 1, self.rng.uniform(0.3, 0.4))
        gap = 0.15 * min(self.width(TOOL, partner), self.width(TOOL, second[1]))
        left = first[2] + gap
        neighbour = self.add(WALKER, second[0], left + 0.5 * self.width(WALKER, second[0]), ground, exact=True)
        self.tool_at(neighbour, second[1], -1, self.rng.uniform(0.6, 0.7))

    def close_riders(self, number: int, x: float, ground: float, alike: bool) -> None:
        """Two platforms side by side, each with a walker near the other one; all of two classes if `alike`."""
        partner = self.company(number)
        second = (number, partner) if alike else self.of_the_same_use(number, partner)
        first = self.add(PLATFORM, partner, x - 0.5 * self.width(PLATFORM, partner), ground, exact=True)
        middle = first[2]
        wide = self.width(PLATFORM, second[1])
        neighbour = self.add(PLATFORM, second[1], middle + 0.5 * wide, ground + 0.005, exact=True)
        for base, rider, side in ((first, number, -1), (neighbour, second[0], 1)):
            self.stand_on(base, rider, middle + side * 0.3 * self.width(WALKER, rider))

    def company(self, number: int) -> int:
        return number if self.rng.random() < COMPANY else int(self.rng.integers(self.numbers))

    def of_the_same_use(self, number: int, partner: int) -> tuple[int, int]:
        """Return numbers of another pair of which the same predicate holds: its object's number is as even or odd."""
        others = [n for n in range(self.numbers) if n % 2 == partner % 2]
        return int(self.rng.integers(self.numbers)), int(self.rng.choice(others))

    def free_side(self, x: float) -> int:
        """Return -1 for the left or 1 for the right: either, but near a border the other one."""
        if 0.3 < x < 0.7:
            return int(self.rng.choice([-1, 1]))
        return 1 if x < 0.5 else -1

    def width(self, kind: int, number: int) -> float:
        """Return a class's usual width, a fraction of the image's."""
        return self.scale(kind, number) * SIZES[kind][0]

    def scale(self, kind: int, number: int) -> float:
        # Twins are of one size.
        number %= numbers_of(kind, self.num_objects)
        return 0.75 + 0.5 * (number // 2 * GOLDEN % 1)

    def add(self, kind: int, number: int, x: float, bottom: float, exact: bool = False) -> Extent:
        """Put an object of a class, its middle at x; return what it takes up, as if the image had no borders."""
        number %= numbers_of(kind, self.num_objects)
        scale = self.scale(kind, number) * (1.0 if exact else self.rng.uniform(0.9, 1.1))
        w, h = (scale * fraction for fraction in SIZES[kind])
        extent = (x - w / 2, bottom - h, x + w / 2, bottom)
        box = np.clip(np.rint(np.array(extent) * (self.size_wh * 2)), 1, self.size_wh * 2).astype(int)
        x1, y1, x2, y2 = box.tolist()
        node = (x1, y1, x2, y2), kind + 5 * number
        if min(x2 - x1, y2 - y1) >= MIN_SIDE and node not in self.objects:
            self.objects.append(node)
            self.ambiguous.append(self.halfway and twin_of(node[1], self.num_objects) != node[1])
        return extent

    def tool_at(self, body: Extent, number: int, side: int, height: float) -> None:
        """Put a tool at a walker's side, two thirds of it before the walker."""
        x1, y1, x2, y2 = body
        inwards = 0.15 * self.width(TOOL, number)
        self.add(TOOL, number, x1 + inwards if side < 0 else x2 - inwards, y1 + height * (y2 - y1))

    def cover_on(self, body: Extent, number: int) -> None:
        """Put a cover on a walker's head."""
        x1, y1, x2, y2 = body
        self.add(COVER, number, (x1 + x2) / 2, y1 + 0.2 * (y2 - y1))

    def stand_on(self, base: Extent, number: int, x: float) -> None:
        """Put a walker on a platform."""
        _, y1, _, y2 = base
        self.add(WALKER, number, x, y1 + self.rng.uniform(0.2, 0.7) * (y2 - y1))
