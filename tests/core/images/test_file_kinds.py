"""Files that are no image that can be read are named for what they are."""

from __future__ import annotations

import base64
import gzip
import subprocess
import sys
import tarfile
import zipfile
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from persres.core.images.file_kinds import kind_of


def picture(kind: str = "PNG") -> bytes:
    buffer = BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 40, 3), np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def zipped() -> bytes:
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.png", picture())
    return buffer.getvalue()


def tarred() -> bytes:
    buffer = BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.png"))
    return buffer.getvalue()


def mp4(brand: bytes) -> bytes:
    return b"\0\0\0\x18ftyp" + brand + b"\0\0\0\0mp42isom" + bytes(50)


FILES = {
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
    "a .DS_Store": b"\0\0\0\x01Bud1" + bytes(99),
    "AppleDouble": b"\0\x05\x16\x07\0\x02\0\0Mac OS X        " + bytes(50),
    "JPEG XL": b"\xff\x0a" + bytes(50),
    "base64 text": base64.b64encode(picture("JPEG")),
    "base64 text of": base64.encodebytes(picture()),
    "base64 text of an": b"data:image/png;base64," + base64.b64encode(picture()),
    "base64 text of an image": base64.urlsafe_b64encode(picture("GIF")),
    "an HTML page": b"\n<!DOCTYPE html>\n<html><head><title>Sign in</title>",
    "an HTML page, as web servers send": b"\xef\xbb\xbf<HTML><BODY>404",
    "an error message of an object store (AccessDenied)": (
        b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>AccessDenied</Code><Message>x</Message></Error>'
    ),
    "an SVG drawing": b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>',
    "text (JSON)": b'{"error": "not found"}',
    "text: 'Not found'": b"Not found",
    "a ZIP archive": zipped(),
    "a tar archive": tarred(),
    "a gzip file": gzip.compress(picture()),
    "a PDF": picture("PDF"),
    "a PostScript": picture("EPS"),
    "a video (MP4": mp4(b"isom"),
    "a video (MP4 or QuickTime)": mp4(b"qt  "),
    "a video (WebM": b"\x1a\x45\xdf\xa3" + bytes(60),
    "a video (AVI)": b"RIFF\0\0\0\0AVI LIST",
    "a Photoshop document": b"8BPS\0\x01" + bytes(50),
    "an icon": picture("ICO"),
    "a Netpbm image": picture("PPM"),
    "a NumPy array": b"\x93NUMPY\x01\0",
    "nothing but zero bytes": bytes(4096),
}


@pytest.mark.parametrize("name", list(FILES))
def test_file_is_named(name):
    kind = kind_of(FILES[name])
    assert kind is not None and name in kind.name and kind.fix


def test_heic_is_named_with_its_package_where_that_is_missing():
    code = """
import sys
sys.modules["pillow_heif"] = None
from persres.core.images.file_kinds import kind_of
kind = kind_of(b"\\0\\0\\0\\x18ftypheic\\0\\0\\0\\0mif1heic" + bytes(99))
print(kind.name, "|", kind.fix)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("HEIC") and "persres-batch[heic]" in done.stdout


@given(st.binary(max_size=300))
def test_any_bytes_have_a_name_or_none(data):
    kind = kind_of(data)
    assert kind is None or (kind.name.isprintable() and kind.fix)
