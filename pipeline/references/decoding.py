"""Decode untrusted image files to RGB pixels: upright, sRGB, without transparency, and of limited size."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

from ...core.errors import ConceptError

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "TIFF", "BMP")

# EXIF orientation -> the transposition that makes the image upright. ImageOps.exif_transpose also rewrites the EXIF
# block, and fails on photos with unusual EXIF.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION_TAG = 0x0112
_PROFILE_SPACE = {"RGB": "RGB", "CMYK": "CMYK", "L": "GRAY"}


@dataclass(frozen=True, slots=True, eq=False)
class DecodedImage:
    """A decoded image.

    Attributes:
        pixels: uint8 [H, W, 3], sRGB.
        notes: remarks for the user on how it was read.
    """

    pixels: np.ndarray
    notes: tuple[str, ...] = ()


def refused(reason: str, fix: str) -> ConceptError:
    """The error for an image that cannot be used; the caller adds the concept and the image."""
    return ConceptError(reason, stage="load", fix=fix)


def decode_image(
    data: bytes, *, max_pixels: int, min_side: int, max_aspect_ratio: float, matte_color: str
) -> DecodedImage:
    """Decode one image.

    The size is checked in the header, before decoding. EXIF orientation is applied, an embedded colour profile is
    converted to sRGB, 16-bit grey is scaled to 8 bits, transparent pixels are composited over `matte_color`, and only
    the first of several frames is read. The image is not resized.

    Raises:
        ConceptError: the data is no image, is damaged or cut off, or exceeds the limits.
    """
    if not data:
        raise refused("the file is empty (0 bytes)", "upload it again")
    try:
        with Image.open(BytesIO(data), formats=_available_formats()) as image:
            _check_size(image.size, max_pixels, min_side, max_aspect_ratio)
            notes = _notes(image)
            image.load()
            return DecodedImage(_to_rgb(_upright(image), matte_color), notes)
    except (ConceptError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise _unidentified(data) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_large("the header declares more pixels than any picture has", max_pixels) from None
    except Exception as error:  # decoders of damaged bytes raise nearly every kind of exception
        raise _damaged(str(error) or type(error).__name__) from error


@functools.cache
def _available_formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _unidentified(data: bytes) -> ConceptError:
    """Distinguish a file of another kind from one with a broken header, for which Pillow raises the same error."""
    for name in _available_formats():
        accept = Image.OPEN[name][1]
        if accept is not None and accept(data[:16]) is True:
            return _damaged(f"it begins as {name} does, but its header cannot be read")
    known = ", ".join(FORMATS)
    return refused(f"not an image: it begins with {data[:12]!r}", f"save it as one of {known}")


def _damaged(reason: str) -> ConceptError:
    fix = "open it in an image editor and save it again, or upload it again"
    return refused(f"the image is damaged or cut off: {reason}", fix)


def _check_size(image_size: tuple[int, int], max_pixels: int, min_side: int, max_aspect_ratio: float) -> None:
    width, height = image_size
    size = f"{width} x {height} pixels"
    if width * height > max_pixels:
        raise _too_large(size, max_pixels)
    if min(width, height) < min_side:
        fix = "use a larger picture, or lower references.min_side in the run spec"
        raise refused(f"{size}: a side is shorter than {min_side}", fix)
    if max(width, height) > max_aspect_ratio * min(width, height):
        fix = "crop it around the concept, or raise references.max_aspect_ratio in the run spec"
        raise refused(f"{size}: one side is more than {max_aspect_ratio:g} times the other", fix)


def _too_large(size: str, max_pixels: int) -> ConceptError:
    fix = "reduce it; models see a fraction of that, or raise references.max_pixels in the run spec"
    return refused(f"{size}: the limit is {max_pixels} pixels in all", fix)


def _notes(image: Image.Image) -> tuple[str, ...]:
    # Phones store a depth or gain map as the second frame of a JPEG (MPO), which is no animation.
    if image.format != "MPO" and getattr(image, "is_animated", False):
        return ("it has several frames; only the first is used",)
    return ()


def _upright(image: Image.Image) -> Image.Image:
    transposition = _UPRIGHT.get(image.getexif().get(_ORIENTATION_TAG, 1))
    return image if transposition is None else image.transpose(transposition)


def _to_rgb(image: Image.Image, matte_color: str) -> np.ndarray:
    if image.mode.startswith("I;16"):
        return _from_16_bit_gray(np.asarray(image))
    if image.mode in ("I", "F"):
        raise refused(f"32-bit pixels (mode {image.mode}) have no agreed white", "save it with 8 or 16 bits a channel")
    if image.has_transparency_data:
        with_alpha = image.convert("RGBA")
        if with_alpha.getchannel("A").getextrema()[1] == 0:
            raise refused("the picture is wholly transparent", "export it with its picture visible")
        matte = Image.new("RGB", image.size, matte_color)
        image = Image.composite(_to_srgb(with_alpha.convert("RGB")), matte, with_alpha.getchannel("A"))
    else:
        image = _to_srgb(image)
    return np.array(image, dtype=np.uint8)


def _from_16_bit_gray(gray: np.ndarray) -> np.ndarray:
    """uint16 [H, W] -> uint8 [H, W, 3]; Pillow's own conversion clips at 255, which turns a photo white."""
    scaled = ((gray.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    return np.repeat(scaled[:, :, None], 3, axis=2)


def _to_srgb(image: Image.Image) -> Image.Image:
    if image.mode in ("P", "1"):
        image = image.convert("RGB")
    profile = image.info.get("icc_profile")
    if profile and image.mode in _PROFILE_SPACE:
        try:
            source: Any = ImageCms.ImageCmsProfile(BytesIO(profile))
            if source.profile.xcolor_space.strip() == _PROFILE_SPACE[image.mode]:
                converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
                if converted is not None:
                    return converted
        except (ImageCms.PyCMSError, OSError):
            pass  # a broken profile is ignored
    return image.convert("RGB")
