"""Read a whole catalog back and compare it with its records.

Every data file that holds committed results is read once, one row group at a time. A finding names the concept, the
file, the fault and its fix. A run may commit during the check: findings are checked again, and count only if the
catalog still refers to the same rows.
"""

from __future__ import annotations

import math
import os
import shlex
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial

import pyarrow.parquet as pq
import torch

from ...core.errors import PersresError, StoreError, StoreRefused, StoreUnavailable
from ...core.images.decoding import RENDERING_FORMATS, open_image
from ...core.plural import plural
from ...core.residual import Residual
from ..catalog import layout
from ..catalog.commit_record import CommittedConcept, blob_digest, rendering_digest
from ..catalog.committed import CommittedConcepts
from ..catalog.data_file import DamagedFile, Span, iter_spans, read_data_file
from ..catalog.index import read_committed
from ..catalog.schemas import RenderingRow, ResidualRow, rendering_rows, residual_rows
from ..catalog.store import CatalogStore
from .gc import Garbage, collect_garbage

_LARGE_BYTES = 32 << 20  # larger files are fetched in parts
_MAX_RECHECKS = 3
_THREADS = 8


@dataclass(frozen=True, slots=True)
class Finding:
    """One fault. `concept_id` is empty for a fault of the catalog as a whole."""

    concept_id: str
    file: str
    fault: str
    fix: str


