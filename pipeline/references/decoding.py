"""Decode untrusted image files to RGB pixels: upright, sRGB, without transparency, and of limited size."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from io import BytesIO
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

from ...core.errors import ConceptError
from ...core.images.decoding import TooManyPixels, format_of, open_image
from ...core.images.file_kinds import KNOWN_FORMATS, kind_of

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
_PHOTOMETRIC_TAG = 0x0106
_PROFILE_SPACE = {"RGB": "RGB", "CMYK": "CMYK", "L": "GRAY"}


_DEPTHS = (8, 10, 12, 14)  # of samples that are stored in 16 bits without being scaled to them
_END_OF_JPEG = b"\xff\xd9"
_FLAT = 8  # of 255: a difference that nobody sees


@dataclass(frozen=True, slots=True, eq=False)
class DecodedImage:
    """A decoded image.

    Attributes:
        pixels: uint8 [H, W, 3], sRGB.
        notes: remarks for the user on how it was read.
        has_transparency: some of its pixels were transparent, and show `matte_color`.
    """

    pixels: np.ndarray
    notes: tuple[str, ...] = ()
    has_transparency: bool = False


@dataclass(frozen=True, slots=True)
class _Limits:
    """The arguments of `decode_image`."""

    max_pixels: int
    min_side: int
    max_aspect_ratio: float
    matte_color: str


@dataclass(slots=True)
class _Remarks:
    """What is noticed while an image is decoded."""

    notes: list[str] = field(default_factory=list)
    has_transparency: bool = False


def refused(reason: str, fix: str) -> ConceptError:
    """The error for an image that cannot be used; the caller adds the concept and the image."""
    return ConceptError(reason, stage="load", fix=fix)


def decode_image(
    data: bytes,
    *,
    max_pixels: int,
    min_side: int,
    max_aspect_ratio: float,
    matte_color: str,
    truncated: Literal["fail", "accept"] = "fail",
) -> DecodedImage:
    """Decode one image.

    The size is checked in the header, before decoding. EXIF orientation is applied, an embedded colour profile is
    converted to sRGB, 16-bit grey is scaled to 8 bits, transparent pixels are composited over `matte_color`, and only
    the first of several frames is read. The image is not resized. EXIF that cannot be read counts as none.

    Args:
        truncated: accept: a JPEG that ends before its end marker is read; what is missing of it is grey.

    Raises:
        ConceptError: the data is no image, is damaged or cut off, or exceeds the limits.
    """
    if not data:
        raise refused("the file is empty (0 bytes)", "upload it again")
    limits = _Limits(max_pixels, min_side, max_aspect_ratio, matte_color)
    is_open_jpeg = format_of(data) == "JPEG" and _END_OF_JPEG not in data[-64:]
    try:
        return _decode(data, limits)
    except (ConceptError, MemoryError):
        raise
    except TooManyPixels as error:
        raise _too_large(f"{error.size[0]} x {error.size[1]} pixels", max_pixels) from None
    except UnidentifiedImageError:
        raise _unidentified(data) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_large("the header declares more pixels than any picture has", max_pixels) from None
    except Exception as error:  # decoders of damaged bytes raise nearly every kind of exception
        if is_open_jpeg and truncated == "accept":
            return _decode_cut_off(data, limits)
        raise _damaged(str(error) or type(error).__name__, may_be_accepted=is_open_jpeg) from error


def hidden_by(image: DecodedImage) -> tuple[str, str] | None:
    """Why nothing can be seen in an image, and the fix; None: something can."""
    pixels = image.pixels.reshape(-1, 3)
    low, high = pixels.min(0), pixels.max(0)
    if np.any(high.astype(int) - low > _FLAT):
        return None
    color = "#" + "".join(f"{value:02x}" for value in ((low.astype(int) + high) // 2))
    reason = f"nothing can be seen in it: all of its pixels are {color}"
    if image.has_transparency:
        return (
            f"{reason}, as is what shows through where it is transparent",
            "set references.matte_color in the run spec to a colour that sets it off",
        )
    return reason, "give another picture"


def _decode(data: bytes, limits: _Limits) -> DecodedImage:
    with open_image(data, max_pixels=limits.max_pixels) as image:
        _check_size(image.size, limits.max_pixels, limits.min_side, limits.max_aspect_ratio)
        remarks = _Remarks(_notes(image))
        has_16_bits = ";16" in str(getattr(image, "tile", ""))
        _load(image)
        _check_size(image.size, limits.max_pixels, limits.min_side, limits.max_aspect_ratio)
        if has_16_bits and image.mode.startswith("RGB"):
            _check_white(image)
        pixels = _to_rgb(_upright(image), limits.matte_color, remarks)
        return DecodedImage(pixels, tuple(remarks.notes), remarks.has_transparency)


def _decode_cut_off(data: bytes, limits: _Limits) -> DecodedImage:
    try:
        image = _decode(data + _END_OF_JPEG, limits)
    except (ConceptError, MemoryError):
        raise
    except Exception as error:  # as in `decode_image`
        raise _damaged(str(error) or type(error).__name__) from error
    note = "it ends before its end marker and is read all the same (references.truncated: accept)"
    return replace(image, notes=(*image.notes, note))


def _load(image: Image.Image) -> None:
    try:
        image.load()
    except Exception:
        pixels_are_there = image.format == "TIFF" and not getattr(image, "tile", True)
        if not pixels_are_there:
            raise
        # The plugin for TIFF reads its EXIF once all pixels are decoded, and what it cannot read counts as none.


def _unidentified(data: bytes) -> ConceptError:
    """Distinguish a file of another kind from one with a broken header, for which Pillow raises the same error."""
    begins_as = format_of(data)
    if begins_as is not None:
        name = "HEIC" if begins_as == "HEIF" else begins_as
        return _damaged(f"it begins as {name} does, but its header cannot be read")
    kind = kind_of(data)
    if kind is None:
        return refused(f"not an image: it begins with {data[:12]!r}", f"save it as one of {KNOWN_FORMATS}")
    return refused(f"{kind.name} is not read" if kind.is_image else f"not an image: {kind.name}", kind.fix)


def _damaged(reason: str, *, may_be_accepted: bool = False) -> ConceptError:
    fix = "open it in an image editor and save it again, or upload it again"
    if may_be_accepted:
        fix += ", or set references.truncated: accept in the run spec"
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


def _notes(image: Image.Image) -> list[str]:
    # Phones store a depth or gain map as the second frame of a JPEG (MPO), which is no animation.
    if image.format != "MPO" and getattr(image, "is_animated", False):
        return ["it has several frames; only the first is used"]
    return []


def _upright(image: Image.Image) -> Image.Image:
    try:
        transposition = _UPRIGHT.get(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # damaged EXIF raises nearly every kind of exception
        transposition = None
    return image if transposition is None else image.transpose(transposition)


def _to_rgb(image: Image.Image, matte_color: str, remarks: _Remarks) -> np.ndarray:
    if image.mode.startswith("I;16"):
        return _from_16_bit_gray(image, remarks)
    if image.mode in ("I", "F"):
        raise refused(f"32-bit pixels (mode {image.mode}) have no agreed white", "save it with 8 or 16 bits a channel")
    if image.has_transparency_data:
        with_alpha = image.convert("RGBA")
        least, most = with_alpha.getchannel("A").getextrema()
        if most == 0:
            raise refused("the picture is wholly transparent", "export it with its picture visible")
        remarks.has_transparency = least < 255  # pyright: ignore[reportOperatorIssue]
        matte = Image.new("RGB", image.size, matte_color)
        image = Image.composite(_to_srgb(with_alpha.convert("RGB")), matte, with_alpha.getchannel("A"))
    else:
        image = _to_srgb(image)
    return np.array(image, dtype=np.uint8)


def _from_16_bit_gray(image: Image.Image, remarks: _Remarks) -> np.ndarray:
    """uint16 [H, W] -> uint8 [H, W, 3]; Pillow's own conversion clips at 255, which turns a photo white.

    Cameras and microscopes store 10, 12 or 14 bits in 16 without scaling them: white is then the largest value of the
    least depth that holds all of the image's values.
    """
    gray = np.asarray(image).astype(np.uint32)
    white_is_zero = getattr(image, "tag_v2", {}).get(_PHOTOMETRIC_TAG) == 0  # Pillow inverts this for 8 bits alone
    highest = int(gray.max())
    depth = next((depth for depth in _DEPTHS if highest < 1 << depth), 16)
    white = (1 << depth) - 1
    if depth < 16 and highest:
        remarks.notes.append(
            f"its 16-bit values end at {highest}: taken for {depth}-bit data, in which {white} is white"
        )
    if white_is_zero:
        gray = white - gray
    scaled = ((gray * 255 + white // 2) // white).astype(np.uint8)
    return np.repeat(scaled[:, :, None], 3, axis=2)


def _check_white(image: Image.Image) -> None:
    """Refuse colour of 16 bits a channel whose values all lie below 4096; Pillow keeps their upper 8 bits alone."""
    highest = max(image.getchannel(band).getextrema()[1] for band in "RGB")  # pyright: ignore[reportIndexIssue]
    if highest < 16:  # pyright: ignore[reportOperatorIssue]
        raise refused(
            "16 bits a channel, but no value is above 4095: data of 12 bits or fewer that was not scaled",
            "multiply its values so that white is 65535, or save it with 8 bits a channel",
        )


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
