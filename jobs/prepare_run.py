"""From a manifest's address to a plan: everything a run does before it needs a GPU or a Ray."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..core.errors import ConceptFailure, ManifestInvalid, Problem
from ..pipeline.base_model_files import ResolvedModel, resolve_base_model, resolve_scorer
from ..pipeline.commit_record import CommittedConcept
from ..pipeline.fingerprint import fingerprint
from ..pipeline.manifest import ManifestReading, ManifestRow, check_prompt_lengths, concept_failures, read_manifest
from ..pipeline.plan import PlannedConcept, RunPlan, plan_run
from ..pipeline.reference_images import digest_rows
from ..pipeline.run_spec import RunSpec

OnCount = Callable[[int, int], None]
"""Called with (done, of how many)."""


@dataclass(frozen=True, slots=True)
class PreparedRun:
    """A manifest, read and fingerprinted. Every row is in `planned` or in `failures`, once."""

    planned: tuple[PlannedConcept, ...]
    failures: tuple[ConceptFailure, ...]
    warnings: tuple[str, ...]
    base: ResolvedModel
    scorer: ResolvedModel | None

    def plan(self, committed: Mapping[str, CommittedConcept]) -> RunPlan:
        """Sort the concepts into work and no work, given what the catalog holds."""
        return plan_run(self.planned, self.failures, committed)


def prepare_run(manifest_uri: str, spec: RunSpec, *, on_digest: OnCount = lambda done, total: None) -> PreparedRun:
    """Read the manifest, find the models, and digest every concept's references.

    Args:
        on_digest: called for every row whose references have been digested.

    Raises:
        ManifestInvalid: a fault that leaves no concept of the manifest to be trusted, with all problems.
        InvalidInput: a model cannot be found.
    """
    reading = read_manifest(manifest_uri, default_prompts=spec.prompts)
    if reading.manifest_problems:
        raise _refused(manifest_uri, reading)
    base, scorer = resolve_base_model(spec), resolve_scorer(spec)
    failures = list(concept_failures([*reading.problems, *_too_long_prompts(reading.rows, spec, base)]))
    failed = {failure.concept_id for failure in failures}
    rows = [row for row in reading.rows if row.concept_id not in failed]
    digested = digest_rows(rows, spec.references, on_progress=on_digest)
    scorer_revision = scorer.revision if scorer else None
    planned = tuple(
        PlannedConcept(row, fingerprint(row, digested.digests[row.concept_id], spec, base.revision, scorer_revision))
        for row in rows
        if row.concept_id in digested.digests
    )
    return PreparedRun(planned, (*failures, *digested.failures), tuple(reading.warnings), base, scorer)


def tokenizer_of(base: ResolvedModel) -> Any:
    """The base model's tokenizer alone, which measures prompts."""
    from ..core.base_model import load_tokenizer  # transformers takes seconds to import

    return load_tokenizer(base.path)


def _too_long_prompts(rows: Sequence[ManifestRow], spec: RunSpec, base: ResolvedModel) -> list[Problem]:
    training = spec.training
    return check_prompt_lengths(rows, tokenizer_of(base), training.identifier_token, training_prompt=training.prompt)


def _refused(manifest_uri: str, reading: ManifestReading) -> ManifestInvalid:
    count = len(reading.manifest_problems)
    problems = "a problem" if count == 1 else f"{count} problems"
    return ManifestInvalid(
        f"manifest {manifest_uri} cannot be used: {problems} with the manifest as a whole",
        tuple(reading.problems),
        fix=f"mend what is listed above; `persres-batch validate {manifest_uri}` checks everything again",
    )
