"""What a file is that was given as an image and is none that can be read: its name, and what to do about it."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass

from .decoding import FORMATS, available_formats, format_of

_AS_PICTURE = "export the picture as JPEG or PNG"
_LEAVE_OUT = "leave it out of reference_images"
_UNPACK = "unpack it, and name the pictures in it"
_FRAME = "export single frames as JPEG or PNG"
_PAGE = "export the page as JPEG or PNG"
_RAW = "develop it, and export the picture as JPEG or PNG"
_ADDRESS = "give the address of the image itself, and open it in a browser without a login to see what comes"

_LFS = re.compile(rb"version https://(git-lfs\.github\.com|hawser\.github\.com)/spec/")
_BASE64 = re.compile(rb"[A-Za-z0-9+/_-]{16,}={0,2}")
_DATA_URI = re.compile(rb"data:[\w/+.;=-]*,", re.IGNORECASE)
_MARKUP = re.compile(rb"<(!doctype|html|head|body|script|\?xml|svg|error|[a-z][a-z0-9]*[ >/])", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class FileKind:
    """A kind of file.

    Attributes:
        name: such as "a Git LFS pointer".
        fix: what to do to have an image.
        is_image: it is one, of a format that is not read here.
    """

    name: str
    fix: str
    is_image: bool = False


_SIGNATURES: tuple[tuple[int, bytes, FileKind], ...] = (
    (0, b"\0\0\0\x01Bud1", FileKind("a .DS_Store file of macOS", _LEAVE_OUT)),
    (0, b"\0\x05\x16\x07", FileKind("an AppleDouble file (._…) of macOS, which holds no picture", _LEAVE_OUT)),
    (0, b"\0\x05\x16\0", FileKind("an AppleSingle file of macOS", _AS_PICTURE)),
    (0, b"book\0\0\0\0mark", FileKind("an alias of macOS", "give the file that it points to")),
    (0, b"bplist00", FileKind("a property list of macOS, such as an iCloud placeholder", "download the picture first")),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", FileKind("a Thumbs.db or an old Office document", _LEAVE_OUT)),
    (0, b"[.ShellClassInfo]", FileKind("a desktop.ini of Windows", _LEAVE_OUT)),
    (0, b"\xff\x0a", FileKind("JPEG XL", _AS_PICTURE, is_image=True)),
    (0, b"\0\0\0\x0cJXL \r\n\x87\n", FileKind("JPEG XL", _AS_PICTURE, is_image=True)),
    (0, b"\0\0\0\x0cjP  \r\n\x87\n", FileKind("JPEG 2000", _AS_PICTURE, is_image=True)),
    (0, b"\xff\x4f\xff\x51", FileKind("JPEG 2000", _AS_PICTURE, is_image=True)),
    (0, b"8BPS", FileKind("a Photoshop document", _AS_PICTURE, is_image=True)),
    (0, b"gimp xcf", FileKind("a GIMP document", _AS_PICTURE, is_image=True)),
    (0, b"\0\0\x01\0", FileKind("an icon (ICO)", _AS_PICTURE, is_image=True)),
    (0, b"v/1\x01", FileKind("OpenEXR", _AS_PICTURE, is_image=True)),
    (0, b"#?RADIANCE", FileKind("Radiance HDR", _AS_PICTURE, is_image=True)),
    (0, b"qoif", FileKind("QOI", _AS_PICTURE, is_image=True)),
    (0, b"DDS ", FileKind("a DDS texture", _AS_PICTURE, is_image=True)),
    (0, b"\xabKTX ", FileKind("a KTX texture", _AS_PICTURE, is_image=True)),
    (0, b"FUJIFILMCCD-RAW", FileKind("a camera's raw file", _RAW, is_image=True)),
    (0, b"IIU\0", FileKind("a camera's raw file", _RAW, is_image=True)),
    (0, b"IIRO", FileKind("a camera's raw file", _RAW, is_image=True)),
    (0, b"FOVb", FileKind("a camera's raw file", _RAW, is_image=True)),
    (128, b"DICM", FileKind("DICOM", _AS_PICTURE, is_image=True)),
    (0, b"SIMPLE  =", FileKind("FITS", _AS_PICTURE, is_image=True)),
    (0, b"%PDF", FileKind("a PDF document", _PAGE)),
    (0, b"%!PS", FileKind("a PostScript document", _PAGE)),
    (0, b"\xc5\xd0\xd3\xc6", FileKind("a PostScript document", _PAGE)),
    (0, b"PK\x03\x04", FileKind("a ZIP archive", _UNPACK)),
    (0, b"PK\x05\x06", FileKind("an empty ZIP archive", _UNPACK)),
    (0, b"\x1f\x8b", FileKind("a gzip file", _UNPACK)),
    (0, b"BZh", FileKind("a bzip2 file", _UNPACK)),
    (0, b"\xfd7zXZ\0", FileKind("an xz file", _UNPACK)),
    (0, b"\x28\xb5\x2f\xfd", FileKind("a Zstandard file", _UNPACK)),
    (0, b"7z\xbc\xaf\x27\x1c", FileKind("a 7-Zip archive", _UNPACK)),
    (0, b"Rar!\x1a\x07", FileKind("a RAR archive", _UNPACK)),
    (257, b"ustar", FileKind("a tar archive", _UNPACK)),
    (0, b"\x1a\x45\xdf\xa3", FileKind("a video (WebM or Matroska)", _FRAME)),
    (0, b"\0\0\x01\xba", FileKind("a video (MPEG)", _FRAME)),
    (0, b"\0\0\x01\xb3", FileKind("a video (MPEG)", _FRAME)),
    (0, b"FLV\x01", FileKind("a video (Flash)", _FRAME)),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", FileKind("a video (Windows Media)", _FRAME)),
    (8, b"AVI ", FileKind("a video (AVI)", _FRAME)),
    (8, b"WAVE", FileKind("a sound file", _LEAVE_OUT)),
    (0, b"ID3", FileKind("a sound file", _LEAVE_OUT)),
    (0, b"PAR1", FileKind("a Parquet file", "give the pictures, or embed them as struct<bytes, path>")),
    (0, b"\x93NUMPY", FileKind("a NumPy array", "save it as PNG")),
    (0, b"\x7fELF", FileKind("a program", _LEAVE_OUT)),
    (0, b"P4\n", FileKind("a Netpbm image (PBM)", _AS_PICTURE, is_image=True)),
    (0, b"P5\n", FileKind("a Netpbm image (PGM)", _AS_PICTURE, is_image=True)),
    (0, b"P6\n", FileKind("a Netpbm image (PPM)", _AS_PICTURE, is_image=True)),
    (0, b"P6 ", FileKind("a Netpbm image (PPM)", _AS_PICTURE, is_image=True)),
)  # fmt: skip

_HEIC_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"})
_VIDEO_BRANDS = (b"isom", b"iso2", b"iso4", b"iso5", b"iso6", b"mp4", b"avc1", b"qt", b"M4V", b"3g", b"dash", b"MSNV")


def kind_of(data: bytes) -> FileKind | None:
    """What a file is by its first bytes; None: not known."""
    if data[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free") and (found := _of_media_container(data)):
        return found
    for offset, signature, kind in _SIGNATURES:
        if data.startswith(signature, offset):
            return kind
    if not data.strip(b"\0"):
        return FileKind("nothing but zero bytes", "upload it again")
    return _of_text(data)


def _of_media_container(data: bytes) -> FileKind | None:
    """Files of boxes, whose first one lists brands: HEIC, AVIF, videos."""
    if data[4:8] != b"ftyp":
        return FileKind("a video (QuickTime)", _FRAME)
    end = min(int.from_bytes(data[:4], "big"), 256)
    brands = [data[8:12], *(data[at : at + 4] for at in range(16, end, 4))]
    if b"avif" in brands or b"avis" in brands:
        fix = f"install Pillow 11.3 or newer, or {_AS_PICTURE}"
        return FileKind("AVIF", fix, is_image=True) if "AVIF" not in available_formats() else None
    if _HEIC_BRANDS & set(brands) or brands[0] in (b"mif1", b"msf1"):
        if "HEIF" in available_formats():
            return None
        fix = f"install persres-batch[heic] where persres-batch runs, or {_AS_PICTURE}"
        return FileKind("HEIC, which needs the package pillow-heif", fix, is_image=True)
    if brands[0].startswith(b"crx "):
        return FileKind("a camera's raw file", _RAW, is_image=True)
    if brands[0].lstrip().startswith(_VIDEO_BRANDS):
        return FileKind("a video (MP4 or QuickTime)", _FRAME)
    return None


def _of_text(data: bytes) -> FileKind | None:
    head = data[:4096].removeprefix(b"\xef\xbb\xbf").lstrip()
    if _LFS.match(head):
        return FileKind("a Git LFS pointer in place of the image", "run `git lfs pull` where it was cloned")
    if _DATA_URI.match(head) or _is_base64_of_image(head):
        return FileKind("base64 text of an image", "decode it to a file, for example with base64 -d")
    if _MARKUP.match(head):
        return _of_markup(head)
    if head[:1] in (b"{", b"["):
        return FileKind(f"text (JSON): {_quoted(head)}", _ADDRESS)
    is_text = bool(head) and all(byte >= 32 or byte in (9, 10, 13) for byte in head[:64]) and _is_utf8(head)
    return FileKind(f"text: {_quoted(head)}", "give an image file") if is_text else None


def _of_markup(head: bytes) -> FileKind:
    lowered = head.lower()
    if b"<svg" in lowered:
        return FileKind("an SVG drawing", "render it as PNG", is_image=True)
    if b"<html" in lowered or b"<!doctype html" in lowered or b"<head" in lowered or b"<body" in lowered:
        return FileKind("an HTML page, as web servers send for errors and logins", _ADDRESS)
    code = re.search(rb"<Code>(\w+)</Code>", head)
    if code:
        return FileKind(f"an error message of an object store ({code[1].decode()})", _ADDRESS)
    return FileKind(f"a text of HTML or XML: {_quoted(head)}", _ADDRESS)


def _is_base64_of_image(head: bytes) -> bool:
    joined = head.replace(b"\r", b"").replace(b"\n", b"").rstrip()
    if not _BASE64.fullmatch(joined):
        return False
    whole = joined[: min(len(joined.rstrip(b"=")), 256) // 4 * 4]
    try:
        decoded = base64.b64decode(whole.replace(b"-", b"+").replace(b"_", b"/"), validate=True)
    except binascii.Error:
        return False
    return format_of(decoded) is not None


def _is_utf8(head: bytes) -> bool:
    try:
        head[:4000].decode("utf-8")
    except UnicodeDecodeError as error:
        return error.end >= len(head[:4000])  # a letter that was cut in two
    return True


def _quoted(head: bytes) -> str:
    return repr(head[:40].decode("utf-8", errors="replace"))


KNOWN_FORMATS = ", ".join(name for name in FORMATS if name != "HEIF")
"""For messages."""
