"""Read a manifest, the table of requested concepts, and find all of its problems in one pass.

Parquet is read batch by batch, JSON lines line by line. `ManifestScan` yields rows and keeps only problems;
`read_manifest` keeps all rows.
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
from ..storage.uri import without_credentials
from .columns import COLUMNS, REQUIRED_COLUMNS, column_problems, missing_columns, unused_columns
from .row import ManifestRow, parent_folder, parse_row, shorten
from .text import check_surrogates

_PARQUET = (".parquet", ".pq")
_JSON_LINES = (".jsonl", ".ndjson", ".json")
MANIFEST_SUFFIXES = (*_PARQUET, *_JSON_LINES)
_BATCH_ROWS = 256
_EMBEDDED_BYTES_WARNING = 1 << 30


@dataclass(frozen=True, slots=True)
class ParsedManifest:
    """All rows and problems of a manifest.

    Attributes:
        rows: the rows without problems, in the manifest's order.
        problems: all problems, sorted by row.
        warnings: messages about things that are accepted.
        invalid_rows: the rows with problems, with the values that could be parsed, so that these can be checked too.
    """

    rows: list[ManifestRow] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    invalid_rows: list[ManifestRow] = field(default_factory=list)

    @property
    def row_count(self) -> int:
        return len(self.rows) + len(self.invalid_rows)

    @property
    def manifest_problems(self) -> list[Problem]:
        """The problems that make the whole manifest unusable."""
        return [problem for problem in self.problems if problem.level == "manifest"]


def concept_failures(problems: Iterable[Problem]) -> tuple[ConceptFailure, ...]:
    """One failure per concept with concept-level problems, its reasons joined."""
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


def read_manifest(uri: str | os.PathLike[str], *, default_prompts: Sequence[str]) -> ParsedManifest:
    """Read the manifest at a path or fsspec URI.

    Args:
        uri: a `.parquet` file, or a `.jsonl` file with one object per line.
        default_prompts: the prompts of rows whose `prompts` is null.

    Returns:
        All rows and all problems. No content of the file raises; a file that cannot be read is a problem.
    """
    scan = ManifestScan(uri, default_prompts=default_prompts)
    parsed = ParsedManifest(problems=scan.problems, warnings=scan.warnings)
    for row, is_valid in scan:
        (parsed.rows if is_valid else parsed.invalid_rows).append(row)
    return parsed


def row_count_if_valid(uri: str) -> int | None:
    """The number of rows of a Parquet manifest whose columns and ids are valid; otherwise None.

    Reads the column of ids alone: a cheap check before references are fetched. None asks for a full scan, which finds
    the problems or reads the formats that this check does not.
    """
    if not uri.endswith(_PARQUET):
        return None
    try:
        with fsspec.open(uri, "rb") as file:
            parquet = pq.ParquetFile(file)
            if any(column_problems(parquet.schema_arrow)) or any(missing_columns(parquet.schema_arrow.names)):
                return None
            ids = parquet.read(["concept_id"]).column(0).to_pylist()
    except Exception:  # of any kind: a full scan reports it
        return None
    valid = all(one is not None and CONCEPT_ID_PATTERN.fullmatch(one) for one in ids) and len(set(ids)) == len(ids)
    return len(ids) if valid and ids else None


class _DuplicateKey(ValueError):
    """A JSON object has a key twice; Python would silently take the last."""


def _reject_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise _DuplicateKey(next(repr(key) for key, count in Counter(key for key, _ in pairs).items() if count > 1))
    return values


_JSON = json.JSONDecoder(object_pairs_hook=_reject_duplicate_keys)


def _read_error(error: Exception, uri: str) -> tuple[str, str]:
    """The reason and the fix of an exception raised while a manifest was read."""
    first_line = (str(error).splitlines() or [""])[0].replace(uri, without_credentials(uri))
    match error:
        case FileNotFoundError():
            return "there is no such file", "check the manifest's path"
        case IsADirectoryError():
            return "it is a folder", "name the manifest in it"
        case PermissionError():
            return "permission to read it is denied", "check its permissions and your credentials"
        case ImportError():
            return f"its store needs a package that is not installed: {first_line}", "install it"
        case ValueError() if "Protocol not known" in first_line:
            return (
                "its URI has an unknown scheme",
                "give a path, or a URI that begins with s3://, gs://, az:// or https://",
            )
    what = f"the file cannot be read: {type(error).__name__}: {shorten(first_line)}"
    return what, "check that it can be reached and is complete, or write it again"


class ManifestScan:
    """One pass over a manifest that keeps no rows; arguments as for `read_manifest`.

    Iterate once: yields (row, is_valid) for each row that could be parsed, in order. After the last row, `problems`
    and `warnings` are complete, and problems are sorted by row.
    """

    def __init__(self, uri: str | os.PathLike[str], *, default_prompts: Sequence[str]) -> None:
        self.problems: list[Problem] = []
        self.warnings: list[str] = []
        self.row_count = 0
        self._embedded_bytes = 0
        self._uri = os.fspath(uri)
        self._folder = parent_folder(self._uri)
        self._default_prompts = tuple(default_prompts)
        self._row_by_id: dict[str, int] = {}
        self._invalid_columns: frozenset[str] = frozenset()
        self._has_unreadable_rows = False
        self._has_masks = False

    @property
    def manifest_problems(self) -> list[Problem]:
        """The problems that make the whole manifest unusable."""
        return [problem for problem in self.problems if problem.level == "manifest"]

    def __iter__(self) -> Iterator[tuple[ManifestRow, bool]]:
        uri = self._uri
        suffix = os.path.splitext(uri.split("?")[0] if "://" in uri else uri)[1].lower()
        formats = dict.fromkeys(_PARQUET, self._scan_parquet) | dict.fromkeys(_JSON_LINES, self._scan_json_lines)
        if suffix not in formats:
            what = f"the file type {suffix!r} is not supported"
            self._report_unreadable(what, "write it as Parquet (.parquet) or JSON lines (.jsonl)")
            return
        try:
            with fsspec.open(uri, "rb") as file:
                yield from formats[suffix](cast(BinaryIO, file))
        except Exception as error:  # Arrow, the store and the codecs each raise their own kinds
            self._report_unreadable(*_read_error(error, uri))
        self._finish()

    def _scan_parquet(self, file: BinaryIO) -> Iterator[tuple[ManifestRow, bool]]:
        parquet = pq.ParquetFile(file)
        names = parquet.schema_arrow.names
        self.warnings.extend(unused_columns(names))
        self._report_columns([*column_problems(parquet.schema_arrow), *missing_columns(names)])
        usable = [name for name in COLUMNS if name in names and name not in self._invalid_columns]
        for batch in parquet.iter_batches(batch_size=_BATCH_ROWS, columns=usable):
            try:
                rows = batch.to_pylist()
            except UnicodeDecodeError:
                self._report_invalid_utf8(batch)
                return
            for values in rows:
                yield self._parse(values)

    def _scan_json_lines(self, file: BinaryIO) -> Iterator[tuple[ManifestRow, bool]]:
        names: dict[str, None] = {}
        # Bytes that are not UTF-8 become lone surrogates, so that their line can be reported.
        lines = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape")
        for number, line in enumerate(lines, start=1):
            if check_surrogates(line):
                self._report_line(f"line {number} is not UTF-8", line, "save the manifest as UTF-8")
                return
            if not line.strip():
                continue
            values = self._parse_line(line, number)
            if values is not None:
                names.update(dict.fromkeys(values))
                yield self._parse(values)
        self.warnings.extend(unused_columns(names))
        if names:  # a column that no line has is one problem, not one per row
            self.problems[:] = [
                problem
                for problem in self.problems
                if problem.column in names or problem.column not in REQUIRED_COLUMNS
            ]
            self._report_columns([*missing_columns(names)])

    def _finish(self) -> None:
        if not self.row_count and not self._has_unreadable_rows:
            self._report_unreadable("the manifest has no rows", "add a row for each concept", value="")
        if self._embedded_bytes > _EMBEDDED_BYTES_WARNING:
            self.warnings.append(
                f"{self._embedded_bytes / 2**30:.1f} GiB of images are embedded in the manifest; unlike images given "
                "by URI, those of all concepts that need work are held in memory"
            )
        if self._has_masks:
            self.warnings.append("masks are checked, but training does not use them yet")
        order = {name: index for index, name in enumerate(COLUMNS)}
        self.problems.sort(key=lambda p: (-1 if p.row is None else p.row, order.get(p.column or "", -1)))

    def _parse(self, values: dict[str, Any]) -> tuple[ManifestRow, bool]:
        row, self.row_count = self.row_count, self.row_count + 1
        parsed, problems = parse_row(
            values,
            row=row,
            folder=self._folder,
            default_prompts=self._default_prompts,
            invalid_columns=self._invalid_columns,
        )
        first = self._row_by_id.setdefault(parsed.concept_id, row) if parsed.concept_id else row
        if first != row:
            reason, fix = f"the id is already used by row {first}", "give each concept one row and its own id"
            problems.append(Problem(reason, fix, "manifest", row, parsed.concept_id, "concept_id", parsed.concept_id))
        for source in parsed.reference_images:
            if source.data is not None:
                self._embedded_bytes += len(source.data)
        self._has_masks |= bool(parsed.masks) and not problems
        self.problems.extend(problems)
        return parsed, not problems

    def _parse_line(self, line: str, number: int) -> dict[str, Any] | None:
        try:
            values = _JSON.decode(line.strip())
        except _DuplicateKey as error:
            return self._report_line(f"line {number} gives {shorten(str(error))} twice", line, "keep one of them")
        except (ValueError, RecursionError) as error:
            return self._report_line(f"line {number} is not JSON: {shorten(str(error))}", line)
        return values if isinstance(values, dict) else self._report_line(f"line {number} is not a JSON object", line)

    def _report_line(self, reason: str, line: str, fix: str = "") -> None:
        fix = fix or "write one JSON object per line, without commas or brackets around the lines"
        self._report_unreadable(reason, fix, value=shorten(line.strip()), row=self.row_count)
        self.row_count += 1

    def _report_invalid_utf8(self, batch: pa.RecordBatch) -> None:
        """Report the first text of a batch that is not UTF-8."""
        for name, values in zip(batch.schema.names, batch.columns, strict=True):
            for index in range(len(values)):
                try:
                    values[index].as_py()
                except UnicodeDecodeError as error:
                    row, value = self.row_count + index, shorten(error.object[:80])
                    self._has_unreadable_rows = True
                    fix = "write the text as UTF-8"
                    self.problems.append(Problem("the text is not UTF-8", fix, "manifest", row, None, name, value))
                    return

    def _report_unreadable(self, reason: str, fix: str, *, value: str | None = None, row: int | None = None) -> None:
        value = without_credentials(self._uri) if value is None else value
        self._has_unreadable_rows = True
        self.problems.append(Problem(reason, fix, "manifest", row, None, None, value))

    def _report_columns(self, problems: list[Problem]) -> None:
        self._invalid_columns |= {problem.column for problem in problems if problem.column}
        self.problems.extend(problems)
