"""Prepare a run: from a manifest's URI to a plan, without a GPU and without Ray.

A manifest may have a million rows of which a hundred need work. It is therefore read in batches of rows, which are
digested, fingerprinted and compared with the catalog. Current rows are kept as ids and 32 bytes of fingerprints, only
the others as objects. Problems that make the whole manifest unusable are reported before any image is fetched.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from typing import Any

from ...core.errors import ConceptFailure, InvalidInput, ManifestInvalid
from ...core.plural import plural
from ..catalog.commit_record import Fingerprints
from ..catalog.committed import CommittedConcepts
from ..manifest.prompt_lengths import PromptLengthChecker
from ..manifest.row import ManifestRow
from ..manifest.scan import ManifestScan, concept_failures, row_count_if_valid
from ..models.folder import ResolvedModel
from ..models.resolve import resolve_model
from ..references.images import OnProgress, ReferenceDigests, RowDigests, Unreachable
from ..spec.run_spec import RunSpec
from .fingerprint import Fingerprinter
from .plan import PlannedConcept, RunPlan, plan_run
from .run_models import check_models, drawn_world_warnings, resolve_scorer

MAX_CURRENT_ROWS = 10_000
"""The first current rows are kept as objects too, because a report shows the references of current concepts."""

MAX_CURRENT_BYTES = 256 * 2**20
"""The most bytes of embedded images that those rows may hold."""

UNCHECKED_SHOWN = 5
"""How many concepts a warning names whose references could not be checked."""

_BATCH_ROWS = 4096
_PROGRESS_CALLS = 1000


@dataclass(slots=True)
class CurrentRows:
    """Ids of rows that are current, and in the same order 32 bytes of fingerprints each."""

    ids: list[str] = field(default_factory=list)
    _digests: bytearray = field(default_factory=bytearray)

    def add(self, concept_id: str, fingerprints: Fingerprints) -> None:
        """Append a row; `fingerprints`: from `Fingerprinter`."""
        self.ids.append(concept_id)
        self._digests += bytes.fromhex(fingerprints.training + fingerprints.rendering)

    def __iter__(self) -> Iterator[tuple[str, Fingerprints]]:
        for index, concept_id in enumerate(self.ids):
            digits = self._digests[32 * index : 32 * index + 32].hex()
            yield concept_id, Fingerprints(digits[:32], digits[32:])


@dataclass(frozen=True, slots=True)
class PreparedRun:
    """A manifest, read and fingerprinted.

    Each row is in exactly one of `planned`, `current` and `failures`; the first current rows are in `planned`.
    """

    planned: tuple[PlannedConcept, ...]
    current: CurrentRows
    failures: tuple[ConceptFailure, ...]
    warnings: tuple[str, ...]
    base: ResolvedModel
    scorer: ResolvedModel | None
    _reader: _RowReader
    _compared_with: Callable[[], CommittedConcepts | None]  # what `current` was found in, if it still exists

    def plan(self, committed: CommittedConcepts) -> RunPlan:
        """Plan the run, given what the catalog holds now.

        Raises:
            InvalidInput: the manifest has changed: rows that must be read again are no longer in it.
        """
        changed_ids: set[str] = set()
        if self._compared_with() is not committed:
            changed_ids = {concept_id for concept_id, prints in self.current if not committed.holds(concept_id, prints)}
        if not changed_ids:
            return plan_run(self.planned, self.failures, committed, current=self.current.ids)
        # Another run has changed the catalog, so rows that were not kept need work. Read them again.
        again = self._reader.read(only=changed_ids, held=committed)
        found = [*(concept.concept_id for concept in again.planned), *(one.concept_id for one in again.failures)]
        if len(found) != len(changed_ids):
            raise InvalidInput("the manifest has changed while the run was prepared", fix="submit again")
        current = [concept_id for concept_id in self.current.ids if concept_id not in changed_ids]
        planned = sorted((*self.planned, *again.planned), key=lambda concept: concept.row.row)
        return plan_run(planned, (*self.failures, *again.failures), committed, current=current)


def prepare_run(
    manifest_uri: str,
    spec: RunSpec,
    committed: CommittedConcepts | None = None,
    *,
    on_digest: OnProgress = lambda done, total: None,
) -> PreparedRun:
    """Read the manifest, find the models, and digest every concept's references.

    Args:
        committed: the concepts in the catalog; rows that are current take little memory. None: all rows are kept.
        on_digest: called with (rows whose references are digested, rows in all).

    Raises:
        ManifestInvalid: a problem makes the whole manifest unusable; the error lists all problems.
        InvalidInput: a model cannot be found.
        StoreError: a model's store cannot be reached.
    """
    rows = row_count_if_valid(manifest_uri, spec.manifest)
    if rows is None:
        scan = ManifestScan(manifest_uri, default_prompts=spec.prompts, settings=spec.manifest)
        rows = sum(1 for _ in scan)
        if scan.manifest_problems:
            raise _manifest_invalid(manifest_uri, scan)
    base, scorer = resolve_model(spec.base_model, spec.revision, weights=False), resolve_scorer(spec, weights=False)
    reader = _RowReader(manifest_uri, spec, base, scorer)
    if not committed:
        reader.check_spec()  # before references are fetched
    step = 1 + rows // _PROGRESS_CALLS
    found = reader.read(
        committed=committed,
        held=committed,
        on_count=lambda done: on_digest(done, rows) if done % step == 0 or done == rows else None,
    )
    planned, failures = tuple(found.planned), tuple(found.failures)
    return PreparedRun(
        planned, found.current, failures, tuple(found.warnings), base, scorer, reader, _weak_reference(committed)
    )


def _weak_reference(committed: CommittedConcepts | None) -> Callable[[], CommittedConcepts | None]:
    return (lambda: None) if committed is None else weakref.ref(committed)


def tokenizer_of(base: ResolvedModel) -> Any:
    """Load the base model's tokenizer alone, to check the lengths of prompts."""
    from ...core.base_model import load_tokenizer  # transformers takes seconds to import

    return load_tokenizer(base.path)


