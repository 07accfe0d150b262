"""Validate a manifest: find all problems that do not need a GPU to be found."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from ...core.errors import Problem
from ..manifest.prompt_lengths import PromptLengthChecker
from ..manifest.row import ManifestRow
from ..manifest.scan import read_manifest
from ..manifest.suspicions import suspicions
from ..references.images import OnProgress, check_references
from ..spec.run_spec import RunSpec
from .run_models import drawn_world_warnings


@dataclass(frozen=True, slots=True)
class ValidationReport:
    """All problems of a manifest.

    Attributes:
        rows: the rows without problems, of `row_count` in all.
        problems: sorted by row.
        warnings: messages about things that are accepted.
    """

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
    """Read a manifest, fetch and decode all of its images, and check the lengths of its prompts.

    A row with a problem is checked for others too, so that one pass finds all of them.

    Args:
        tokenizer: the base model's; None: lengths of prompts are not checked.
        on_progress: called with (rows checked, rows in all) while images are decoded.
    """
    manifest = read_manifest(uri, default_prompts=spec.prompts, settings=spec.manifest)
    all_rows = sorted([*manifest.rows, *manifest.invalid_rows], key=lambda row: row.row)
    images = check_references(all_rows, spec.references, on_progress=on_progress)
    problems = [*manifest.problems, *images.problems]
    if tokenizer is not None:
        checker = PromptLengthChecker(tokenizer, spec.training.identifier_token, spec.training.prompt)
        problems += checker.check(all_rows)
    problems.sort(key=lambda problem: -1 if problem.row is None else problem.row)
    invalid = {problem.row for problem in problems}
    rows = [row for row in manifest.rows if row.row not in invalid]
    texts = suspicions(
        all_rows,
        identifier_token=spec.training.identifier_token,
        spec_prompts=spec.prompts,
        training_prompt=spec.training.prompt,
    )
    drawn = drawn_world_warnings(spec, (row.macro_class for row in all_rows))
    warnings = [*manifest.warnings, *texts, *images.warnings, *drawn]
    return ValidationReport(rows, problems, warnings, manifest.row_count)
