"""Images that are damaged, malicious or outside the limits, and unusual ones that are accepted."""

from __future__ import annotations

import base64
import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


@dataclass(frozen=True, slots=True)
class BadImage:
    """A reference image, written by `write` to the path that it is given.

    Attributes:
        expected: text that the message must contain; "" if the image is accepted.
        uri: given in the manifest instead of the file's path.
        embedded: the manifest holds the bytes instead of a path.
    """

    name: str
    write: Callable[[Path], object]
    expected: str = ""
    uri: str | None = None
    embedded: bool = False


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(width: int = 40, height: int = 32, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels).convert(mode)


def png(width: int, height: int, *chunks: bytes, depth: int = 8, color: int = 2, ends: bool = True) -> bytes:
    """A PNG with this header and these chunks."""
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    end = chunk(b"IEND", b"") if ends else b""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunks) + end


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def tiff_claiming(width: int, height: int) -> bytes:
    """A TIFF whose header has this size, with eight bytes of pixels."""
    tags = [
        (256, 4, width), (257, 4, height), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1),
        (278, 4, height), (279, 4, 8),
    ]  # fmt: skip
    directory = struct.pack("<H", len(tags)) + b"".join(
        struct.pack("<HHI", tag, kind, 1) + struct.pack("<I", value) for tag, kind, value in tags
    )
    return b"II*\x00" + struct.pack("<I", 16) + b"\x00" * 8 + directory + b"\x00" * 4


def gif_with_a_large_frame() -> bytes:
    """A GIF whose screen is 40 x 32 pixels and whose first frame claims 60000 x 60000."""
    data = bytearray(encode(noise(mode="P"), "GIF"))
    where = data.index(b"\x2c\x00\x00\x00\x00" + struct.pack("<HH", 40, 32)) + 5
    data[where : where + 4] = struct.pack("<HH", 60_000, 60_000)
    return bytes(data)


def transparent() -> bytes:
    image = noise().convert("RGBA")
    image.putalpha(0)
    return encode(image)