@dataclass(slots=True)
class _RowOutcomes:
    """The rows of a manifest, fingerprinted and compared with the catalog.

    Attributes:
        committed: the catalog's concepts, to drop rows that are current; None: none is dropped.
        held: the catalog's concepts, by which rows go whose references cannot be reached.
        unchecked: why references cannot be reached of rows that go by what is committed of them.
    """

    committed: CommittedConcepts | None
    held: CommittedConcepts | None
    planned: list[PlannedConcept] = field(default_factory=list)
    current: CurrentRows = field(default_factory=CurrentRows)
    failures: list[ConceptFailure] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    unchecked: list[ConceptFailure] = field(default_factory=list)
    macro_classes: set[str] = field(default_factory=set)
    kept_rows: int = 0
    kept_bytes: int = 0

    def add_if_current(self, row: ManifestRow, fingerprints: Fingerprints) -> bool:
        """Add a row if the catalog holds it under these fingerprints; returns whether it does."""
        if self.committed is None or not self.committed.holds(row.concept_id, fingerprints):
            return False
        self.kept_rows += 1
        self.kept_bytes += sum(len(source.data or b"") for source in row.reference_images)
        if self.kept_rows > MAX_CURRENT_ROWS or self.kept_bytes > MAX_CURRENT_BYTES:
            self.current.add(row.concept_id, fingerprints)
        else:
            self.planned.append(PlannedConcept(row, fingerprints))
        return True


