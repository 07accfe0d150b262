"""Read a whole catalog back and say what is not as its records tell.

Every data file that something committed refers to is read once, a row group at a time. What is found is told concept by
concept, each with the file, the fault and what to do. A run may be at work meanwhile: what seems wrong is looked up
again, and counts only if the catalog still says that it is committed there.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial

import pyarrow.parquet as pq

from ...core.errors import StoreError, StoreRefused, StoreUnavailable
from ..catalog.commit_record import CommittedConcept
from ..catalog.committed import CommittedConcepts
from ..catalog.data_file import DamagedFile, Span, read_data_file, rows_in_turn
from ..catalog.index import read_committed
from ..catalog.schemas import rendering_rows, residual_rows
from ..catalog.store import CatalogStore
from .gc import Garbage, collect_garbage
from .row_checks import rendering_faults, residual_faults

_LARGE = 32 << 20  # bytes; larger files are fetched in parts
_READ_AGAIN = 3


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong. `concept_id` is empty where it is about the catalog as a whole."""

    concept_id: str
    file: str
    fault: str
    fix: str


@dataclass(frozen=True, slots=True)
class Verification:
    """What reading a catalog back has shown.

    Attributes:
        concepts: how many are committed.
        files: how many data files they lie in.
        images: how many renderings were decoded.
        without_digest: how many concepts were committed by a version that kept no digests of what it wrote.
        findings: what is wrong, by concept and file.
        garbage: what nobody needs, of any age. It is no fault: `persres-batch gc` removes it.
    """

    concepts: int
    files: int
    images: int
    without_digest: int
    findings: tuple[Finding, ...]
    garbage: Garbage

    @property
    def clean(self) -> bool:
        return not self.findings


@dataclass(slots=True)
class _Judged:
    """What became of some concepts' files."""

    files: int = 0
    images: int = 0
    findings: list[Finding] = field(default_factory=list)


def verify(store: CatalogStore, *, on_progress: Callable[[int, int], None] = lambda done, total: None) -> Verification:
    """Read everything back: digests, fingerprints, shapes, finite numbers, images, and rows where records say.

    Args:
        on_progress: called with (files read, all of them).

    Raises:
        StoreError: the store cannot be reached. What is damaged or missing is a finding and raises nothing.
    """
    try:
        committed = read_committed(store)
    except (StoreRefused, StoreUnavailable):
        raise  # it is the store, and not what is in it
    except StoreError as error:
        finding = Finding("", store.COMMITS, error.message, error.fix or "")
        return Verification(0, 0, 0, 0, (finding,), Garbage((), 0))
    judged = _judge(store, committed, committed.keys(), on_progress)
    findings = _confirmed(store, committed, judged.findings)
    unknown = sum(
        not one.residual_digest or bool(one.rendering_file) > bool(one.renderings_digest) for one in committed.values()
    )
    return Verification(
        concepts=len(committed),
        files=judged.files,
        images=judged.images,
        without_digest=unknown,
        findings=tuple(sorted(findings, key=lambda one: (one.concept_id, one.file, one.fault))),
        garbage=collect_garbage(store, older_than_s=0, now=math.inf),
    )


def _judge(
    store: CatalogStore,
    committed: CommittedConcepts,
    concept_ids: Collection[str],
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> _Judged:
    sizes = {path: one.size for path, one in store.stat_all().items()}
    in_files = _by_file(committed, concept_ids)
    total = _Judged(files=len(in_files))
    look = partial(_read_back, store, committed, sizes)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for done, judged in enumerate(pool.map(look, in_files, in_files.values()), start=1):
            total.images += judged.images
            total.findings.extend(judged.findings)
            on_progress(done, len(in_files))
    return total


def _by_file(committed: CommittedConcepts, concept_ids: Collection[str]) -> dict[str, list[str]]:
    """The concepts whose results lie in each file."""
    in_files: dict[str, list[str]] = {}
    for concept_id, concept in committed.items():
        if concept_id in concept_ids:
            for path in filter(None, (concept.residual_file, concept.rendering_file)):
                in_files.setdefault(path, []).append(concept_id)
    return dict(sorted(in_files.items()))


def _read_back(
    store: CatalogStore, committed: CommittedConcepts, sizes: Mapping[str, int], path: str, concept_ids: Sequence[str]
) -> _Judged:
    """One file, and everything committed in it."""
    concepts = {one.concept_id: one for one in committed.of_each(concept_ids) if one is not None}

    def all_are(fault: str) -> _Judged:
        return _Judged(findings=[Finding(one, path, fault, _do_again(store, concepts)) for one in concepts])

    if path not in sizes:
        return all_are("the file is missing")
    try:
        return read_data_file(store, path, partial(_judge_file, store, path, concepts), in_parts=sizes[path] > _LARGE)
    except DamagedFile as error:
        return all_are(error.message)
    except StoreError:
        if store.size(path) is None:
            return all_are("the file is missing")
        raise


def _judge_file(
    store: CatalogStore, path: str, concepts: Mapping[str, CommittedConcept], parquet: pq.ParquetFile
) -> _Judged:
    judged = _Judged()
    spans = [span for one in concepts.values() for span in _spans(one, path)]
    missing = set(spans)
    for span, table in rows_in_turn(parquet, spans):
        missing.discard(span)
        one = concepts[span.concept_id]
        try:
            if path == one.residual_file:
                faults = list(residual_faults(one, residual_rows(table)[0]))
            else:
                faults = list(rendering_faults(one, rendering_rows(table)))
                judged.images += span.count
        except (KeyError, TypeError, ValueError) as error:  # other columns, or nulls where values belong
            faults = [f"its rows are not those of a catalog ({type(error).__name__}: {error})"]
        fix = _do_again(store, [one.concept_id])
        judged.findings.extend(Finding(one.concept_id, path, fault, fix) for fault in faults)
    for span in sorted(missing, key=lambda span: span.first):
        fault = f"the file ends before row {span.first + span.count}"
        judged.findings.append(Finding(span.concept_id, path, fault, _do_again(store, [span.concept_id])))
    return judged


def _spans(one: CommittedConcept, path: str) -> Iterator[Span]:
    if path == one.residual_file:
        yield Span(one.residual_row, 1, one.concept_id)
    if path == one.rendering_file:
        yield Span(*one.rendering_rows, one.concept_id)


def _confirmed(store: CatalogStore, committed: CommittedConcepts, findings: Iterable[Finding]) -> list[Finding]:
    """The findings that still stand when the catalog is read again, and those about what it has moved meanwhile."""
    confirmed, doubtful = [], list(findings)
    for _ in range(_READ_AGAIN):
        if not doubtful:
            break
        now = read_committed(store)
        moved = {one.concept_id for one in doubtful if _place(now, one) != _place(committed, one)}
        confirmed.extend(one for one in doubtful if one.concept_id not in moved)
        doubtful = _judge(store, now, moved).findings
        committed = now
    return [*confirmed, *doubtful]


def _place(committed: CommittedConcepts, finding: Finding) -> CommittedConcept | None:
    concept = committed.get(finding.concept_id)
    return concept and replace(concept, scores={})


def _do_again(store: CatalogStore, concept_ids: Iterable[str]) -> str:
    return f"persres-batch forget {store.uri} {' '.join(concept_ids)}; then submit, which does it again"
