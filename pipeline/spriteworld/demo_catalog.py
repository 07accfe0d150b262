"""A manifest to try: held-out identities, references on one background, prompts for other backgrounds."""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import count
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from ...core.errors import InvalidInput
from .captions import BACKGROUND_PHRASES
from .world import BACKGROUNDS, CLASSES, COLOURS, PATTERNS, Identity, draw, random_identity, rng_for

PROMPTS_A_CONCEPT = 4
_NO_DEMO_BODY = "gray"
"""A gray body on the gray studio shows little."""

MANIFEST_SCHEMA = pa.schema(
    [
        ("concept_id", pa.string()),
        ("macro_class", pa.string()),
        ("reference_images", pa.list_(pa.string())),
        ("prompts", pa.list_(pa.string())),
        ("metadata", pa.map_(pa.string(), pa.string())),
    ]
)

RUN_SPEC = """\
# How to personalize and render. Every other setting has its default; `persres-batch init` writes all of it.
base_model: spriteworld    # the small drawn world that this package carries
training:
  # Ranks are 3 and 5 here, 16 to 64 on Stable Diffusion: the paper's learning rate of 0.001 did little, and training V*
  # helped. docs/experiment-log.md has the figures.
  learning_rate: 0.01
  initialization: zero
  train_identifier: true
  identifier_learning_rate: 0.01
  pack_size: 6
sampling:
  variants: [base, residual, lag]    # for comparison; a real catalog needs lag alone
  guidance_scale: 4.0
  steps: 20
  batch_size: 12
shard_size: 6
"""


def write_demo(out: Path, concepts: int = 12, references: int = 4, seed: int = 0) -> None:
    """Write `out`/manifest.parquet, `out`/run.yaml and `out`/references/<concept_id>/<n>.png.

    `persres-batch submit manifest.parquet` in that folder needs nothing else; its catalog is `out`/manifest-catalog.

    All references of a concept show it on one background, so that a background which leaks into renderings is visible;
    its prompts ask for four other backgrounds. `metadata` holds the background and the identity, to draw the truth.
    """
    rows = [
        _write_concept(out, who, concept_id, references, seed) for concept_id, who in demo_identities(concepts, seed)
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=MANIFEST_SCHEMA), out / "manifest.parquet")
    (out / "run.yaml").write_text(RUN_SPEC)


def demo_identities(concepts: int, seed: int = 0) -> list[tuple[str, Identity]]:
    """Identities no training has seen, with readable ids such as mug-striped-teal; no id twice.

    Classes and patterns come in turn, and as long as there are unused body colours, no two bodies have the same.

    Raises:
        InvalidInput: more concepts than there are names for.
    """
    names = len(CLASSES) * len(PATTERNS) * len(COLOURS)
    if concepts > names // 2:  # beyond half of them, drawing until an unused name comes up takes long
        raise InvalidInput(f"a demo of {concepts} concepts is too large", fix=f"ask for at most {names // 2}")
    chosen: dict[str, Identity] = {}
    unused_bodies = set(COLOURS) - {_NO_DEMO_BODY}
    for number in range(concepts):
        kind, pattern = CLASSES[number % len(CLASSES)], PATTERNS[(number + 1) % len(PATTERNS)]
        for attempt in count():
            who = random_identity(f"demo/{seed}/{number}/{attempt}", kind)
            concept_id = f"{kind}-{who.pattern}-{who.body}"
            preferred = who.pattern == pattern and who.body in (unused_bodies or COLOURS)
            if concept_id not in chosen and (preferred or attempt >= 500):
                chosen[concept_id] = who
                unused_bodies.discard(who.body)
                break
    return list(chosen.items())


def identity_from_json(text: str) -> Identity:
    """The identity in a manifest's metadata, to draw the true picture of a concept on any background."""
    plain = json.loads(text)
    shades = tuple((int(r), int(g), int(b)) for r, g, b in plain.pop("shades"))
    wide, tall, detail = plain.pop("proportions")
    return Identity(**plain, shades=(shades[0], shades[1], shades[2]), proportions=(wide, tall, detail))


def _write_concept(out: Path, who: Identity, concept_id: str, references: int, seed: int) -> dict[str, object]:
    rng = rng_for("demo backgrounds", seed, concept_id)
    home, *others = (BACKGROUNDS[i] for i in rng.permutation(len(BACKGROUNDS))[: PROMPTS_A_CONCEPT + 1])
    folder = out / "references" / concept_id
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(references):
        picture, _ = draw(who, home, f"demo/{seed}/{concept_id}/{number}")
        Image.fromarray(picture).save(folder / f"{number}.png")
    return {
        "concept_id": concept_id,
        "macro_class": who.macro_class,
        "reference_images": [f"references/{concept_id}/{number}.png" for number in range(references)],
        "prompts": [f"a photo of a {{concept}} {BACKGROUND_PHRASES[background][0]}" for background in others],
        "metadata": [("reference_background", home), ("identity", json.dumps(asdict(who)))],
    }
