"""The one place where image files are opened: from a list of formats, with a limit of pixels, and without remarks.

Pillow tries every format that it knows, and for EPS it starts Ghostscript on the file. A file that is read here is
decoded by a decoder of `FORMATS` or not at all.
"""

from __future__ import annotations

import functools
import logging
import warnings
from collections.abc import Sequence
from contextlib import suppress
from io import BytesIO

from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "TIFF", "BMP", "HEIF")
"""Formats of photographs and drawings; HEIF only with the package pillow-heif."""

RENDERING_FORMATS = ("PNG",)
"""The format of a catalog's renderings."""

MAX_PIXELS = 89_000_000
"""Pillow itself warns a little above, and refuses twice as many."""

_REMARKS = ("ignore", UserWarning, r"(PIL|pillow_heif)\.")
_BOMBS = ("error", Image.DecompressionBombWarning, "")

logging.getLogger("PIL").setLevel(logging.CRITICAL)  # its errors about damaged tags would reach the terminal


class TooManyPixels(ValueError):
    """An image file whose header declares more pixels than the limit; `size` is (width, height)."""

    def __init__(self, size: tuple[int, int], limit: int) -> None:
        super().__init__(f"{size[0]} x {size[1]} pixels: the limit is {limit} pixels in all")
        self.size = size


def open_image(data: bytes, *, max_pixels: int = MAX_PIXELS, formats: Sequence[str] = FORMATS) -> Image.Image:
    """Open an image by its header; its pixels are decoded by `load`, or by whatever needs them first.

    Raises:
        UnidentifiedImageError: the data is of none of `formats`.
        TooManyPixels: it has more than `max_pixels`.
        Exception: of nearly every kind, for a damaged header, as from `load` for damaged pixels.
    """
    for action, category, module in (_REMARKS, _BOMBS):
        _filter_warnings(action, category, module)
    image = Image.open(BytesIO(data), formats=[name for name in formats if name in available_formats()])
    if image.width * image.height > max_pixels:
        image.close()
        raise TooManyPixels(image.size, max_pixels)
    return image


@functools.cache
def available_formats() -> tuple[str, ...]:
    """Those of `FORMATS` for which a decoder is installed."""
    with suppress(ImportError):
        from pillow_heif import register_heif_opener

        register_heif_opener()
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def format_of(data: bytes) -> str | None:
    """The format of `available_formats` that data begins as, by its first bytes alone."""
    for name in available_formats():
        accept = Image.OPEN[name][1]
        if accept is not None and accept(data[:16]) is True:
            return name
    return None


def _filter_warnings(action: str, category: type[Warning], module: str) -> None:
    """Add a filter of warnings unless it is there; for the whole process, because others are not safe in threads."""
    for found in warnings.filters:
        if found[0] == action and found[2] is category and getattr(found[3], "pattern", "") == module:
            return
    warnings.filterwarnings(action, category=category, module=module)  # pyright: ignore[reportArgumentType]