@dataclass(frozen=True)
class _RowReader:
    """Reads and fingerprints the rows of a manifest."""

    manifest_uri: str
    spec: RunSpec
    base: ResolvedModel
    scorer: ResolvedModel | None
    model_warnings: list[str] = field(default_factory=list)

    def check_spec(self) -> None:
        """Raise InvalidInput if the run spec does not suit the base model. Checked once."""
        _ = self._prompt_length_checker

    @cached_property
    def _prompt_length_checker(self) -> PromptLengthChecker:
        """Made when the first row needs work, because it loads torch and transformers."""
        self.model_warnings.extend(check_models(self.spec, self.base, self.scorer))
        training = self.spec.training
        return PromptLengthChecker(tokenizer_of(self.base), training.identifier_token, training.prompt)

    @cached_property
    def _fingerprinter(self) -> Fingerprinter:
        return Fingerprinter(self.spec, self.base.revision, self.scorer.revision if self.scorer else None)

    def read(
        self,
        *,
        committed: CommittedConcepts | None = None,
        held: CommittedConcepts | None = None,
        only: Collection[str] | None = None,
        on_count: Callable[[int], None] = lambda done: None,
    ) -> _RowOutcomes:
        """Fingerprint all rows of the manifest, or `only` those with these ids.

        Args:
            committed, held: as for `_RowOutcomes`.

        Raises:
            ManifestInvalid: the whole manifest is unusable; it has changed since it was first checked.
        """
        scan = ManifestScan(self.manifest_uri, default_prompts=self.spec.prompts, settings=self.spec.manifest)
        wanted = (row for row, is_valid in scan if is_valid and (only is None or row.concept_id in only))
        found, done = _RowOutcomes(committed, held), 0
        with ReferenceDigests(self.spec.references) as digests:
            for rows in _batches(wanted):
                found.macro_classes.update(row.macro_class for row in rows)
                changed: list[PlannedConcept] = []
                doubtful: list[tuple[ManifestRow, tuple[str, ...]]] = []
                for row, digested in zip(rows, digests.of_rows(rows), strict=True):
                    concept = self._compare(row, digested, found)
                    if concept and isinstance(digested, tuple) and digests.are_doubtful(row, digested):
                        doubtful.append((row, digested))
                        continue
                    changed.extend([concept] if concept else [])
                    on_count(done := done + 1)
                for (row, _), digested in zip(doubtful, digests.confirmed(doubtful), strict=True):
                    concept = self._compare(row, digested, found)
                    changed.extend([concept] if concept else [])
                    on_count(done := done + 1)
                self._add_changed(changed, found)
        if scan.manifest_problems:
            raise _manifest_invalid(self.manifest_uri, scan)
        found.planned = sorted(map(self._with_request, found.planned), key=lambda concept: concept.row.row)
        found.warnings += [*scan.warnings, *_unchecked_warning(found.unchecked), *self.model_warnings]
        found.warnings += drawn_world_warnings(self.spec, found.macro_classes)
        invalid = concept_failures(scan.problems)
        found.failures[:0] = [failure for failure in invalid if only is None or failure.concept_id in only]
        return found

    def _compare(self, row: ManifestRow, digested: RowDigests, found: _RowOutcomes) -> PlannedConcept | None:
        """Return a row that needs work, with its fingerprints; None: it is current or has failed, and `found` has it.

        If references cannot be reached now, what is committed for the row as it stands is taken to be theirs.
        """
        if isinstance(digested, ConceptFailure):
            found.failures.append(digested)
            return None
        if isinstance(digested, Unreachable):
            held = found.held.get(row.concept_id) if found.held is not None else None
            if held is None or held.request_digest != self._fingerprinter.request(row):
                found.failures.append(digested.failure)
                return None
            found.unchecked.append(digested.failure)
            fingerprints = self._fingerprinter.of_training(row, held.training_fingerprint)
        else:
            fingerprints = self._fingerprinter(row, digested)
        return None if found.add_if_current(row, fingerprints) else PlannedConcept(row, fingerprints)

    def _with_request(self, concept: PlannedConcept) -> PlannedConcept:
        fingerprints = replace(concept.fingerprints, request=self._fingerprinter.request(concept.row))
        return replace(concept, fingerprints=fingerprints)

    def _add_changed(self, changed: list[PlannedConcept], found: _RowOutcomes) -> None:
        """Plan rows that are not current, except those with prompts that the text encoder would truncate."""
        if not changed:
            return
        too_long = concept_failures(self._prompt_length_checker.check(concept.row for concept in changed))
        found.failures.extend(too_long)
        failed = {failure.concept_id for failure in too_long}
        found.planned.extend(concept for concept in changed if concept.concept_id not in failed)


def _unchecked_warning(unchecked: Sequence[ConceptFailure]) -> Iterator[str]:
    if not unchecked:
        return
    first = unchecked[0]
    names = ", ".join(failure.concept_id for failure in unchecked[:UNCHECKED_SHOWN])
    more = f" and {len(unchecked) - UNCHECKED_SHOWN} more" if len(unchecked) > UNCHECKED_SHOWN else ""
    yield (
        f"references of {plural(len(unchecked), 'committed concept')} could not be checked and count as unchanged: "
        f"{names}{more}; the first: {first.reason}. Fix: {first.fix}"
    )


def _batches(rows: Iterator[ManifestRow]) -> Iterator[list[ManifestRow]]:
    while batch := list(islice(rows, _BATCH_ROWS)):
        yield batch


def _manifest_invalid(manifest_uri: str, scan: ManifestScan) -> ManifestInvalid:
    problems = plural(len(scan.manifest_problems), "problem")
    return ManifestInvalid(
        f"manifest {manifest_uri} cannot be used: {problems} with the manifest as a whole",
        tuple(scan.problems),
        fix=f"correct what is listed above; `persres-batch validate {manifest_uri}` checks everything again",
    )
