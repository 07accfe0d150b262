"""The report of a catalog: one HTML file without scripts or external links, with its images embedded.

The page depends only on committed rows and the run's failures and holds no time of its own, so the same catalog gives
the same bytes. Images are WebP thumbnails: a page of two hundred concepts has a few megabytes.
"""

from __future__ import annotations

import base64
import heapq
import io
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
import numpy as np
from PIL import Image

from ...core.concept import PLACEHOLDER
from ...core.errors import ConceptFailure, PersresError
from ...core.plural import plural
from ..catalog.commit_record import CommittedConcept, VariantScores
from ..catalog.index import read_committed
from ..catalog.results import read_renderings
from ..catalog.schemas import RenderingRow
from ..catalog.store import CatalogStore
from .duration import format_duration
from .summary import RunSummary

THUMBNAIL_SIDE = 112
THUMBNAIL_QUALITY = 50
REFERENCES_SHOWN = 4
PROMPTS_SHOWN = 6

_VARIANTS = {  # label and meaning, in the order of the page
    "base": ("Base model", "no residual: what the model draws without having seen the concept"),
    "residual": ("Residual", "the personalized residual, applied everywhere"),
    "lag": ("Residual + LAG", "the residual only where attention finds the concept"),
}

ReferenceLoader = Callable[[str], Sequence[np.ndarray]]


