"""The drawn world: six classes of sprites on eight backgrounds, as pure functions of plain values.

Shapes: an image is uint8 [64, 64, 3], a mask bool [64, 64]. Both are drawn four times larger and reduced, for smooth
edges. A sprite is drawn in coordinates of its own, x and y from -1 to 1 with y downwards; `_Pen` maps them to pixels.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from .backgrounds import FULL, PAINTERS, RGB

SIZE = 64
_UP = FULL // SIZE

CLASSES = ("robot", "fish", "house", "mug", "car", "tree")
BACKGROUNDS = tuple(PAINTERS)
PATTERNS = ("plain", "striped", "banded", "dotted", "zigzag")
COLOURS: dict[str, RGB] = {
    "red": (216, 42, 46),
    "orange": (243, 135, 34),
    "yellow": (250, 212, 52),
    "green": (62, 162, 70),
    "teal": (24, 166, 166),
    "blue": (44, 96, 220),
    "purple": (134, 66, 186),
    "pink": (248, 142, 186),
    "brown": (132, 84, 48),
    "white": (246, 246, 240),
    "gray": (142, 146, 152),
    "black": (46, 46, 52),
}

Point = tuple[float, float]

_INK: RGB = (38, 32, 46)
_LIGHT: RGB = (250, 250, 250)
_GLASS: RGB = (178, 222, 244)
_LAMP: RGB = (255, 238, 140)


@dataclass(frozen=True)
class Identity:
    """Everything that makes one sprite that sprite, wherever it stands.

    `body`, `pattern_colour` and `trim` are names in `COLOURS`; `shades` are the three colours after jitter.
    `proportions` are factors near 1 for width and height, and a class-specific detail from 0 to 1.
    """

    macro_class: str
    body: str
    pattern_colour: str
    trim: str
    pattern: str
    shades: tuple[RGB, RGB, RGB]
    proportions: tuple[float, float, float]


@dataclass(frozen=True)
class Placement:
    """A sprite's size and the position of its feet, in image coordinates (0 to 1), and whether it is mirrored."""

    scale: float
    x: float
    ground: float
    flipped: bool


def rng_for(*parts: object) -> np.random.Generator:
    """Return a generator that depends on the text of `parts` alone, on every machine and in every process."""
    digest = hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "big")))


def random_identity(seed: object, macro_class: str | None = None) -> Identity:
    """Return a random identity whose pattern and trim colours are visible against its body."""
    rng = rng_for("identity", seed)
    names = list(COLOURS)
    kind = CLASSES[int(rng.integers(len(CLASSES)))]
    body = names[int(rng.integers(len(names)))]
    visible = [name for name in names if _distance(COLOURS[name], COLOURS[body]) > 110]
    second, third = (str(name) for name in rng.choice(visible, size=2, replace=False))
    shades = tuple(_jitter(COLOURS[name], rng) for name in (body, second, third))
    pattern = PATTERNS[int(rng.integers(len(PATTERNS)))]
    wide, tall = rng.uniform(0.86, 1.1, size=2)
    proportions = (round(float(wide), 3), round(float(tall), 3), round(float(rng.uniform()), 3))
    return Identity(macro_class or kind, body, second, third, pattern, (shades[0], shades[1], shades[2]), proportions)


def random_placement(seed: object) -> Placement:
    rng = rng_for("placement", seed)
    return Placement(
        scale=float(rng.uniform(0.31, 0.39)),
        x=float(rng.uniform(0.43, 0.57)),
        ground=float(rng.uniform(0.82, 0.92)),
        flipped=bool(rng.integers(2)),
    )


def draw(identity: Identity, background: str, seed: object) -> tuple[np.ndarray, np.ndarray]:
    """Draw a sprite on a background. The seed decides the placement and the background's details.

    Returns:
        The image, uint8 [64, 64, 3], and the sprite's mask, bool [64, 64].
    """
    canvas = Image.new("RGB", (FULL, FULL))
    PAINTERS[background](ImageDraw.Draw(canvas), rng_for("background", seed))
    pen = _Pen(canvas, random_placement(seed), identity)
    if background not in ("night sky", "brick wall"):
        pen.shadow()
    _SPRITES[identity.macro_class](pen, identity)
    picture = np.asarray(canvas.reduce(_UP), dtype=np.uint8)
    mask = np.asarray(pen.mask.reduce(_UP)) >= 128
    return picture, mask


