"""Read a manifest, the table of requested concepts, and say everything that is wrong with it in one pass.

Parquet is read batch by batch and JSON lines line by line, so that what is held in memory is the rows themselves.
"""

from __future__ import annotations

import difflib
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, cast

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.types as pt

from ..core.concept import expand_template
from ..core.errors import ConceptFailure, Problem
from .manifest_row import (
    ManifestRow,
    ReferenceSource,
    parent_folder,
    parse_row,
    shown,
    without_credentials,
)

__all__ = [
    "ManifestReading",
    "ManifestRow",
    "ReferenceSource",
    "check_prompt_lengths",
    "concept_failures",
    "read_manifest",
]

REQUIRED_COLUMNS = ("concept_id", "macro_class", "reference_images")
OPTIONAL_COLUMNS = ("prompts", "masks", "seed", "metadata")
COLUMNS = REQUIRED_COLUMNS + OPTIONAL_COLUMNS

_BATCH_ROWS = 256
_INLINE_BYTES_WORTH_A_WARNING = 1 << 30
_NO_LENGTH_LIMIT = 10**6  # tokenizers without a limit report an astronomical one


@dataclass(frozen=True, slots=True)
class ManifestReading:
    """What a manifest holds.

    Attributes:
        rows: the rows without problems, in the manifest's order.
        problems: everything that is wrong, by row.
        warnings: what a person should know but nothing is refused for.
        faulty_rows: the rows with problems, holding what could be read of them, so that the rest can be checked too.
    """

    rows: list[ManifestRow] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    faulty_rows: list[ManifestRow] = field(default_factory=list)

    @property
    def row_count(self) -> int:
        return len(self.rows) + len(self.faulty_rows)

    @property
    def manifest_problems(self) -> list[Problem]:
        """The problems for which a run must not start."""
        return [problem for problem in self.problems if problem.level == "manifest"]


def concept_failures(problems: Iterable[Problem]) -> tuple[ConceptFailure, ...]:
    """The concept-level problems as one failure a concept, its reasons joined."""
    by_concept: dict[str, list[Problem]] = {}
    for problem in problems:
        if problem.level == "concept" and problem.concept_id:
            by_concept.setdefault(problem.concept_id, []).append(problem)
    return tuple(
        ConceptFailure(
            concept_id,
            "load",
            "; ".join(f"{problem.reason} ({problem.column}: {problem.value})" for problem in found),
            "; ".join(dict.fromkeys(problem.fix for problem in found)),
        )
        for concept_id, found in by_concept.items()
    )


def read_manifest(uri: str | os.PathLike[str], *, default_prompts: Sequence[str]) -> ManifestReading:
    """Read the manifest at a path or fsspec URI.

    Args:
        uri: a `.parquet` file, or `.jsonl` with an object a line.
        default_prompts: the prompt set of rows whose `prompts` is null.

    Returns:
        All rows and all problems. Nothing about the file's content raises; a file that cannot be read is a problem.
    """
    uri = os.fspath(uri)
    reading = _Reading(parent_folder(uri), tuple(default_prompts))
    suffix = os.path.splitext(uri.split("?")[0] if "://" in uri else uri)[1].lower()
    formats = {".parquet": reading.parquet, ".pq": reading.parquet}
    formats |= dict.fromkeys((".jsonl", ".ndjson", ".json"), reading.json_lines)
    if suffix not in formats:
        what = f"the file type {suffix!r} is not a manifest's"
        reading.refuse(what, "write it as Parquet (.parquet) or JSON lines (.jsonl)", value=without_credentials(uri))
        return reading.result()
    try:
        with fsspec.open(uri, "rb") as file:
            formats[suffix](cast(BinaryIO, file))
    except FileNotFoundError:
        reading.refuse("there is no such file", "check the manifest's path", value=without_credentials(uri))
    except Exception as error:  # Arrow, the store and the codecs each raise their own kinds
        first_line = (str(error).splitlines() or [""])[0].replace(uri, without_credentials(uri))
        what = f"the file cannot be read: {type(error).__name__}: {first_line}"
        reading.refuse(what, "check that it is complete, write it again", value=without_credentials(uri))
    return reading.result()


