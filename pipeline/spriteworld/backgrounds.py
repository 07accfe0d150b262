"""The eight backgrounds of the drawn world, painted on 256 x 256 pixels, four times the side of an image.

Each painter takes a drawing surface and a random generator, which decides horizons, stars, bricks and blades of grass.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import ImageDraw

FULL = 256

RGB = tuple[int, int, int]


def _shade(colour: RGB, rng: np.random.Generator, by: int = 8) -> RGB:
    step = int(rng.integers(-by, by + 1))
    r, g, b = (max(0, min(255, c + step)) for c in colour)
    return r, g, b


def _sky(d: ImageDraw.ImageDraw, top: RGB, bottom: RGB, until: int) -> None:
    bands = 16
    for i in range(bands):
        r, g, b = (int(a + (z - a) * i / (bands - 1)) for a, z in zip(top, bottom, strict=True))
        d.rectangle((0, until * i // bands, FULL, until * (i + 1) // bands), fill=(r, g, b))


def _grass(d: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    horizon = int(rng.integers(84, 116))
    _sky(d, (126, 196, 242), (206, 234, 250), horizon)
    d.rectangle((0, horizon, FULL, FULL), fill=_shade((112, 190, 76), rng))
    for x, y in rng.integers((0, horizon + 8), (FULL, FULL), size=(26, 2)).tolist():
        d.line([(x - 5, y - 12), (x, y), (x + 5, y - 12)], fill=(66, 140, 54), width=4)


def _sand(d: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    horizon = int(rng.integers(84, 116))
    _sky(d, (252, 220, 176), (255, 240, 212), horizon)
    d.rectangle((0, horizon, FULL, FULL), fill=_shade((232, 198, 128), rng))
    for x, y in rng.integers((-20, horizon + 6), (FULL, FULL), size=(13, 2)).tolist():
        d.arc((x, y, x + 56, y + 18), 200, 340, fill=(204, 164, 94), width=4)


def _snow(d: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    horizon = int(rng.integers(96, 124))
    _sky(d, (150, 172, 206), (198, 212, 232), horizon)
    d.ellipse((-120, horizon - 14, FULL // 2 + 60, FULL + 180), fill=(238, 244, 252))
    d.ellipse((60, horizon - 6, FULL + 140, FULL + 200), fill=(246, 250, 255))
    d.rectangle((0, horizon + 40, FULL, FULL), fill=(246, 250, 255))
    for x, y in rng.integers(0, (FULL, FULL), size=(30, 2)).tolist():
        d.ellipse((x - 5, y - 5, x + 5, y + 5), fill=(255, 255, 255) if y < horizon else (218, 230, 246))


def _night_sky(d: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    _sky(d, _shade((14, 16, 52), rng, 5), (44, 44, 104), FULL)
    for x, y in rng.integers(0, FULL, size=(30, 2)).tolist():
        r = int(rng.integers(3, 6))
        d.ellipse((x - r, y - r, x + r, y + r), fill=(255, 248, 206))
    x, y = int(rng.choice((34, FULL - 34))), int(rng.integers(28, 48))
    d.ellipse((x - 22, y - 22, x + 22, y + 22), fill=(252, 240, 178))
    d.ellipse((x - 10, y - 28, x + 28, y + 12), fill=(18, 20, 58))


def _checkered_floor(d: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    horizon = int(rng.integers(72, 100))
    d.rectangle((0, 0, FULL, horizon), fill=_shade((226, 206, 220), rng))
    shift, cell = int(rng.integers(0, 64)), 32
    for row, y in enumerate(range(horizon, FULL, cell)):
        for column in range(-2, FULL // cell + 2):
            x = column * cell + shift
            fill = (62, 60, 78) if (row + column) % 2 else (240, 238, 240)
            d.rectangle((x, y, x + cell, y + cell), fill=fill)


def _brick_wall(d: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    d.rectangle((0, 0, FULL, FULL), fill=(220, 206, 194))
    high, wide, shift = 30, 62, int(rng.integers(0, 60))
    for row in range(-1, FULL // high + 1):
        for column in range(-2, FULL // wide + 2):
            x, y = column * wide + shift + (wide // 2 if row % 2 else 0), row * high + shift % high
            d.rectangle((x, y, x + wide - 6, y + high - 6), fill=_shade((178, 88, 66), rng, 14))


def _water(d: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    horizon = int(rng.integers(52, 84))
    _sky(d, (190, 230, 246), (232, 246, 250), horizon)
    d.rectangle((0, horizon, FULL, FULL), fill=_shade((46, 132, 206), rng))
    for y in range(horizon + 12, FULL, 26):
        shift = int(rng.integers(0, 44))
        for x in range(-44 + shift, FULL, 44):
            d.arc((x, y, x + 44, y + 20), 20, 160, fill=(150, 208, 242), width=5)


def _studio(d: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    top = _shade((206, 208, 216), rng)
    _sky(d, top, (236, 237, 242), 176)
    d.rectangle((0, 176, FULL, FULL), fill=_shade((196, 198, 206), rng, 5))


PAINTERS: dict[str, Callable[[ImageDraw.ImageDraw, np.random.Generator], None]] = {
    "grass": _grass,
    "sand": _sand,
    "snow": _snow,
    "night sky": _night_sky,
    "checkered floor": _checkered_floor,
    "brick wall": _brick_wall,
    "water": _water,
    "studio": _studio,
}