def _distance(a: RGB, b: RGB) -> float:
    return math.dist(a, b)


def _jitter(colour: RGB, rng: np.random.Generator) -> RGB:
    r, g, b = (int(np.clip(c + rng.integers(-13, 14), 0, 255)) for c in colour)
    return r, g, b


class _Pen:
    """Draws a sprite's parts, given in the sprite's coordinates, with outlines, and records the sprite's mask."""

    def __init__(self, canvas: Image.Image, placement: Placement, identity: Identity) -> None:
        self.canvas, self.identity, self.placement = canvas, identity, placement
        self.mask = Image.new("L", canvas.size, 0)
        self._paint, self._cut = ImageDraw.Draw(canvas), ImageDraw.Draw(self.mask)
        wide, tall, _ = identity.proportions
        half = placement.scale * FULL
        self._sx, self._sy = half * wide * (-1 if placement.flipped else 1), half * tall
        self._cx, self._cy = placement.x * FULL, placement.ground * FULL - self._sy
        self._unit = half
        self._ink = 5

    def at(self, x: float, y: float) -> Point:
        return self._cx + x * self._sx, self._cy + y * self._sy

    def box(self, x0: float, y0: float, x1: float, y1: float) -> tuple[float, float, float, float]:
        (ax, ay), (bx, by) = self.at(x0, y0), self.at(x1, y1)
        return min(ax, bx), ay, max(ax, bx), by

    def shadow(self) -> None:
        half = abs(self._sx) * 0.95
        x, y = self._cx, self.placement.ground * FULL
        under = Image.new("L", self.canvas.size, 0)
        ImageDraw.Draw(under).ellipse((x - half, y - 14, x + half, y + 16), fill=70)
        self.canvas.paste(_INK, (0, 0), under)

    def round_box(
        self, corners: tuple[float, float, float, float], radius: float, fill: RGB, pattern: bool = False
    ) -> None:
        box, r = self.box(*corners), radius * self._unit
        self._part(lambda d, c, g: d.rounded_rectangle(_grow(box, g), r + g, fill=c), fill, pattern)

    def ellipse(self, corners: tuple[float, float, float, float], fill: RGB, pattern: bool = False) -> None:
        box = self.box(*corners)
        self._part(lambda d, c, g: d.ellipse(_grow(box, g), fill=c), fill, pattern)

    def polygon(self, corners: Sequence[Point], fill: RGB, pattern: bool = False) -> None:
        points = [self.at(x, y) for x, y in corners]

        def shape(d: ImageDraw.ImageDraw, colour: RGB | int, grow: float) -> None:
            d.polygon(points, fill=colour)
            if grow:
                d.line([*points, *points[:2]], fill=colour, width=int(2 * grow), joint="curve")

        self._part(shape, fill, pattern)

    def blob(self, boxes: Sequence[tuple[float, float, float, float]], fill: RGB) -> None:
        """Draw several ellipses as one part, such as a tree's crown."""
        placed = [self.box(*corners) for corners in boxes]

        def shape(d: ImageDraw.ImageDraw, colour: RGB | int, grow: float) -> None:
            for box in placed:
                d.ellipse(_grow(box, grow), fill=colour)

        self._part(shape, fill, True)

    def ring(self, corners: tuple[float, float, float, float], thick: float, fill: RGB) -> None:
        """Draw a ring through which the background is visible, such as a mug's handle."""
        box, width = self.box(*corners), thick * self._unit

        def shape(d: ImageDraw.ImageDraw, colour: RGB | int, grow: float) -> None:
            d.ellipse(_grow(box, grow), outline=colour, width=int(width + 2 * grow))

        self._part(shape, fill, False)

    def dot(self, x: float, y: float, radius: float, fill: RGB) -> None:
        """Draw a circle without an outline, independent of the sprite's proportions."""
        (px, py), r = self.at(x, y), radius * self._unit
        self._paint.ellipse((px - r, py - r, px + r, py + r), fill=fill)

    def eye(self, x: float, y: float, radius: float) -> None:
        self.dot(x, y, radius + 0.05, _INK)
        self.dot(x, y, radius, _LIGHT)
        self.dot(x - 0.03, y + 0.02, radius * 0.55, _INK)

    def stroke(self, points: Sequence[Point], fill: RGB = _INK, thick: float = 0.06) -> None:
        placed = [self.at(x, y) for x, y in points]
        self._paint.line(placed, fill=fill, width=int(thick * self._unit), joint="curve")

    def _part(self, shape: Callable[[ImageDraw.ImageDraw, RGB | int, float], None], fill: RGB, pattern: bool) -> None:
        shape(self._paint, _INK, self._ink)
        shape(self._paint, fill, 0)
        shape(self._cut, 255, self._ink)
        if pattern and self.identity.pattern != "plain":
            inside = Image.new("L", self.canvas.size, 0)
            shape(ImageDraw.Draw(inside), 255, 0)
            self.canvas.paste(self.identity.shades[1], (0, 0), ImageChops.multiply(inside, self._pattern()))

    def _pattern(self) -> Image.Image:
        """Return the identity's pattern on the whole canvas, in mode L; the caller clips it to a part."""
        layer = Image.new("L", self.canvas.size, 0)
        d = ImageDraw.Draw(layer)
        if self.identity.pattern == "striped":
            for x in (-0.84, -0.42, 0.0, 0.42, 0.84):
                d.rectangle(self.box(x - 0.085, -1, x + 0.085, 1), fill=255)
        elif self.identity.pattern == "banded":
            d.rectangle(self.box(-1.2, 0.06, 1.2, 0.4), fill=255)
        elif self.identity.pattern == "dotted":
            for row, y in enumerate((-0.85, -0.5, -0.15, 0.2, 0.55, 0.9)):
                for column in range(-3, 4):
                    x, r = column * 0.44 + (0.22 if row % 2 else 0.0), 0.115 * self._unit
                    px, py = self.at(x, y)
                    d.ellipse((px - r, py - r, px + r, py + r), fill=255)
        elif self.identity.pattern == "zigzag":
            for y in (-0.62, 0.0, 0.62):
                points = [self.at(-1.2 + 0.24 * i, y + (0.13 if i % 2 else -0.13)) for i in range(11)]
                d.line(points, fill=255, width=int(0.15 * self._unit), joint="curve")
        return layer


