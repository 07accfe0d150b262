"""Images from outside are opened in one place, from a list of formats and with a limit of pixels."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from ..support.import_graph import ROOT, sources

DECODER = "core/images/decoding.py"
OTHER_DECODERS = {"cv2", "imageio", "torchvision", "skimage", "matplotlib", "tifffile", "pillow_heif", "decord"}
OPENING = {"PIL.Image": {"open"}, "PIL": {"ImageFile", "ImageGrab", "ImageShow"}, "diffusers.utils": {"load_image"}}


def openings(source: str, text: str) -> Iterator[str]:
    """Places of a source that may decode an image file themselves."""
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Attribute(value=ast.Name(id="Image") | ast.Attribute(attr="Image"), attr="open" | "core"):
                yield f"{source}:{node.lineno}: Image.{node.attr}"
            case ast.ImportFrom(module=str(module), names=names) if module.split(".")[0] in OTHER_DECODERS:
                yield f"{source}:{node.lineno}: {module}"
            case ast.ImportFrom(module=str(module), names=names):
                for name in names:
                    if name.name in OPENING.get(module, ()):
                        yield f"{source}:{node.lineno}: {module}.{name.name}"
            case ast.Import(names=names):
                for name in names:
                    if name.name.split(".")[0] in OTHER_DECODERS:
                        yield f"{source}:{node.lineno}: {name.name}"
            case _:
                pass


def test_image_files_are_opened_in_one_place():
    found = [
        opening
        for source in sources()
        if source != DECODER
        for opening in openings(source, (ROOT / source).read_text(encoding="utf-8"))
    ]
    assert not found, f"use open_image of {DECODER}, which has a list of formats and a limit of pixels: {found}"


def test_every_way_to_open_an_image_is_found():
    text = """
import PIL.Image
import imageio.v3 as iio
from PIL import Image, ImageFile
from PIL.Image import open as read
from torchvision.io import read_image
from diffusers.utils import load_image
Image.open("a.png")
PIL.Image.open("a.png")
"""
    assert len(list(openings("x.py", text))) == 7
    assert list(openings(DECODER, (ROOT / DECODER).read_text(encoding="utf-8")))
