from __future__ import annotations

import struct
import warnings
import zlib
from io import BytesIO
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from persres.core.errors import ConceptError
from persres.pipeline.references.decoding import decode_image


def decode(data: bytes, **limits: Any) -> np.ndarray:
    return decoded(data, **limits).pixels


def decoded(
    data: bytes, *, max_pixels: int = 10_000, min_side: int = 4, aspect: float = 8, matte: str = "white", **more: Any
):
    return decode_image(
        data, max_pixels=max_pixels, min_side=min_side, max_aspect_ratio=aspect, matte_color=matte, **more
    )


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def quarters(mode: str = "RGB") -> Image.Image:
    """40 x 20: red, green over blue, gray; every turn and flip of it looks different."""
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:10, :20], pixels[:10, 20:], pixels[10:, :20], pixels[10:, 20:] = (
        (250, 10, 10),
        (10, 250, 10),
        (10, 10, 250),
        (128, 128, 128),
    )
    return Image.fromarray(pixels).convert(mode)


def png_claiming(width: int, height: int) -> bytes:
    """A PNG whose header claims a size and whose pixel data is not there at all."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF", "WEBP", "JPEG", "AVIF"])
def test_decode_image_gives_rgb_for_common_formats(kind):
    pixels = decode(encode(quarters(), kind, **({"lossless": True} if kind == "WEBP" else {"quality": 95})))

    assert (pixels.shape, pixels.dtype) == ((20, 40, 3), np.uint8)
    corners = pixels[4, 4], pixels[4, 35], pixels[15, 4], pixels[15, 35]
    np.testing.assert_allclose(corners, [(250, 10, 10), (10, 250, 10), (10, 10, 250), (128, 128, 128)], atol=12)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK"])
def test_decode_image_reads_every_color_mode_as_pillow_does(mode):
    image = quarters(mode) if mode != "LA" else quarters("L").convert("LA")
    kind = "TIFF" if mode == "CMYK" else "PNG"

    np.testing.assert_allclose(decode(encode(image, kind)), np.asarray(image.convert("RGB")), atol=1)


def test_decode_image_does_not_invert_a_cmyk_jpeg():
    pixels = decode(encode(quarters("CMYK"), "JPEG", quality=95))

    np.testing.assert_allclose(pixels[4, 4], (250, 10, 10), atol=12)


def test_decode_image_scales_16_bit_gray():
    gray = np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)

    for data in (encode(Image.fromarray(gray)), encode(Image.fromarray(gray), "TIFF")):
        pixels = decode(data)
        np.testing.assert_array_equal(pixels[..., 0], np.round(gray / 257).astype(np.uint8))
        np.testing.assert_array_equal(pixels[..., 0], pixels[..., 2])


def test_transparency_is_composited_over_the_matte_color():
    image = quarters("RGBA")
    alpha = Image.new("L", image.size, 255)
    alpha.paste(0, (0, 0, 20, 10))
    image.putalpha(alpha)

    assert tuple(decode(encode(image))[4, 4]) == (255, 255, 255)
    assert tuple(decode(encode(image), matte="#102030")[4, 4]) == (16, 32, 48)
    assert tuple(decode(encode(image))[4, 35]) == (10, 250, 10)


def test_transparent_palette_entry_is_composited_over_the_matte_color():
    palette = quarters().quantize(4)
    index = palette.getpixel((4, 4))

    assert tuple(decode(encode(palette, transparency=index), matte="black")[4, 4]) == (0, 0, 0)
    assert tuple(decode(encode(quarters(), transparency=(250, 10, 10)), matte="black")[4, 4]) == (0, 0, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(kind, orientation):
    undo = {
        1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]  # fmt: skip
    stored = quarters() if undo is None else quarters().transpose(undo)
    exif = Image.Exif()
    exif[0x0112] = orientation

    pixels = decode(encode(stored, kind, exif=exif, quality=95))

    assert pixels.shape == (20, 40, 3)
    corners = pixels[4, 4], pixels[4, 35], pixels[15, 4], pixels[15, 35]
    np.testing.assert_allclose(corners, [(250, 10, 10), (10, 250, 10), (10, 10, 250), (128, 128, 128)], atol=12)


BROKEN_EXIF = [
    b"Exif\x00\x00II*\x00\xff\xff\xff\x7f",
    b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12\0\x03",  # cut off within its first entry
    b"Exif\0\0junk junk junk",
    b"Exif\0\0",
    b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x08\0\0\0\x08",  # an orientation that is a text
]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("exif", BROKEN_EXIF)
def test_exif_that_cannot_be_read_counts_as_none(kind, exif):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels = decode(encode(quarters(), kind, exif=exif, quality=95))

    assert pixels.shape == (20, 40, 3)


def test_broken_exif_of_a_tiff_counts_as_none():
    data = encode(quarters(), "TIFF", tiffinfo={0x8769: 0x7FFFFFFF})

    np.testing.assert_array_equal(decode(data), np.asarray(quarters()))


def test_png_with_broken_exif_text_is_read():
    info = PngInfo()
    info.add_text("Raw profile type exif", "\nexif\n  8\nno hexadecimal digits")

    np.testing.assert_array_equal(decode(encode(quarters(), pnginfo=info)), np.asarray(quarters()))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("depth", [8, 10, 12, 14])
def test_data_of_fewer_bits_in_16_is_stretched(kind, depth):
    white = (1 << depth) - 1
    gray = np.linspace(0, white, 32 * 32).reshape(32, 32).astype(np.uint16)

    image = decoded(encode(Image.fromarray(gray), kind))

    np.testing.assert_array_equal(image.pixels[..., 0], np.round(gray / white * 255).astype(np.uint8))
    [note] = image.notes
    assert f"{depth}-bit" in note and str(white) in note


@pytest.mark.parametrize(("order", "color"), [(">", 2), ("<", 2)])
def test_unscaled_color_of_12_bits_is_refused(order, color):
    rng = np.random.default_rng(0)
    samples = rng.integers(0, 4096, (20, 20, 3))
    for white, is_refused in ((1, True), (16, False)):
        data = tiff_of_16_bits((samples * white).astype(f"{order}u2"))
        if is_refused:
            with pytest.raises(ConceptError, match="12 bits or fewer"):
                decode(data)
        else:
            np.testing.assert_allclose(decode(data), samples // 16, atol=1)


def tiff_of_16_bits(samples: np.ndarray) -> bytes:
    """A TIFF of uint16 [H, W, 3], uncompressed."""
    height, width, _ = samples.shape
    order = ">" if samples.dtype.byteorder == ">" else "<"
    pixels = samples.tobytes()
    bits_at = 8 + len(pixels)
    tags = [
        (256, 3, 1, width), (257, 3, 1, height), (258, 3, 3, bits_at), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, 8),
        (277, 3, 1, 3), (278, 3, 1, height), (279, 4, 1, len(pixels)), (284, 3, 1, 1),
    ]  # fmt: skip
    entries = b"".join(
        struct.pack(f"{order}HHI", tag, kind, count)
        + (struct.pack(f"{order}HH", value, 0) if kind == 3 and count == 1 else struct.pack(f"{order}I", value))
        for tag, kind, count, value in tags
    )
    start = (b"MM\0*" if order == ">" else b"II*\0") + struct.pack(f"{order}I", bits_at + 6)
    bits = struct.pack(f"{order}HHH", 16, 16, 16)
    return start + pixels + bits + struct.pack(f"{order}H", len(tags)) + entries + bytes(4)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_jpeg_without_its_end_is_read_where_the_setting_says_so(mode):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    whole = encode(Image.fromarray(noise).convert(mode), "JPEG", quality=95)

    with pytest.raises(ConceptError, match=r"cut off.*references.truncated: accept"):
        decode(whole[:-2])
    accepted = decoded(whole[:-2], truncated="accept")
    np.testing.assert_array_equal(accepted.pixels, decode(whole))
    assert "references.truncated" in accepted.notes[0]
    half = decoded(whole[: len(whole) // 2], truncated="accept").pixels
    np.testing.assert_array_equal(half[:8], decode(whole)[:8])
    assert decoded(whole, truncated="accept").notes == ()
    for data in (whole[:20], encode(quarters())[:-30]):
        with pytest.raises(ConceptError, match="damaged or cut off"):
            decode(data, truncated="accept")


def test_heic_is_read_where_its_package_is_installed():
    register_heif_opener = pytest.importorskip("pillow_heif").register_heif_opener
    register_heif_opener()
    pixels = decode(encode(quarters(), "HEIF", quality=95))

    assert pixels.shape == (20, 40, 3)
    np.testing.assert_allclose(pixels[4, 4], (250, 10, 10), atol=30)
    with pytest.raises(ConceptError, match="begins as HEIC does"):
        decode(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99))


def profile(space: Literal["LAB", "sRGB"]) -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile(space)).tobytes()


def test_embedded_color_profile_is_converted_to_srgb():
    srgb = profile("sRGB")
    red_for_green = srgb.replace(b"rXYZ", b"temp").replace(b"gXYZ", b"rXYZ").replace(b"temp", b"gXYZ")

    np.testing.assert_allclose(decode(encode(quarters(), icc_profile=srgb)), np.asarray(quarters()), atol=2)
    swapped = decode(encode(quarters(), icc_profile=red_for_green))
    np.testing.assert_allclose(swapped, np.asarray(quarters())[..., [1, 0, 2]], atol=2)


@pytest.mark.parametrize("useless", [b"no profile", profile("LAB")])
def test_color_profile_that_does_not_fit_is_ignored(useless):
    np.testing.assert_array_equal(decode(encode(quarters(), icc_profile=useless)), np.asarray(quarters()))


def test_animation_gives_its_first_frame_and_a_note():
    frames = [quarters(), Image.new("RGB", (40, 20), "black")]

    for kind in ("GIF", "PNG", "WEBP", "TIFF"):
        lossless = {"lossless": True} if kind == "WEBP" else {}
        image = decoded(encode(frames[0], kind, save_all=True, append_images=frames[1:], **lossless))
        np.testing.assert_allclose(image.pixels, np.asarray(frames[0]), atol=2)
        assert image.notes == ("it has several frames; only the first is used",)
    assert decoded(encode(quarters())).notes == ()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(b"", "empty (0 bytes)", id="nothing"),
        pytest.param(b"<html>404</html>", "not an image: an HTML page", id="html"),
        pytest.param(b"\x89PNG\r\n\x1a\n", "begins as PNG does", id="only a magic number"),
        pytest.param(png_claiming(20_000, 20_000), "declares more pixels", id="a PNG bomb"),
        pytest.param(png_claiming(9_000, 8_000), "9000 x 8000 pixels", id="a large PNG"),
        pytest.param(png_claiming(50, 50), "damaged or cut off", id="a PNG without pixels"),
        pytest.param(encode(Image.new("RGB", (1, 1))), "1 x 1 pixels", id="one pixel"),
        pytest.param(encode(Image.new("RGB", (8, 800))), "8 x 800 pixels", id="a strip"),
        pytest.param(encode(Image.fromarray(np.zeros((20, 20), np.float32)), "TIFF"), "mode F", id="float"),
        pytest.param(encode(Image.fromarray(np.zeros((20, 20), np.int32)), "TIFF"), "mode I", id="32 bits"),
        pytest.param(encode(quarters(), "PPM"), "Netpbm image (PPM) is not read", id="a format outside the list"),
        pytest.param(b"\x01\x02\x03junk", "begins with b'\\x01\\x02\\x03junk", id="anything"),
    ],
)
def test_refused_images_name_the_reason(data, reason):
    with pytest.raises(ConceptError) as caught:
        decode(data)

    assert reason in caught.value.message
    assert caught.value.fix and caught.value.stage == "load"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
def test_truncated_file_is_refused(kind, part):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    data = encode(Image.fromarray(noise), kind)

    with pytest.raises(ConceptError, match=r"cut off|not an image"):
        decode(data[: int(len(data) * part)])


def test_too_large_image_is_refused_by_its_header():
    # Decoding 400 million pixels would take seconds and a gigabyte; there are no pixels in this file to decode.
    with pytest.raises(ConceptError, match="pixels"):
        decode(png_claiming(20_000, 20_000), max_pixels=89_000_000)


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"]), st.data())
def test_damaged_bytes_decode_or_are_refused_but_never_crash(kind, data):
    encoded = bytearray(encode(quarters(), kind))
    for _ in range(data.draw(st.integers(1, 4))):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))

    try:
        pixels = decode(bytes(encoded))
    except ConceptError as error:
        assert error.fix
    else:
        assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
