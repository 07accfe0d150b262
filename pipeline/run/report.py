"""The report of a catalog: one HTML file without scripts or external links, with its images embedded.

The page depends only on committed rows and the run's failures and holds no time of its own, so the same catalog gives
the same bytes. Images are WebP thumbnails: a page of two hundred concepts has a few megabytes.
"""

from __future__ import annotations

import base64
import heapq
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jinja2

from ...core.concept import PLACEHOLDER
from ...core.errors import ConceptFailure, StoreObjectMissing
from ...core.images.decoding import RENDERING_FORMATS, open_image
from ...core.plural import plural
from ..catalog.commit_record import CommittedConcept, VariantScores
from ..catalog.data_file import DamagedFile, damaged_file
from ..catalog.index import read_committed
from ..catalog.results import read_reference_thumbnails, read_renderings
from ..catalog.schemas import RenderingRow
from ..catalog.store import CatalogStore
from ..shard.thumbnails import is_webp, webp_thumbnail
from .damage import Damage, Part
from .drawn_classes import drawn_class_warnings
from .duration import format_duration
from .summary import RunSummary

PROMPTS_SHOWN = 6

_VARIANTS = {  # label and meaning, in the order of the page
    "base": ("Base model", "no residual: what the model draws without having seen the concept"),
    "residual": ("Residual", "the personalized residual, applied everywhere"),
    "lag": ("Residual + LAG", "the residual only where attention finds the concept"),
}


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
    """The card of a concept.

    Attributes:
        references: data URIs; None if the version that trained the concept kept none.
        rows: a label and one cell (or None) per prompt for each variant.
    """

    concept_id: str
    macro_class: str
    references: tuple[str, ...] | None
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
    concept_ids: Collection[str] | None = None,
    limit: int = 200,
    on_damage: Callable[[Sequence[Damage]], RunSummary] | None = None,
) -> str:
    """Return the report of a catalog as a self-contained HTML page.

    Args:
        summary: the run to report on; its failures are shown unless `failures` are given.
        failures: concepts without a result, which the page begins with.
        concept_ids: the manifest's concepts; None shows all concepts of the catalog.
        limit: how many concepts get a card: those below the gate and those with the lowest scores first. Averages cover
            all concepts in scope.
        on_damage: called with the concepts to be shown whose results are damaged, if there are any, which the page then
            shows as failed; returns the summary that counts them.

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
    cards, damaged = _concept_cards(store, shown)
    if damaged and on_damage is not None:
        summary = on_damage(damaged)
    counted = {failure.concept_id: failure for failure in (summary.failed if summary else ())}
    results_damaged = [counted.get(one.concept_id, one.failure) for one in damaged]
    variants = totals.lines()
    return _template().render(
        catalog=store.uri,
        summary=summary,
        failures=[
            *(_failure_card(store, failure, committed.get(failure.concept_id), kept=True) for failure in failures),
            *(
                _failure_card(store, failure, committed.get(failure.concept_id), kept=False)
                for failure in results_damaged
            ),
        ],
        concepts=cards,
        concept_count=totals.concepts - len(damaged),
        image_count=sum(line.images for line in variants),
        without_references=sum(card.references is None for card in cards),
        warnings=drawn_class_warnings(store, totals.macro_classes),
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
    macro_classes: set[str] = field(default_factory=set)

    def counting(self, concepts: Iterable[CommittedConcept]) -> Iterator[CommittedConcept]:
        """Yield the concepts, adding each to the totals."""
        for concept in concepts:
            self.concepts += 1
            self.macro_classes.add(concept.macro_class)
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


def _failure_card(
    store: CatalogStore, failure: ConceptFailure, committed: CommittedConcept | None, *, kept: bool
) -> FailureCard:
    """The card of a failed concept, with the references of its earlier result; `kept`: that one is to be mentioned."""
    try:
        references = _references(store, committed) if committed else None
    except (DamagedFile, StoreObjectMissing):
        references = None
    return FailureCard(failure, references or (), kept and committed is not None)


def _concept_cards(store: CatalogStore, concepts: Iterable[CommittedConcept]) -> tuple[list[ConceptCard], list[Damage]]:
    """The cards of concepts whose results can be read, and what is damaged of the others."""
    cards, damaged = [], []
    for concept in concepts:
        part: Part = "residual"
        try:
            references = _references(store, concept)
            part = "renderings"
            cards.append(_concept_card(store, concept, references))
        except (DamagedFile, StoreObjectMissing) as error:
            damaged.append(Damage(concept.concept_id, part, error))
    return cards, damaged


def _concept_card(store: CatalogStore, concept: CommittedConcept, references: tuple[str, ...] | None) -> ConceptCard:
    renderings = read_renderings(store, concept)
    templates = {row.prompt_index: row.prompt_template for row in renderings}
    shown = sorted(templates)[:PROMPTS_SHOWN]
    by_place: dict[tuple[str, int], list[RenderingRow]] = {}
    for row in renderings:
        by_place.setdefault((row.variant, row.prompt_index), []).append(row)
    variants = _variant_order({row.variant for row in renderings})
    rows = []
    for variant in variants:
        places = (by_place.get((variant, index)) for index in shown)
        cells = tuple(_cell(store, concept, rows_there, gated=variant == variants[-1]) for rows_there in places)
        rows.append((_VARIANTS.get(variant, (variant, ""))[0], cells))
    return ConceptCard(
        concept.concept_id,
        concept.macro_class,
        references,
        tuple(templates[index].replace(PLACEHOLDER, concept.macro_class) for index in shown),
        len(templates) - len(shown),
        tuple(rows),
        _below_gate(concept),
    )


def _cell(
    store: CatalogStore, concept: CommittedConcept, rows: Sequence[RenderingRow] | None, *, gated: bool
) -> Cell | None:
    if not rows:
        return None
    first = rows[0]
    try:
        image = open_image(first.image, formats=RENDERING_FORMATS)
        image.load()
    except Exception as error:  # Pillow's decoders raise nearly every kind of exception
        reason = f"{first.image_path} cannot be decoded: {type(error).__name__}: {error}"
        raise damaged_file(store, concept.rendering_file or "", reason) from None
    thumbnail = _data_uri(webp_thumbnail(image))
    missed = gated and any(row.passed is False for row in rows)
    return Cell(thumbnail, first.seed, first.prompt_score, first.identity_score, missed, len(rows) - 1)


def _references(store: CatalogStore, concept: CommittedConcept) -> tuple[str, ...] | None:
    """The thumbnails of a concept's references; None if the version that trained it kept none."""
    found = read_reference_thumbnails(store, concept)
    return None if found is None else tuple(_data_uri(one) for one in found if is_webp(one))


def _data_uri(webp: bytes) -> str:
    return "data:image/webp;base64," + base64.b64encode(webp).decode("ascii")