class _Reading:
    """The state of one pass over a manifest."""

    def __init__(self, folder: str, default_prompts: tuple[str, ...]) -> None:
        self._folder = folder
        self._default_prompts = default_prompts
        self._reading = ManifestReading()
        self._first_row_of: dict[str, int] = {}
        self._unusable: set[str] = set()
        self._inline_bytes = 0
        self._rows_are_unreadable = False

    def refuse(
        self, reason: str, fix: str, *, column: str | None = None, value: str = "", row: int | None = None
    ) -> None:
        self._rows_are_unreadable |= column is None
        self._reading.problems.append(Problem(reason, fix, "manifest", row, None, column, value))

    def parquet(self, file: BinaryIO) -> None:
        parquet = pq.ParquetFile(file)
        schema = parquet.schema_arrow
        self._name_unknown(schema.names)
        for name, count in Counter(schema.names).items():
            if name in COLUMNS and count > 1:
                self._unusable.add(name)
                self.refuse(f"the column {name} is there {count} times", "keep one", column=name)
        for name in set(COLUMNS) & set(schema.names) - self._unusable:
            kind = schema.field(name).type
            expected, fits = _COLUMN_TYPES[name]
            if not fits(kind):
                self._unusable.add(name)
                self.refuse(f"the column is not {expected}", f"cast it to {expected}", column=name, value=str(kind))
        self._name_missing(schema.names)
        usable = [name for name in COLUMNS if name in schema.names and name not in self._unusable]
        row = 0
        for batch in parquet.iter_batches(batch_size=_BATCH_ROWS, columns=usable):
            for values in batch.to_pylist():
                self._add(values, row)
                row += 1

    def json_lines(self, file: BinaryIO) -> None:
        names: dict[str, None] = {}
        row = 0
        for number, line in enumerate(io.TextIOWrapper(file, encoding="utf-8-sig"), start=1):
            if not line.strip():
                continue
            values = self._json_object(line, number, row)
            if values is not None:
                names.update(dict.fromkeys(values))
                self._add(values, row)
            row += 1
        self._name_unknown(names)
        if names:  # a column that no line has is one problem, not one a row
            self._reading.problems[:] = [
                problem
                for problem in self._reading.problems
                if problem.column in names or problem.column not in REQUIRED_COLUMNS
            ]
            self._name_missing(names)

    def result(self) -> ManifestReading:
        reading = self._reading
        if not reading.row_count and not self._rows_are_unreadable:
            self.refuse("the manifest has no rows", "add a row for every concept")
        if self._inline_bytes > _INLINE_BYTES_WORTH_A_WARNING:
            gibibytes = self._inline_bytes / 2**30
            reading.warnings.append(
                f"{gibibytes:.1f} GiB of images are inside the manifest and held in memory; images behind URIs are not"
            )
        if any(row.masks for row in reading.rows):
            reading.warnings.append("masks are checked, but training does not use them yet")
        order = {name: index for index, name in enumerate(COLUMNS)}
        reading.problems.sort(key=lambda p: (-1 if p.row is None else p.row, order.get(p.column or "", -1)))
        return reading

    def _add(self, values: dict[str, Any], row: int) -> None:
        parsed, problems = parse_row(
            values,
            row=row,
            folder=self._folder,
            default_prompts=self._default_prompts,
            unusable=frozenset(self._unusable),
        )
        first = self._first_row_of.setdefault(parsed.concept_id, row) if parsed.concept_id else row
        if first != row:
            reason, fix = f"the id is already used by row {first}", "give each concept one row and its own id"
            problems.append(Problem(reason, fix, "manifest", row, parsed.concept_id, "concept_id", parsed.concept_id))
        self._inline_bytes += sum(len(source.data or b"") for source in parsed.reference_images)
        (self._reading.faulty_rows if problems else self._reading.rows).append(parsed)
        self._reading.problems.extend(problems)

    def _json_object(self, line: str, number: int, row: int) -> dict[str, Any] | None:
        fix = "write one JSON object a line, without commas or brackets around the lines"
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            self.refuse(f"line {number} is not JSON: {shown(str(error))}", fix, value=shown(line.strip()), row=row)
            return None
        if not isinstance(values, dict):
            self.refuse(f"line {number} is not a JSON object", fix, value=shown(line.strip()), row=row)
            return None
        return values

    def _name_unknown(self, names: Iterable[str]) -> None:
        for name in names:
            if name not in COLUMNS and not name.startswith("__index_level_"):  # pandas' row labels
                known = ", ".join(COLUMNS)
                self._reading.warnings.append(f"the column {name!r} is not used; a manifest's columns are {known}")

    def _name_missing(self, names: Iterable[str]) -> None:
        names = tuple(names)
        for column in REQUIRED_COLUMNS:
            if column not in names:
                self._unusable.add(column)
                near = difflib.get_close_matches(column, [name for name in names if name not in COLUMNS], n=1)
                fix = f"rename the column {near[0]!r} to {column!r}" if near else f"add the column {column!r}"
                self.refuse("the column is missing", fix, column=column)


