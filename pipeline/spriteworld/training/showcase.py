"""Draw the README's picture from a demo's catalog.

`python -m persres.pipeline.spriteworld.training.showcase persres-demo docs/images/demo.png`

One row per concept: one of its references, then for two prompts the rendering of each variant: base model, residual,
residual with LAG.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ....core.images.decoding import RENDERING_FORMATS, open_image
from ...catalog.index import read_committed
from ...catalog.results import read_renderings
from ...catalog.schemas import RenderingRow
from ...catalog.store import CatalogStore
from ...manifest.row import ManifestRow
from ...manifest.scan import read_manifest

SIDE, GAP, MARGIN, CAPTION = 112, 6, 16, 22
PROMPTS_SHOWN = 2
COLUMNS = {"base": "base model", "residual": "residual", "lag": "with LAG"}
INK, PAPER, FAINT = (32, 33, 36), (255, 255, 255), (110, 113, 120)


def showcase(demo: Path, concepts: int = 6) -> Image.Image:
    """Draw the picture for the first `concepts` committed concepts of a demo folder."""
    committed = read_committed(store := CatalogStore(str(demo / "manifest-catalog")))
    rows = [
        (row, read_renderings(store, committed[row.concept_id]))
        for row in read_manifest(str(demo / "manifest.parquet"), default_prompts=()).rows
        if row.concept_id in committed
    ][:concepts]
    columns = 1 + PROMPTS_SHOWN * len(COLUMNS)
    width = 2 * MARGIN + columns * (SIDE + GAP) + PROMPTS_SHOWN * 2 * GAP
    height = 2 * MARGIN + CAPTION + len(rows) * (SIDE + CAPTION + GAP)
    canvas = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(canvas)
    for column, label in enumerate(["reference", *list(COLUMNS.values()) * PROMPTS_SHOWN]):
        pen.text((_left(column) + SIDE / 2, MARGIN), label, INK, ImageFont.load_default(14), anchor="ma")
    for number, (row, renderings) in enumerate(rows):
        _draw_row(canvas, MARGIN + CAPTION + number * (SIDE + CAPTION + GAP), row, renderings)
    return canvas


def _draw_row(canvas: Image.Image, top: int, row: ManifestRow, renderings: Sequence[RenderingRow]) -> None:
    reference = row.reference_images[0].uri
    assert reference is not None, "a demo's references are files"
    canvas.paste(_tile(open_image(Path(reference).read_bytes())), (_left(0), top))
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(13)
    for prompt_index in range(PROMPTS_SHOWN):
        images = {one.variant: one for one in renderings if one.prompt_index == prompt_index}
        first = 1 + prompt_index * len(COLUMNS)
        for column, variant in enumerate(COLUMNS, start=first):
            canvas.paste(_tile(open_image(images[variant].image, formats=RENDERING_FORMATS)), (_left(column), top))
        text = images["lag"].prompt_template.replace("{concept}", f"V* {row.macro_class}")
        pen.text((_left(first), top + SIDE + 3), f'"{text}"', FAINT, font)


def _left(column: int) -> int:
    """Return the left edge of a column; there is a gap before each prompt's group of columns."""
    groups = math.ceil(column / len(COLUMNS))
    return MARGIN + column * (SIDE + GAP) + groups * 2 * GAP


def _tile(image: Image.Image) -> Image.Image:
    return image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("demo", type=Path, help="the folder that `persres-batch demo` wrote")
    parser.add_argument("out", type=Path, help="the PNG to write")
    parser.add_argument("--concepts", type=int, default=6)
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    showcase(arguments.demo, arguments.concepts).quantize(128).save(arguments.out, optimize=True)


if __name__ == "__main__":
    main()
