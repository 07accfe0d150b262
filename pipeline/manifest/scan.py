"""Read a manifest, the table of requested concepts, and say everything that is wrong with it in one pass.

Parquet is read batch by batch and JSON lines line by line. A `ManifestScan` keeps no row, only what is
wrong with some; `read_manifest` keeps them all.
"""

from __future__ import annotations

import io
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, cast

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from ...core.concept import CONCEPT_ID_PATTERN
from ...core.errors import ConceptFailure, Problem
from .columns import COLUMNS, REQUIRED_COLUMNS, column_problems, missing_columns, unused_columns
from .row import ManifestRow, parent_folder, parse_row, shown, without_credentials
from .text import half_character_fault

_PARQUET = (".parquet", ".pq")
_JSON_LINES = (".jsonl", ".ndjson", ".json")
_BATCH_ROWS = 256
_INLINE_BYTES_WORTH_A_WARNING = 1 << 30


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
    scan = ManifestScan(uri, default_prompts=default_prompts)
    reading = ManifestReading(problems=scan.problems, warnings=scan.warnings)
    for row, is_sound in scan:
        (reading.rows if is_sound else reading.faulty_rows).append(row)
    return reading


def sound_row_count(uri: str) -> int | None:
    """How many rows a Parquet manifest has, if nothing is wrong with its columns and ids; None: look closer.

    Reads the ids alone, so that a manifest that cannot be used is refused before its references are fetched.
    """
    if not uri.endswith(_PARQUET):
        return None
    try:
        with fsspec.open(uri, "rb") as file:
            parquet = pq.ParquetFile(file)
            if any(column_problems(parquet.schema_arrow)) or any(missing_columns(parquet.schema_arrow.names)):
                return None
            ids = parquet.read(["concept_id"]).column(0).to_pylist()
    except Exception:  # whatever it is, a full scan says it better
        return None
    sound = all(one is not None and CONCEPT_ID_PATTERN.fullmatch(one) for one in ids) and len(set(ids)) == len(ids)
    return len(ids) if sound and ids else None


class _KeyTwice(ValueError):
    """A JSON object names one key twice, of which Python would take the last unseen."""


def _named_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise _KeyTwice(next(repr(key) for key, count in Counter(key for key, _ in pairs).items() if count > 1))
    return values


_JSON = json.JSONDecoder(object_pairs_hook=_named_once)


def _why_unreadable(error: Exception, uri: str) -> tuple[str, str]:
    """What a person should know and do about a manifest whose reading ended in `error`."""
    first_line = (str(error).splitlines() or [""])[0].replace(uri, without_credentials(uri))
    match error:
        case FileNotFoundError():
            return "there is no such file", "check the manifest's path"
        case IsADirectoryError():
            return "it is a folder", "name the manifest in it"
        case PermissionError():
            return "it may not be read", "check its permissions and who you are logged in as"
        case ImportError():
            return f"its store needs a package that is not installed: {first_line}", "install it"
        case ValueError() if "Protocol not known" in first_line:
            return (
                "there is no store of that kind",
                "give a path, or a URI that begins with s3://, gs://, az:// or https://",
            )
    what = f"the file cannot be read: {type(error).__name__}: {shown(first_line)}"
    return what, "check that it can be reached and is complete, or write it again"


