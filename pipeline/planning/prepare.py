"""From a manifest's address to a plan: everything a run does before it needs a GPU or a Ray.

A manifest may have a million rows of which a hundred need work. So it is read some thousand rows at a time, each row
digested, fingerprinted and compared with the catalog. Those that are current are kept as their ids and 32 bytes of
fingerprints, only the others as objects. What would refuse the manifest as a whole is looked for first, before
anything is fetched.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any

from ...core.errors import ConceptFailure, InvalidInput, ManifestInvalid
from ..catalog.commit_record import Fingerprints
from ..catalog.committed import CommittedConcepts
from ..manifest.prompt_lengths import PromptLengths
from ..manifest.row import ManifestRow
from ..manifest.scan import ManifestScan, concept_failures, sound_row_count
from ..models.folder import ResolvedModel
from ..references.images import ReferenceDigests
from ..spec.run_spec import RunSpec
from .fingerprint import Fingerprinter
from .plan import PlannedConcept, RunPlan, plan_run
from .run_models import check_spec_fits, find_base_model, resolve_scorer

OnCount = Callable[[int, int], None]
"""Called with (done, of how many)."""

CURRENT_ROWS_KEPT = 10_000
"""So many current rows are kept as objects all the same: a report shows the references of concepts it did not touch."""

CURRENT_BYTES_KEPT = 256 * 2**20
"""Of images inside the manifest, those rows may hold so many bytes."""

_ROWS_AT_A_TIME = 4096
_COUNTS_SHOWN = 1000


@dataclass(slots=True)
class CurrentRows:
    """Rows that a catalog was seen to hold already: ids, and in the same order 32 bytes of fingerprints each."""

    ids: list[str] = field(default_factory=list)
    _digests: bytearray = field(default_factory=bytearray)

    def add(self, concept_id: str, fingerprints: Fingerprints) -> None:
        """`fingerprints`: as `Fingerprinter` makes them."""
        self.ids.append(concept_id)
        self._digests += bytes.fromhex(fingerprints.training + fingerprints.rendering)

    def __iter__(self) -> Iterator[tuple[str, Fingerprints]]:
        for index, concept_id in enumerate(self.ids):
            digits = self._digests[32 * index : 32 * index + 32].hex()
            yield concept_id, Fingerprints(digits[:32], digits[32:])


@dataclass(frozen=True, slots=True)
class PreparedRun:
    """A manifest, read and fingerprinted. Every row is in `planned`, in `current` or in `failures`; the first rows that
    are current are in `planned` too, and only there.
    """

    planned: tuple[PlannedConcept, ...]
    current: CurrentRows
    failures: tuple[ConceptFailure, ...]
    warnings: tuple[str, ...]
    base: ResolvedModel
    scorer: ResolvedModel | None
    _source: _Source
    _seen: Callable[[], CommittedConcepts | None]  # what `current` was found in, for as long as somebody has it

    def plan(self, committed: CommittedConcepts) -> RunPlan:
        """Sort the concepts into work and no work, given what the catalog holds now.

        Raises:
            InvalidInput: a row that is no longer current is no longer in the manifest either.
        """
        stale: set[str] = set()
        if self._seen() is not committed:
            stale = {concept_id for concept_id, prints in self.current if not committed.holds(concept_id, prints)}
        if not stale:
            return plan_run(self.planned, self.failures, committed, current=self.current.ids)
        # Another run has changed the catalog since, so there are rows to do that were not kept. They are read again.
        again = self._source.read(only=stale)
        found = [*(concept.concept_id for concept in again.planned), *(one.concept_id for one in again.failures)]
        if len(found) != len(stale):
            raise InvalidInput("the manifest has changed while the run was prepared", fix="submit again")
        current = [concept_id for concept_id in self.current.ids if concept_id not in stale]
        planned = sorted((*self.planned, *again.planned), key=lambda concept: concept.row.row)
        return plan_run(planned, (*self.failures, *again.failures), committed, current=current)


def prepare_run(
    manifest_uri: str,
    spec: RunSpec,
    committed: CommittedConcepts | None = None,
    *,
    on_digest: OnCount = lambda done, total: None,
) -> PreparedRun:
    """Read the manifest, find the models, and digest every concept's references.

    Args:
        committed: what the catalog is known to hold: rows that are current by it need little memory. None keeps all.
        on_digest: called with the rows whose references have been digested, and how many there are.

    Raises:
        ManifestInvalid: a fault that leaves no concept of the manifest to be trusted, with all problems.
        InvalidInput: a model cannot be found.
        StoreError: a model's store cannot be reached.
    """
    rows = sound_row_count(manifest_uri)
    if rows is None:
        scan = ManifestScan(manifest_uri, default_prompts=spec.prompts)
        rows = sum(1 for _ in scan)
        if scan.manifest_problems:
            raise _refused(manifest_uri, scan)
    base, scorer = find_base_model(spec, weights=False), resolve_scorer(spec, weights=False)
    source = _Source(manifest_uri, spec, base, scorer)
    if not committed:
        source.check_spec()  # before references are fetched: there is work to be done with this spec
    step = 1 + rows // _COUNTS_SHOWN
    found = source.read(
        committed=committed, on_count=lambda done: on_digest(done, rows) if done % step == 0 or done == rows else None
    )
    planned, failures = tuple(found.planned), tuple(found.failures)
    return PreparedRun(
        planned, found.current, failures, tuple(found.warnings), base, scorer, source, _reference(committed)
    )


def _reference(committed: CommittedConcepts | None) -> Callable[[], CommittedConcepts | None]:
    return (lambda: None) if committed is None else weakref.ref(committed)


def tokenizer_of(base: ResolvedModel) -> Any:
    """The base model's tokenizer alone, which measures prompts."""
    from ...core.base_model import load_tokenizer  # transformers takes seconds to import

    return load_tokenizer(base.path)