def _grow(box: tuple[float, float, float, float], by: float) -> tuple[float, float, float, float]:
    return box[0] - by, box[1] - by, box[2] + by, box[3] + by


def _robot(pen: _Pen, who: Identity) -> None:
    body, _, trim = who.shades
    detail = who.proportions[2]
    pen.stroke([(0, -0.9), (0, -0.72)], thick=0.1)
    pen.ellipse((-0.12, -1.08, 0.12, -0.84), trim)
    pen.round_box((-0.93, -0.08, -0.6, 0.5), 0.14, trim)
    pen.round_box((0.6, -0.08, 0.93, 0.5), 0.14, trim)
    pen.round_box((-0.46, 0.62, -0.1, 1.0), 0.1, trim)
    pen.round_box((0.1, 0.62, 0.46, 1.0), 0.1, trim)
    pen.round_box((-0.6, -0.12, 0.6, 0.78), 0.14, body, pattern=True)
    head = 0.52 + 0.12 * detail
    pen.round_box((-head, -0.8, head, -0.12), 0.18, body)
    for x in (-0.26, 0.26):
        pen.eye(x, -0.5, 0.15)
    pen.stroke([(-0.16, -0.25), (0.16, -0.25)], thick=0.08)


def _fish(pen: _Pen, who: Identity) -> None:
    body, _, trim = who.shades
    tail = 0.5 + 0.14 * who.proportions[2]
    pen.polygon([(0.4, 0.12), (1.06, 0.12 - tail), (0.88, 0.12), (1.06, 0.12 + tail)], trim)
    pen.polygon([(-0.35, -0.3), (0.12, -0.86), (0.42, -0.2)], trim)
    pen.polygon([(-0.12, 0.5), (0.2, 0.98), (0.34, 0.4)], trim)
    pen.ellipse((-1.0, -0.5, 0.62, 0.76), body, pattern=True)
    pen.eye(-0.58, -0.06, 0.17)
    pen.stroke([(-0.92, 0.3), (-0.76, 0.36), (-0.62, 0.3)], thick=0.07)
    pen.stroke([(-0.26, -0.24), (-0.16, 0.12), (-0.26, 0.46)], thick=0.06)