@dataclass(frozen=True, slots=True)
class Verification:
    """The result of reading a catalog back.

    Attributes:
        concepts: how many are committed.
        files: how many data files hold them.
        images: how many renderings were decoded.
        without_digest: how many concepts were committed by a version that recorded no digests.
        findings: the faults, by concept and file.
        garbage: unused objects of any age. They are no fault: `persres-batch gc` removes them.
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
class _Checks:
    """The result of checking some files."""

    files: int = 0
    images: int = 0
    findings: list[Finding] = field(default_factory=list)


def verify(store: CatalogStore, *, on_progress: Callable[[int, int], None] = lambda done, total: None) -> Verification:
    """Check all committed rows: location, digests, fingerprints, shapes, finite numbers, decodable images.

    Args:
        on_progress: called with (files read, all of them).

    Raises:
        StoreError: the store cannot be reached. Damaged and missing objects are findings.
    """
    try:
        committed = read_committed(store)
    except (StoreRefused, StoreUnavailable):
        raise  # the store's fault, not the catalog's
    except StoreError as error:
        finding = Finding("", layout.INDEX, error.message, error.fix or "")
        return Verification(0, 0, 0, 0, (finding,), Garbage((), 0))
    checks = _check_files(store, committed, committed.keys(), on_progress)
    findings = _recheck(store, committed, checks.findings)
    without_digest = sum(
        not one.residual_digest or bool(one.rendering_file) > bool(one.renderings_digest) for one in committed.values()
    )
    return Verification(
        concepts=len(committed),
        files=checks.files,
        images=checks.images,
        without_digest=without_digest,
        findings=tuple(sorted(findings, key=lambda one: (one.concept_id, one.file, one.fault))),
        garbage=collect_garbage(store, older_than_s=0, now=math.inf),
    )


def _check_files(
    store: CatalogStore,
    committed: CommittedConcepts,
    concept_ids: Collection[str],
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> _Checks:
    """Check the data files that hold results of `concept_ids`."""
    sizes = {path: one.size or 0 for path, one in store.stat_all().items()}
    by_file = _concepts_by_file(committed, concept_ids)
    total = _Checks(files=len(by_file))
    check_file = partial(_check_file, store, committed, sizes)
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        for done, checks in enumerate(pool.map(check_file, by_file, by_file.values()), start=1):
            total.images += checks.images
            total.findings.extend(checks.findings)
            on_progress(done, len(by_file))
    return total


def _concepts_by_file(committed: CommittedConcepts, concept_ids: Collection[str]) -> dict[str, list[str]]:
    by_file: dict[str, list[str]] = {}
    for concept_id, concept in committed.items():
        if concept_id in concept_ids:
            for path in filter(None, (concept.residual_file, concept.rendering_file)):
                by_file.setdefault(path, []).append(concept_id)
    return dict(sorted(by_file.items()))


def _check_file(
    store: CatalogStore, committed: CommittedConcepts, sizes: Mapping[str, int], path: str, concept_ids: Sequence[str]
) -> _Checks:
    concepts = {one.concept_id: one for one in committed.get_many(concept_ids) if one is not None}

    def fault_of_all(fault: str) -> _Checks:
        return _Checks(findings=[Finding(one, path, fault, _fix(store, concepts)) for one in concepts])

    if path not in sizes:
        return fault_of_all("the file is missing")
    try:
        check_rows = partial(_check_rows, store, path, concepts)
        return read_data_file(store, path, check_rows, in_parts=sizes[path] > _LARGE_BYTES)
    except DamagedFile as error:
        return fault_of_all(error.message)
    except StoreError:
        if store.size(path) is None:
            return fault_of_all("the file is missing")
        raise


def _check_rows(
    store: CatalogStore, path: str, concepts: Mapping[str, CommittedConcept], parquet: pq.ParquetFile
) -> _Checks:
    checks = _Checks()
    spans = [span for one in concepts.values() for span in _spans(one, path)]
    missing = set(spans)
    for span, table in iter_spans(parquet, spans):
        missing.discard(span)
        one = concepts[span.concept_id]
        try:
            if path == one.residual_file:
                faults = list(residual_faults(one, residual_rows(table)[0]))
            else:
                faults = list(rendering_faults(one, rendering_rows(table)))
                checks.images += span.count
        except (KeyError, TypeError, ValueError) as error:  # other columns, or nulls instead of values
            faults = [f"its rows do not have the catalog's schema ({type(error).__name__}: {error})"]
        fix = _fix(store, [one.concept_id])
        checks.findings.extend(Finding(one.concept_id, path, fault, fix) for fault in faults)
    for span in sorted(missing, key=lambda span: span.first):
        fault = f"the file ends before row {span.first + span.count}"
        checks.findings.append(Finding(span.concept_id, path, fault, _fix(store, [span.concept_id])))
    return checks


def _spans(one: CommittedConcept, path: str) -> Iterator[Span]:
    if path == one.residual_file:
        yield Span(one.residual_row, 1, one.concept_id)
    if path == one.rendering_file:
        yield Span(*one.rendering_rows, one.concept_id)


def _recheck(store: CatalogStore, committed: CommittedConcepts, findings: Iterable[Finding]) -> list[Finding]:
    """The findings about rows that have not moved since, and those of checking the moved rows again."""
    confirmed, unconfirmed = [], list(findings)
    for _ in range(_MAX_RECHECKS):
        if not unconfirmed:
            break
        now = read_committed(store)
        moved = {one.concept_id for one in unconfirmed if _location(now, one) != _location(committed, one)}
        confirmed.extend(one for one in unconfirmed if one.concept_id not in moved)
        unconfirmed = _check_files(store, now, moved).findings
        committed = now
    return [*confirmed, *unconfirmed]


def _location(committed: CommittedConcepts, finding: Finding) -> CommittedConcept | None:
    concept = committed.get(finding.concept_id)
    return concept and replace(concept, scores={})


def _fix(store: CatalogStore, concept_ids: Iterable[str]) -> str:
    return f"{shlex.join(['persres-batch', 'forget', store.uri, *concept_ids])}; then submit, which repeats the work"


def residual_faults(committed: CommittedConcept, row: ResidualRow) -> Iterator[str]:
    """The faults of a residual's row: differences from its record, and invalid values."""
    if row.concept_id != committed.concept_id:
        yield f"row {committed.residual_row} is of concept {row.concept_id}"
        return
    yield from _differences(committed, row, ("macro_class", "training_fingerprint"))
    if committed.residual_digest and blob_digest(row.residual) != committed.residual_digest:
        yield "the residual is not the one that was committed: its digest differs"
    yield from _blob_faults(row)
    if not all(map(math.isfinite, (*row.losses, row.final_loss))):
        yield "a training loss is not a finite number"
    if row.iterations != len(row.losses):
        yield f"{row.iterations} iterations, but {len(row.losses)} losses"


