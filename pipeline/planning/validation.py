"""Everything that can be known to be wrong with a manifest before a GPU is asked for."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from ...core.errors import Problem
from ..manifest.prompt_lengths import check_prompt_lengths
from ..manifest.row import ManifestRow
from ..manifest.scan import read_manifest
from ..references.images import OnProgress, check_references
from ..spec.run_spec import RunSpec


@dataclass(frozen=True, slots=True)
class ValidationReport:
    """`rows`: those without problems, of `row_count` in all. `problems`: by row. `warnings`: what is not refused."""

    rows: list[ManifestRow]
    problems: list[Problem]
    warnings: list[str]
    row_count: int

    @property
    def valid(self) -> bool:
        return not self.problems


def validate_manifest(
    uri: str | os.PathLike[str], spec: RunSpec, *, tokenizer: Any | None = None, on_progress: OnProgress | None = None
) -> ValidationReport:
    """Read the manifest, open and decode every image it names, and measure its prompts.

    A row with one problem is looked through for others, so that one pass finds all there is to mend.

    Args:
        tokenizer: the base model's; None leaves the length of prompts unchecked.
        on_progress: called with (rows done, rows in all) while images are opened.
    """
    reading = read_manifest(uri, default_prompts=spec.prompts)
    everything = sorted([*reading.rows, *reading.faulty_rows], key=lambda row: row.row)
    images = check_references(everything, spec.references, on_progress=on_progress)
    problems = [*reading.problems, *images.problems]
    if tokenizer is not None:
        problems += check_prompt_lengths(
            everything, tokenizer, spec.training.identifier_token, training_prompt=spec.training.prompt
        )
    problems.sort(key=lambda problem: -1 if problem.row is None else problem.row)
    faulty = {problem.row for problem in problems}
    rows = [row for row in reading.rows if row.row not in faulty]
    return ValidationReport(rows, problems, [*reading.warnings, *images.warnings], reading.row_count)
