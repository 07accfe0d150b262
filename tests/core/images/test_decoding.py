"""The one image decoder: its formats, its limit, and its silence."""

from __future__ import annotations

import subprocess
import sys
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

from persres.core.images.decoding import FORMATS, RENDERING_FORMATS, TooManyPixels, open_image


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 40, 3), np.uint8))


def test_only_formats_of_the_list_are_opened(monkeypatch):
    def start(*arguments: object, **options: object) -> None:
        raise AssertionError(f"a process was started: {arguments}")

    monkeypatch.setattr(subprocess, "Popen", start)
    monkeypatch.setattr(subprocess, "check_call", start)
    assert "EPS" not in FORMATS
    for kind in ("EPS", "PPM", "ICO", "TGA", "PDF"):
        with pytest.raises(UnidentifiedImageError):
            open_image(encode(PICTURE, kind)).load()
    with pytest.raises(UnidentifiedImageError):
        open_image(encode(PICTURE, "BMP"), formats=RENDERING_FORMATS)
    for kind in ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP"):
        assert open_image(encode(PICTURE, kind)).size == (40, 32)


def test_limit_of_pixels_holds_before_decoding():
    with pytest.raises(TooManyPixels, match="40 x 32 pixels: the limit is 1000"):
        open_image(encode(PICTURE), max_pixels=1000)
    assert open_image(encode(PICTURE), max_pixels=1280).size == (40, 32)


def test_remarks_of_decoders_do_not_reach_the_terminal():
    """In a process of its own, where no test framework catches them."""
    code = """
import sys
from io import BytesIO
from PIL import Image
from persres.core.images.decoding import open_image
buffer = BytesIO()
Image.new("RGB", (40, 32)).save(buffer, "JPEG", exif=b"Exif\\0\\0MM\\0*\\0\\0\\0\\x08\\0\\x05\\x01\\x12\\0\\x03")
image = open_image(buffer.getvalue())
image.load()
image.getexif()
import warnings
warnings.warn("of somebody else")
"""
    done = subprocess.run([sys.executable, "-W", "always", "-c", code], capture_output=True, text=True, check=True)
    assert "PIL" not in done.stderr + done.stdout
    assert "of somebody else" in done.stderr