@dataclass(frozen=True, slots=True)
class VariantLine:
    """A line of the score table: a variant's averages over all renderings in scope, and how many passed the gate."""

    label: str
    meaning: str
    images: int
    prompt_score: float | None
    identity_score: float | None
    passed: int | None


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of the grid: the rendering of one prompt in one variant.

    Attributes:
        thumbnail: a data URI.
        missed: whether an image of the prompt is below the gate. Only the last variant is judged, because the base
            model is not expected to know the concept.
        more: the number of further images of the prompt.
    """

    thumbnail: str
    seed: int
    prompt_score: float | None
    identity_score: float | None
    missed: bool
    more: int


@dataclass(frozen=True, slots=True)
class ConceptCard:
    """The card of a concept. `rows` has a label and one cell (or None) per prompt for each variant."""

    concept_id: str
    macro_class: str
    references: tuple[str, ...]
    prompts: tuple[str, ...]
    prompts_left_out: int
    rows: tuple[tuple[str, tuple[Cell | None, ...]], ...]
    below_gate: int


@dataclass(frozen=True, slots=True)
class FailureCard:
    """The card of a failed concept. `kept`: the catalog still holds an earlier result of it."""

    failure: ConceptFailure
    references: tuple[str, ...]
    kept: bool


def build_report(
    store: CatalogStore,
    *,
    summary: RunSummary | None = None,
    failures: Sequence[ConceptFailure] = (),
    references: ReferenceLoader | None = None,
    concept_ids: Collection[str] | None = None,
    limit: int = 200,
) -> str:
    """Return the report of a catalog as a self-contained HTML page.

    Args:
        summary: the run to report on; its failures are shown unless `failures` are given.
        failures: concepts without a result, which the page begins with.
        references: loads a concept's reference images, H x W x 3 uint8, for thumbnails; None leaves them out. If it
            raises an error, the concept is shown without them.
        concept_ids: the manifest's concepts; None shows all concepts of the catalog.
        limit: how many concepts get a card: those below the gate and those with the lowest scores first. Averages cover
            all concepts in scope.

    Raises:
        StoreError: the catalog cannot be read.
    """
    failures = tuple(failures) or (summary.failed if summary else ())
    committed = read_committed(store)
    failed = {failure.concept_id for failure in failures}
    in_scope = committed.keys() if concept_ids is None else committed.keys() & set(concept_ids)
    totals = _ScoreTotals()
    done = (concept for name, concept in committed.items() if name in in_scope and name not in failed)
    # One pass, because a catalog may hold a million concepts.
    shown = heapq.nsmallest(limit, totals.counting(done), key=_worst_first)
    shown.sort(key=lambda concept: (not _below_gate(concept), concept.concept_id))
    variants = totals.lines()
    return _template().render(
        catalog=store.uri,
        summary=summary,
        failures=[_failure_card(failure, references, failure.concept_id in committed) for failure in failures],
        concepts=[_concept_card(store, concept, references) for concept in shown],
        concept_count=totals.concepts,
        image_count=sum(line.images for line in variants),
        variants=variants,
        gated=any(line.passed is not None for line in variants),
    )


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["score"] = lambda score: "-" if score is None else f"{score:.3f}"
    environment.filters["duration"] = format_duration
    environment.filters["plural"] = plural
    return environment.from_string(Path(__file__).with_name("report.html.j2").read_text("utf-8"))


def _variant_order(variants: Iterable[str]) -> list[str]:
    known = list(_VARIANTS)
    return sorted(variants, key=lambda variant: (known.index(variant) if variant in known else len(known), variant))


@dataclass(slots=True)
class _WeightedMean:
    total: float = 0.0
    weights: int = 0

    def add(self, score: float | None, weight: int) -> None:
        if score is not None:
            self.total += score * weight
            self.weights += weight

    @property
    def mean(self) -> float | None:
        return self.total / self.weights if self.weights else None


@dataclass(slots=True)
class _VariantSums:
    images: int = 0
    passed: int | None = None
    prompt_score: _WeightedMean = field(default_factory=_WeightedMean)
    identity_score: _WeightedMean = field(default_factory=_WeightedMean)

    def add(self, scores: VariantScores) -> None:
        self.images += scores.images
        self.prompt_score.add(scores.prompt_score, scores.images)
        self.identity_score.add(scores.identity_score, scores.images)
        if scores.passed is not None:
            self.passed = (self.passed or 0) + scores.passed


@dataclass(slots=True)
class _ScoreTotals:
    """Sums of scores over concepts."""

    concepts: int = 0
    sums: dict[str, _VariantSums] = field(default_factory=dict)

    def counting(self, concepts: Iterable[CommittedConcept]) -> Iterator[CommittedConcept]:
        """Yield the concepts, adding each to the totals."""
        for concept in concepts:
            self.concepts += 1
            for variant, scores in concept.scores.items():
                self.sums.setdefault(variant, _VariantSums()).add(scores)
            yield concept

    def lines(self) -> list[VariantLine]:
        return [self._line(variant) for variant in _variant_order(self.sums)]

    def _line(self, variant: str) -> VariantLine:
        label, meaning = _VARIANTS.get(variant, (variant, ""))
        sums = self.sums[variant]
        return VariantLine(label, meaning, sums.images, sums.prompt_score.mean, sums.identity_score.mean, sums.passed)


def _final_scores(concept: CommittedConcept) -> VariantScores | None:
    """The scores of the variant that counts: the last rendered one in the order base, residual, LAG."""
    order = _variant_order(concept.scores)
    return concept.scores[order[-1]] if order else None


def _below_gate(concept: CommittedConcept) -> int:
    scores = _final_scores(concept)
    return scores.images - scores.passed if scores and scores.passed is not None else 0


def _worst_first(concept: CommittedConcept) -> tuple[int, float, str]:
    scores = _final_scores(concept)
    known = [score for score in (scores.prompt_score, scores.identity_score) if score is not None] if scores else []
    return -_below_gate(concept), sum(known), concept.concept_id


def _failure_card(failure: ConceptFailure, references: ReferenceLoader | None, kept: bool) -> FailureCard:
    return FailureCard(failure, _reference_thumbnails(failure.concept_id, references), kept)


def _concept_card(store: CatalogStore, concept: CommittedConcept, references: ReferenceLoader | None) -> ConceptCard:
    renderings = read_renderings(store, concept)
    templates = {row.prompt_index: row.prompt_template for row in renderings}
    shown = sorted(templates)[:PROMPTS_SHOWN]
    by_place: dict[tuple[str, int], list[RenderingRow]] = {}
    for row in renderings:
        by_place.setdefault((row.variant, row.prompt_index), []).append(row)
    variants = _variant_order({row.variant for row in renderings})
    rows = tuple(
        (
            _VARIANTS.get(variant, (variant, ""))[0],
            tuple(_cell(by_place.get((variant, index)), gated=variant == variants[-1]) for index in shown),
        )
        for variant in variants
    )
    return ConceptCard(
        concept.concept_id,
        concept.macro_class,
        _reference_thumbnails(concept.concept_id, references),
        tuple(templates[index].replace(PLACEHOLDER, concept.macro_class) for index in shown),
        len(templates) - len(shown),
        rows,
        _below_gate(concept),
    )


def _cell(rows: Sequence[RenderingRow] | None, *, gated: bool) -> Cell | None:
    if not rows:
        return None
    first = rows[0]
    with Image.open(io.BytesIO(first.image)) as image:
        thumbnail = _thumbnail(image)
    missed = gated and any(row.passed is False for row in rows)
    return Cell(thumbnail, first.seed, first.prompt_score, first.identity_score, missed, len(rows) - 1)


def _reference_thumbnails(concept_id: str, references: ReferenceLoader | None) -> tuple[str, ...]:
    if references is None:
        return ()
    try:
        return tuple(_thumbnail(Image.fromarray(image)) for image in references(concept_id)[:REFERENCES_SHOWN])
    except (PersresError, OSError):
        return ()  # the report is about results; its ConceptFailure reports what is wrong with a reference


def _thumbnail(image: Image.Image) -> str:
    small = image.convert("RGB")
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=THUMBNAIL_QUALITY, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
