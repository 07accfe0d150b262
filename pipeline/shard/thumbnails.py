"""Small pictures for reports: of reference images as they were at training, and of renderings.

The report of a catalog shows them without going back to where the references came from. They are in no fingerprint and
no digest of results: a concept is current with or without them.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

THUMBNAIL_SIDE = 112  # pixels
REFERENCES_KEPT = 4
_QUALITY = 50


def reference_thumbnails(images: Sequence[np.ndarray]) -> tuple[bytes, ...]:
    """The thumbnails of a concept's first reference images, H x W x 3 uint8 each."""
    return tuple(webp_thumbnail(Image.fromarray(image)) for image in images[:REFERENCES_KEPT])


def webp_thumbnail(image: Image.Image) -> bytes:
    """An image, made to fit a square of `THUMBNAIL_SIDE`, as WebP."""
    small = image.convert("RGB")
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=_QUALITY, method=4)
    return buffer.getvalue()


def is_webp(data: bytes) -> bool:
    """Whether bytes begin as WebP does."""
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP"