def _house(pen: _Pen, who: Identity) -> None:
    body, _, trim = who.shades
    peak = -0.92 - 0.16 * who.proportions[2]
    pen.round_box((0.38, -0.85, 0.64, -0.3), 0.03, body)
    pen.round_box((-0.78, -0.3, 0.78, 1.0), 0.04, body, pattern=True)
    pen.polygon([(-1.0, -0.24), (0.0, peak), (1.0, -0.24)], trim)
    pen.round_box((0.12, 0.3, 0.54, 1.0), 0.06, trim)
    pen.dot(0.22, 0.66, 0.05, _INK)
    pen.round_box((-0.52, 0.12, -0.12, 0.52), 0.03, _LAMP)
    pen.stroke([(-0.32, 0.12), (-0.32, 0.52)])
    pen.stroke([(-0.52, 0.32), (-0.12, 0.32)])


def _mug(pen: _Pen, who: Identity) -> None:
    body, _, trim = who.shades
    reach = 0.98 + 0.1 * who.proportions[2]
    pen.ring((0.1, -0.42, reach, 0.62), 0.2, trim)
    pen.round_box((-0.86, -0.68, 0.46, 1.0), 0.16, body, pattern=True)
    pen.ellipse((-0.86, -0.9, 0.46, -0.46), body)
    drink = (96, 60, 40)
    pen.ellipse((-0.7, -0.8, 0.3, -0.56), drink)


def _car(pen: _Pen, who: Identity) -> None:
    body, _, trim = who.shades
    roof = -0.72 - 0.16 * who.proportions[2]
    pen.polygon([(-0.66, 0.1), (-0.44, roof), (0.34, roof), (0.66, 0.1)], body)
    pen.polygon([(-0.5, 0.0), (-0.36, roof + 0.16), (-0.1, roof + 0.16), (-0.1, 0.0)], _GLASS)
    pen.polygon([(0.06, 0.0), (0.06, roof + 0.16), (0.26, roof + 0.16), (0.48, 0.0)], _GLASS)
    pen.round_box((-1.02, 0.0, 1.02, 0.72), 0.2, body, pattern=True)
    pen.ellipse((-0.98, 0.16, -0.74, 0.4), _LAMP)
    for x in (-0.56, 0.56):
        pen.ellipse((x - 0.31, 0.42, x + 0.31, 1.0), _INK)
        pen.dot(x, 0.71, 0.18, trim)


def _tree(pen: _Pen, who: Identity) -> None:
    body, _, trim = who.shades
    spread = 0.12 * who.proportions[2]
    pen.polygon([(-0.13, 0.2), (0.13, 0.2), (0.18, 0.86), (0.34, 1.0), (-0.34, 1.0), (-0.18, 0.86)], trim)
    left = [(-0.98 - spread, -0.32, -0.12, 0.46), (-0.84, -0.86, 0.02, 0.0)]
    right = [(-x1, y0, -x0, y1) for x0, y0, x1, y1 in left]
    pen.blob([*left, *right, (-0.46, -1.08, 0.46, -0.2), (-0.5, -0.3, 0.5, 0.58)], body)


_SPRITES: dict[str, Callable[[_Pen, Identity], None]] = {
    "robot": _robot,
    "fish": _fish,
    "house": _house,
    "mug": _mug,
    "car": _car,
    "tree": _tree,
}