class ManifestScan:
    """One pass over a manifest, as `read_manifest` makes it, that keeps no rows.

    Iterating, once, gives (row, whether it is without problems) for every row that could be made out, in order.
    After the last one `problems` and `warnings` are complete and sorted by row.
    """

    def __init__(self, uri: str | os.PathLike[str], *, default_prompts: Sequence[str]) -> None:
        self.problems: list[Problem] = []
        self.warnings: list[str] = []
        self.row_count = 0
        self._inline_bytes = 0
        self._uri = os.fspath(uri)
        self._folder = parent_folder(self._uri)
        self._default_prompts = tuple(default_prompts)
        self._first_row_of: dict[str, int] = {}
        self._unusable: frozenset[str] = frozenset()
        self._rows_are_unreadable = False
        self._has_masks = False

    @property
    def manifest_problems(self) -> list[Problem]:
        """The problems for which a run must not start."""
        return [problem for problem in self.problems if problem.level == "manifest"]

    def __iter__(self) -> Iterator[tuple[ManifestRow, bool]]:
        uri = self._uri
        suffix = os.path.splitext(uri.split("?")[0] if "://" in uri else uri)[1].lower()
        formats = dict.fromkeys(_PARQUET, self._parquet) | dict.fromkeys(_JSON_LINES, self._json_lines)
        if suffix not in formats:
            what = f"the file type {suffix!r} is not a manifest's"
            self._refuse(what, "write it as Parquet (.parquet) or JSON lines (.jsonl)")
            return
        try:
            with fsspec.open(uri, "rb") as file:
                yield from formats[suffix](cast(BinaryIO, file))
        except Exception as error:  # Arrow, the store and the codecs each raise their own kinds
            self._refuse(*_why_unreadable(error, uri))
        self._complete()

    def _parquet(self, file: BinaryIO) -> Iterator[tuple[ManifestRow, bool]]:
        parquet = pq.ParquetFile(file)
        names = parquet.schema_arrow.names
        self.warnings.extend(unused_columns(names))
        self._report_columns([*column_problems(parquet.schema_arrow), *missing_columns(names)])
        usable = [name for name in COLUMNS if name in names and name not in self._unusable]
        for batch in parquet.iter_batches(batch_size=_BATCH_ROWS, columns=usable):
            try:
                rows = batch.to_pylist()
            except UnicodeDecodeError:
                self._refuse_undecodable(batch)
                return
            for values in rows:
                yield self._parsed(values)

    def _json_lines(self, file: BinaryIO) -> Iterator[tuple[ManifestRow, bool]]:
        names: dict[str, None] = {}
        # Bytes that are not UTF-8 become lone surrogates, so that the line which has them can be told.
        lines = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape")
        for number, line in enumerate(lines, start=1):
            if half_character_fault(line):
                fix = "save the manifest as UTF-8"
                self._refuse(f"line {number} is not UTF-8", fix, value=shown(line.strip()), row=self.row_count)
                return
            if not line.strip():
                continue
            values = self._json_object(line, number)
            if values is not None:
                names.update(dict.fromkeys(values))
                yield self._parsed(values)
        self.warnings.extend(unused_columns(names))
        if names:  # a column that no line has is one problem, not one a row
            self.problems[:] = [
                problem
                for problem in self.problems
                if problem.column in names or problem.column not in REQUIRED_COLUMNS
            ]
            self._report_columns([*missing_columns(names)])

    def _complete(self) -> None:
        if not self.row_count and not self._rows_are_unreadable:
            self._refuse("the manifest has no rows", "add a row for every concept", value="")
        if self._inline_bytes > _INLINE_BYTES_WORTH_A_WARNING:
            self.warnings.append(
                f"{self._inline_bytes / 2**30:.1f} GiB of images are inside the manifest; those of all concepts that "
                "need work are held in memory, images behind URIs are not"
            )
        if self._has_masks:
            self.warnings.append("masks are checked, but training does not use them yet")
        order = {name: index for index, name in enumerate(COLUMNS)}
        self.problems.sort(key=lambda p: (-1 if p.row is None else p.row, order.get(p.column or "", -1)))

    def _parsed(self, values: dict[str, Any]) -> tuple[ManifestRow, bool]:
        row, self.row_count = self.row_count, self.row_count + 1
        parsed, problems = parse_row(
            values, row=row, folder=self._folder, default_prompts=self._default_prompts, unusable=self._unusable
        )
        first = self._first_row_of.setdefault(parsed.concept_id, row) if parsed.concept_id else row
        if first != row:
            reason, fix = f"the id is already used by row {first}", "give each concept one row and its own id"
            problems.append(Problem(reason, fix, "manifest", row, parsed.concept_id, "concept_id", parsed.concept_id))
        for source in parsed.reference_images:
            if source.data is not None:
                self._inline_bytes += len(source.data)
        self._has_masks |= bool(parsed.masks) and not problems
        self.problems.extend(problems)
        return parsed, not problems

    def _json_object(self, line: str, number: int) -> dict[str, Any] | None:
        try:
            values = _JSON.decode(line.strip())
        except _KeyTwice as error:
            return self._refuse_line(f"line {number} gives {shown(str(error))} twice", line, "keep one of them")
        except (ValueError, RecursionError) as error:
            return self._refuse_line(f"line {number} is not JSON: {shown(str(error))}", line)
        return values if isinstance(values, dict) else self._refuse_line(f"line {number} is not a JSON object", line)

    def _refuse_line(self, reason: str, line: str, fix: str = "") -> None:
        fix = fix or "write one JSON object a line, without commas or brackets around the lines"
        self._refuse(reason, fix, value=shown(line.strip()), row=self.row_count)
        self.row_count += 1

    def _refuse_undecodable(self, batch: pa.RecordBatch) -> None:
        """Name the first text of a batch that is not UTF-8."""
        for name, values in zip(batch.schema.names, batch.columns, strict=True):
            for index in range(len(values)):
                try:
                    values[index].as_py()
                except UnicodeDecodeError as error:
                    row, value = self.row_count + index, shown(error.object[:80])
                    self._rows_are_unreadable = True
                    fix = "write the text as UTF-8"
                    self.problems.append(Problem("the text is not UTF-8", fix, "manifest", row, None, name, value))
                    return

    def _refuse(self, reason: str, fix: str, *, value: str | None = None, row: int | None = None) -> None:
        shown_value = without_credentials(self._uri) if value is None else value
        self._rows_are_unreadable = True
        self.problems.append(Problem(reason, fix, "manifest", row, None, None, shown_value))

    def _report_columns(self, problems: list[Problem]) -> None:
        self._unusable |= {problem.column for problem in problems if problem.column}
        self.problems.extend(problems)