def rotated(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(noise(), "JPEG", exif=exif)


def animated(kind: str) -> bytes:
    return encode(noise(), kind, save_all=True, append_images=[Image.new("RGB", (40, 32), "red")] * 3)


def loop(path: Path) -> None:
    path.symlink_to(path.name)


_LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
_MESSAGE_BOMB = chunk(b"zTXt", b"comment\x00\x00" + zlib.compress(b"a" * (80 << 20), 9))
_PROFILE_BOMB = chunk(b"iCCP", b"profile\x00\x00" + zlib.compress(b"\x00" * (80 << 20), 9))
_PIXELS = chunk(b"IDAT", zlib.compress((b"\x00" + b"\x07\x80\xf0" * 40) * 32))


def _bytes(data: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data)


def bad_images() -> list[BadImage]:
    """All images that must be refused."""
    jpeg, whole = encode(noise(), "JPEG"), encode(noise())
    wrong_crc = bytearray(whole)
    wrong_crc[29] ^= 0xFF
    contents: dict[str, tuple[bytes, str]] = {
        "an empty file": (b"", "the file is empty (0 bytes)"),
        "an error page instead of an image": (b"<html><body>404 Not Found</body></html>", "not an image: an HTML page"),
        "random bytes": (np.random.default_rng(3).bytes(4096), "not an image"),
        "a JPEG cut off in the middle": (jpeg[: len(jpeg) // 2], "damaged or cut off"),
        "a PNG cut off in the middle": (whole[: len(whole) // 2], "damaged or cut off"),
        "a WebP cut off in the middle": (encode(noise(), "WEBP")[:200], "damaged or cut off"),
        "an AVIF cut off in the middle": (encode(noise(), "AVIF")[:300], "damaged or cut off"),
        "a TIFF cut off in the middle": (encode(noise(), "TIFF")[:900], "damaged or cut off"),
        "a GIF cut off in the middle": (encode(noise(mode="P"), "GIF")[:900], "damaged or cut off"),
        "a BMP cut off in the middle": (encode(noise(), "BMP")[:900], "damaged or cut off"),
        "eight bytes of a PNG": (whole[:8], "its header cannot be read"),
        "a PNG whose header has a wrong checksum": (bytes(wrong_crc), "its header cannot be read"),
        "a PNG whose pixels do not inflate": (png(40, 32, chunk(b"IDAT", b"not deflated")), "damaged or cut off"),
        "a PNG without pixels": (png(40, 32, chunk(b"IDAT", b"")), "damaged or cut off"),
        "a PNG of zero width": (png(0, 32, _PIXELS), "its header cannot be read"),
        "a palette PNG without its palette": (png(40, 32, _PIXELS, color=3, depth=8), "damaged or cut off"),
        "a bomb: a PNG that claims 20000 x 20000": (png(20_000, 20_000, _PIXELS), "pixels"),
        "a bomb: a PNG that claims 2147483647 x 2147483647": (png(2**31 - 1, 2**31 - 1, _PIXELS), "pixels"),
        "a bomb: a TIFF that claims 60000 x 60000": (tiff_claiming(60_000, 60_000), "pixels"),
        "a bomb: a GIF whose frame claims 60000 x 60000": (gif_with_a_large_frame(), "pixels"),
        "a bomb: a PNG whose comment inflates to 80 MiB": (png(40, 32, _MESSAGE_BOMB, _PIXELS), "damaged or cut off"),
        "a bomb: a PNG whose color profile inflates to 80 MiB": (
            png(40, 32, _PROFILE_BOMB, _PIXELS),
            "damaged or cut off",
        ),
        "one pixel": (encode(Image.new("RGB", (1, 1))), "1 x 1 pixels: a side is shorter than 8"),
        "a strip of 1:100": (encode(noise(8, 800)), "one side is more than 8 times the other"),
        "more pixels than the spec allows": (encode(Image.new("L", (2100, 2100))), "the limit is 4000000 pixels"),
        "more bytes than the spec allows": (whole + b"\x00" * (1 << 20), "more than 1048576 bytes"),
        "32-bit floating-point pixels": (encode(Image.new("F", (40, 32)), "TIFF"), "no agreed white"),
        "32-bit integer pixels": (encode(Image.new("I", (40, 32)), "TIFF"), "no agreed white"),
        "a fully transparent image": (transparent(), "wholly transparent"),
        "an SVG": (b'<svg xmlns="http://www.w3.org/2000/svg" width="40" height="32"/>', "an SVG drawing is not read"),
        "a PDF": (encode(noise(), "PDF"), "not an image: a PDF document"),
        "an EPS, which a decoder would execute": (encode(noise(), "EPS"), "not an image: a PostScript document"),
        "a PPM, an unsupported format": (encode(noise(), "PPM"), "(PPM) is not read"),
        "a Git LFS pointer": (_LFS_POINTER, "not an image: a Git LFS pointer"),
        "a .DS_Store": (b"\0\0\0\x01Bud1" + bytes(99), "a .DS_Store file of macOS"),
        "a ._ file of macOS": (b"\0\x05\x16\x07\0\x02\0\0" + bytes(99), "an AppleDouble file"),
        "JPEG XL": (b"\xff\x0a" + bytes(50), "JPEG XL is not read"),
        "base64 text of a JPEG": (base64.b64encode(jpeg), "base64 text of an image"),
        "a ZIP archive": (b"PK\x03\x04" + bytes(99), "a ZIP archive"),
        "a video": (b"\0\0\0\x18ftypisom" + bytes(99), "a video"),
        "zero bytes": (bytes(4096), "nothing but zero bytes"),
        "a JPEG without its end marker": (jpeg[:-2], "references.truncated: accept"),
    }
    cases = [BadImage(name, _bytes(data), expected) for name, (data, expected) in contents.items()]
    locations = [
        BadImage("a missing file", lambda path: None, "there is no such file"),
        BadImage("a folder", Path.mkdir, "it is a folder"),
        BadImage("a named pipe", os.mkfifo, "neither a file nor a folder"),
        BadImage("a symbolic link to itself", loop, "symbolic links"),
        BadImage("a file name of 5000 characters", lambda path: None, "File name too long", uri="x" * 5000),
        BadImage("a scheme that is not allowed", lambda path: None, "not fetched from ftp://", uri="ftp://host/a.png"),
        BadImage("a chain of schemes", lambda path: None, "not fetched from zip://", uri="zip://a.png::file:///x.zip"),
        BadImage("a store whose package is not installed", lambda path: None, "not installed", uri="gs://bucket/a.png"),
        BadImage("embedded bytes that are not an image", _bytes(b"junk"), "not an image", embedded=True),
        BadImage("embedded bytes that are empty", _bytes(b""), "the file is empty", embedded=True),
    ]
    return [*cases, *locations]


def odd_images() -> list[BadImage]:
    """All unusual images that are accepted."""
    gray = np.linspace(0, 65535, 40 * 32).reshape(32, 40).astype(np.uint16)
    wide = png(40, 32, chunk(b"IDAT", zlib.compress((b"\x00" + b"\x07\x80\xf0\x0f\x33\x99" * 40) * 32)), depth=16)
    contents = {
        "CMYK": encode(noise(mode="CMYK"), "JPEG"),
        "16-bit gray": encode(Image.fromarray(gray)),
        "16 bits a channel": wide,
        "rotated by EXIF": rotated(6),
        "an invalid EXIF orientation": rotated(77),
        "an animated GIF": animated("GIF"),
        "an animated WebP": animated("WEBP"),
        "a palette": encode(noise().quantize(16)),
        "black and white": encode(noise(mode="1")),
        "half transparent": encode(noise().convert("RGBA")),
        "bytes after the end": encode(noise()) + b"appended",
        "a wrong file extension": encode(noise(), "JPEG"),
        "12-bit data in 16 bits": encode(Image.fromarray(gray // 16)),
        "EXIF that is cut off": encode(noise(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12\0\x03"),
        "one flat color": encode(Image.new("RGB", (40, 32), "red")),
    }
    return [BadImage(name, _bytes(data)) for name, data in contents.items()]