def _is_text(kind: pa.DataType) -> bool:
    if pt.is_dictionary(kind):
        return _is_text(kind.value_type)
    return pt.is_string(kind) or pt.is_large_string(kind) or pt.is_string_view(kind)


def _is_list(kind: pa.DataType, item: Callable[[pa.DataType], bool]) -> bool:
    shapes = (pt.is_list, pt.is_large_list, pt.is_fixed_size_list, pt.is_list_view, pt.is_large_list_view)
    return any(is_shape(kind) for is_shape in shapes) and (pt.is_null(kind.value_type) or item(kind.value_type))


def _is_source(kind: pa.DataType) -> bool:
    """A URI, or the struct that Hugging Face `datasets` writes for an image."""
    if not pt.is_struct(kind):
        return _is_text(kind)
    return {"bytes", "path"} & {kind.field(index).name for index in range(kind.num_fields)} != set()


def _optional(fits: Callable[[pa.DataType], bool]) -> Callable[[pa.DataType], bool]:
    return lambda kind: pt.is_null(kind) or fits(kind)


_IMAGES = "a list of strings or of structs {bytes, path}"
_COLUMN_TYPES: dict[str, tuple[str, Callable[[pa.DataType], bool]]] = {
    "concept_id": ("a string", _is_text),
    "macro_class": ("a string", _is_text),
    "reference_images": (_IMAGES, lambda kind: _is_list(kind, _is_source)),
    "prompts": ("a list of strings", _optional(lambda kind: _is_list(kind, _is_text))),
    "masks": (_IMAGES, _optional(lambda kind: _is_list(kind, _is_source))),
    "seed": ("an integer", _optional(lambda kind: pt.is_integer(kind) or pt.is_floating(kind))),
    "metadata": ("a map of strings", _optional(lambda kind: pt.is_map(kind) or pt.is_struct(kind))),
}


def check_prompt_lengths(
    rows: Iterable[ManifestRow], tokenizer: Any, identifier_token: str, *, training_prompt: str | None = None
) -> list[Problem]:
    """The prompts that the text encoder would cut off, once the concept's words are in them.

    Args:
        tokenizer: a Hugging Face tokenizer; its `model_max_length` is the limit, start and end tokens included.
        identifier_token: the word that stands for V*.
        training_prompt: the template that every concept is trained with, to be checked too.
    """
    limit = int(tokenizer.model_max_length)
    if limit > _NO_LENGTH_LIMIT:
        return []
    lengths: dict[str, int] = {}
    problems = []
    for row in rows:
        templates = [("prompts", prompt) for prompt in row.prompts]
        if training_prompt is not None:
            templates.append(("macro_class", training_prompt))
        for column, template in templates:
            text = expand_template(template, identifier_token, row.macro_class)
            if text not in lengths:
                lengths[text] = len(tokenizer(text, truncation=False, verbose=False)["input_ids"])
            if lengths[text] > limit:
                what = "prompt" if column == "prompts" else "training prompt"
                reason = f"the {what} is {lengths[text]} tokens long, the text encoder reads {limit}"
                fix = f"shorten it by {lengths[text] - limit}"
                problems.append(Problem(reason, fix, "concept", row.row, row.concept_id, column, shown(text)))
    return problems
