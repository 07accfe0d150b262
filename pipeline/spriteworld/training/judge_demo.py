"""Score a demo's catalog against the truth: in spriteworld, every concept can be drawn on every background.

A copied background raises the similarity to the references, and all references of a demo's concept have the same one.
So identity is measured against drawings of the concept on the background that the prompt names.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ....core.errors import InvalidInput
from ....core.images.decoding import RENDERING_FORMATS, open_image
from ....core.scoring.quality_scores import Scorer, load_scorer
from ...catalog.index import read_committed
from ...catalog.results import read_renderings
from ...catalog.schemas import RenderingRow
from ...catalog.store import CatalogStore
from ...manifest.row import ManifestRow
from ...manifest.scan import read_manifest
from .. import scorer_path
from ..captions import BACKGROUND_PHRASES
from ..demo_catalog import identity_from_json
from ..world import Identity, draw

TRUE_DRAWINGS = 4
"""The number of drawings over which an identity score is averaged; placement and details of the background differ."""


@dataclass(frozen=True, slots=True)
class VariantJudgement:
    """Means over the renderings of one variant.

    Attributes:
        identity: cosine to drawings of the concept on the prompt's background.
        prompt: cosine to the prompt.
        background: share of the renderings whose background is the prompt's according to the scorer.
    """

    variant: str
    images: int
    identity: float
    prompt: float
    background: float


def judge_catalog(catalog_uri: str, manifest_uri: str) -> list[VariantJudgement]:
    """Score every variant of the catalog of a manifest written by `write_demo`.

    Raises:
        InvalidInput: the manifest is not a demo's.
    """
    scorer = load_scorer(scorer_path())
    committed = read_committed(store := CatalogStore(catalog_uri))
    by_variant: dict[str, list[tuple[float, float, bool]]] = defaultdict(list)
    for row in read_manifest(manifest_uri, default_prompts=()).rows:
        if row.concept_id not in committed:
            continue
        who = _identity(row)
        renderings = read_renderings(store, committed[row.concept_id])
        for rendering, scores in zip(renderings, _judge(scorer, who, renderings), strict=True):
            by_variant[rendering.variant].append(scores)
    order = ("base", "residual", "lag")
    return [_mean(variant, by_variant[variant]) for variant in order if variant in by_variant]


def background_of(prompt: str) -> str:
    """Return the background that a prompt names.

    Raises:
        InvalidInput: it names none of this world.
    """
    for background, phrases in BACKGROUND_PHRASES.items():
        if any(prompt.endswith(phrase) for phrase in phrases):
            return background
    raise InvalidInput(f"prompt {prompt!r} names no background of spriteworld", fix="judge a manifest made by `demo`")


def _identity(row: ManifestRow) -> Identity:
    if "identity" not in row.metadata:
        raise InvalidInput(f"concept {row.concept_id} has no identity to draw", fix="judge a manifest made by `demo`")
    return identity_from_json(row.metadata["identity"])


def _judge(scorer: Scorer, who: Identity, renderings: Sequence[RenderingRow]) -> Iterator[tuple[float, float, bool]]:
    images = [_pixels(rendering.image) for rendering in renderings]
    return judge_images(scorer, who, images, [background_of(row.prompt_template) for row in renderings])


def judge_images(
    scorer: Scorer, who: Identity, images: Sequence[np.ndarray], backgrounds: Sequence[str]
) -> Iterator[tuple[float, float, bool]]:
    """Yield (identity, prompt, background right) of each image of one concept, given its prompt's background."""
    embedded = scorer.embed_images(images)
    known = list(BACKGROUND_PHRASES)
    texts = scorer.embed_texts([f"a photo of a {who.macro_class} {BACKGROUND_PHRASES[b][0]}" for b in known])
    truths: dict[str, Tensor] = {}
    for background, image in zip(backgrounds, embedded, strict=True):
        if background not in truths:
            drawings = [draw(who, background, f"truth/{number}")[0] for number in range(TRUE_DRAWINGS)]
            truths[background] = scorer.embed_images(drawings)
        identity = float((truths[background] @ image).mean())
        similarity = texts @ image
        found = known[int(similarity.argmax())]
        yield identity, float(similarity[known.index(background)]), found == background


def _pixels(png: bytes) -> np.ndarray:
    return np.asarray(open_image(png, formats=RENDERING_FORMATS).convert("RGB"))


def _mean(variant: str, scores: Sequence[tuple[float, float, bool]]) -> VariantJudgement:
    identity, prompt, background = np.mean(np.asarray(scores, dtype=float), axis=0).tolist()
    return VariantJudgement(variant, len(scores), identity, prompt, background)