@dataclass(slots=True)
class _Found:
    """What has been made of the rows of a manifest so far."""

    planned: list[PlannedConcept] = field(default_factory=list)
    current: CurrentRows = field(default_factory=CurrentRows)
    failures: list[ConceptFailure] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    kept_rows: int = 0
    kept_bytes: int = 0

    def add_if_current(self, row: ManifestRow, fingerprints: Fingerprints, committed: CommittedConcepts | None) -> bool:
        """Keep a row that the catalog holds under these fingerprints; whether it does."""
        if committed is None or not committed.holds(row.concept_id, fingerprints):
            return False
        self.kept_rows += 1
        self.kept_bytes += sum(len(source.data or b"") for source in row.reference_images)
        if self.kept_rows > CURRENT_ROWS_KEPT or self.kept_bytes > CURRENT_BYTES_KEPT:
            self.current.add(row.concept_id, fingerprints)
        else:
            self.planned.append(PlannedConcept(row, fingerprints))
        return True


@dataclass(frozen=True)
class _Source:
    """Where the rows of a run come from, and what is needed to fingerprint them."""

    manifest_uri: str
    spec: RunSpec
    base: ResolvedModel
    scorer: ResolvedModel | None

    def check_spec(self) -> None:
        """Raise InvalidInput if the run spec does not fit the base model; compared once."""
        _ = self._prompt_lengths

    @cached_property
    def _prompt_lengths(self) -> PromptLengths:
        """What measures prompts. Loads torch and transformers, so only rows that need work ask for it."""
        check_spec_fits(self.spec, self.base.path, has_weights=self.base.has_weights)
        training = self.spec.training
        return PromptLengths(tokenizer_of(self.base), training.identifier_token, training.prompt)

    def read(
        self,
        *,
        committed: CommittedConcepts | None = None,
        only: Collection[str] | None = None,
        on_count: Callable[[int], None] = lambda done: None,
    ) -> _Found:
        """Fingerprint every row of the manifest, or `only` some.

        Raises:
            ManifestInvalid: the manifest as a whole is at fault, though it was not a moment ago.
        """
        fingerprinter = Fingerprinter(self.spec, self.base.revision, self.scorer.revision if self.scorer else None)
        scan = ManifestScan(self.manifest_uri, default_prompts=self.spec.prompts)
        wanted = (row for row, is_sound in scan if is_sound and (only is None or row.concept_id in only))
        found, done = _Found(), 0
        with ReferenceDigests(self.spec.references) as digests:
            for rows in _portions(wanted):
                changed: list[PlannedConcept] = []
                for row, digested in zip(rows, digests.of_rows(rows), strict=True):
                    if isinstance(digested, ConceptFailure):
                        found.failures.append(digested)
                    elif not found.add_if_current(row, fingerprints := fingerprinter(row, digested), committed):
                        changed.append(PlannedConcept(row, fingerprints))
                    on_count(done := done + 1)
                self._add_changed(changed, found)
        if scan.manifest_problems:
            raise _refused(self.manifest_uri, scan)
        found.planned.sort(key=lambda concept: concept.row.row)
        found.warnings += scan.warnings
        faulty = concept_failures(scan.problems)
        found.failures[:0] = [failure for failure in faulty if only is None or failure.concept_id in only]
        return found

    def _add_changed(self, changed: list[PlannedConcept], found: _Found) -> None:
        """Plan rows that are not current, but for those whose prompts the text encoder would cut off."""
        if not changed:
            return
        too_long = concept_failures(self._prompt_lengths.problems(concept.row for concept in changed))
        found.failures.extend(too_long)
        failed = {failure.concept_id for failure in too_long}
        found.planned.extend(concept for concept in changed if concept.concept_id not in failed)


def _portions(rows: Iterator[ManifestRow]) -> Iterator[list[ManifestRow]]:
    while portion := list(islice(rows, _ROWS_AT_A_TIME)):
        yield portion


def _refused(manifest_uri: str, scan: ManifestScan) -> ManifestInvalid:
    count = len(scan.manifest_problems)
    problems = "a problem" if count == 1 else f"{count} problems"
    return ManifestInvalid(
        f"manifest {manifest_uri} cannot be used: {problems} with the manifest as a whole",
        tuple(scan.problems),
        fix=f"mend what is listed above; `persres-batch validate {manifest_uri}` checks everything again",
    )