def rendering_faults(committed: CommittedConcept, rows: Sequence[RenderingRow]) -> Iterator[str]:
    """The faults of all rows of a concept's renderings."""
    others = sorted({row.concept_id for row in rows} - {committed.concept_id})
    if others:
        yield f"rows {committed.rendering_rows[0]} and following are of concept {', '.join(others)}"
        return
    if committed.renderings_digest and rendering_digest(row.image for row in rows) != committed.renderings_digest:
        yield "the renderings are not the ones that were committed: their digest differs"
    recorded = {variant: scores.images for variant, scores in committed.scores.items()}
    found = Counter(row.variant for row in rows)
    if recorded and recorded != found:
        yield f"the record counts {recorded} renderings, the file has {dict(found)}"
    keys = Counter((row.variant, row.prompt_index, row.image_index) for row in rows)
    if duplicates := [key for key, count in keys.items() if count > 1]:
        yield f"rendered twice: {duplicates[0]}"
    for row in rows:
        differences = _differences(committed, row, ("training_fingerprint", "rendering_fingerprint"))
        for fault in (*differences, *_image_faults(row)):
            yield f"{row.image_path}: {fault}"


def _differences(committed: CommittedConcept, row: ResidualRow | RenderingRow, names: Iterable[str]) -> Iterator[str]:
    for name in names:
        recorded, found = getattr(committed, name), getattr(row, name)
        if recorded != found:
            yield f"{name} is {found!r}, its record has {recorded!r}"


def _blob_faults(row: ResidualRow) -> Iterator[str]:
    try:
        residual = Residual.from_bytes(row.residual)
    except PersresError as error:
        yield error.message
        return
    misshapen = [
        name
        for name, a in residual.a.items()
        if (b := residual.b[name]).dim() != 2 or a.dim() != 2 or a.shape != (b.shape[1], b.shape[0])
    ]
    if misshapen:
        yield f"A and B of {misshapen[0]} do not fit each other"
    elif residual.ranks != dict(row.ranks):
        yield f"the ranks in the row ({_first_difference(residual.ranks, row.ranks)}) are not the residual's"
    tensors = {f"{name}.A": a for name, a in residual.a.items()} | {f"{name}.B": b for name, b in residual.b.items()}
    if residual.identifier is not None:
        tensors["the identifier token's embedding"] = residual.identifier
    infinite = [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    if infinite:
        more = f", nor {plural(len(infinite) - 1, 'more tensor')}" if len(infinite) > 1 else ""
        yield f"{infinite[0]} is not finite{more}"


def _first_difference(found: Mapping[str, int], recorded: Mapping[str, int]) -> str:
    layer = min(name for name in found.keys() | recorded.keys() if found.get(name) != recorded.get(name))
    return f"{layer}: {recorded.get(layer)} instead of {found.get(layer)}"


def _image_faults(row: RenderingRow) -> Iterator[str]:
    try:
        with open_image(row.image, formats=RENDERING_FORMATS) as image:
            image.load()
            if image.size != (row.width, row.height):
                yield f"the image is {image.size[0]}x{image.size[1]}, its row says {row.width}x{row.height}"
    except Exception as error:  # Pillow's decoders raise nearly every kind of exception
        yield f"the image cannot be decoded ({type(error).__name__}: {error})"
    for name in ("prompt_score", "identity_score"):
        score = getattr(row, name)
        if score is not None and not math.isfinite(score):
            yield f"{name} is not a finite number"
