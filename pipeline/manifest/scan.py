"""Read a manifest, the table of requested concepts, and find all of its problems in one pass.

Parquet is read batch by batch, JSON lines line by line. `ManifestScan` yields rows and keeps only problems;
`read_manifest` keeps all rows.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, cast

import pyarrow.parquet as pq

from ...core.concept import CONCEPT_ID_PATTERN
from ...core.errors import ConceptFailure, Problem
from ..storage.uri import file_system, normalized, without_credentials
from .columns import COLUMNS, REQUIRED_COLUMNS, column_problems, missing_columns, unused_columns
from .json_lines import BadLine, json_lines
from .parquet_rows import InvalidText, footer_problems, parquet_rows, parquet_texts, too_many_rows
from .row import ManifestRow, parent_folder, parse_row, shorten
from .settings import ManifestSettings

_PARQUET = (".parquet", ".pq")
_JSON_LINES = (".jsonl", ".ndjson", ".json")
MANIFEST_SUFFIXES = (*_PARQUET, *_JSON_LINES)
_MAX_ID_BYTES = 128
_MAX_PROBLEMS = 10_000  # of the manifest as a whole; one is enough to refuse it
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


def read_manifest(
    uri: str | os.PathLike[str], *, default_prompts: Sequence[str], settings: ManifestSettings | None = None
) -> ParsedManifest:
    """Read the manifest at a path or fsspec URI.

    Args:
        uri: a `.parquet` file, or a `.jsonl` file with one object per line.
        default_prompts: the prompts of rows whose `prompts` is null.
        settings: how large it may be; by default the default limits.

    Returns:
        All rows and all problems. No content of the file raises; a file that cannot be read is a problem.
    """
    scan = ManifestScan(uri, default_prompts=default_prompts, settings=settings)
    parsed = ParsedManifest(problems=scan.problems, warnings=scan.warnings)
    for row, is_valid in scan:
        (parsed.rows if is_valid else parsed.invalid_rows).append(row)
    return parsed


def row_count_if_valid(uri: str, settings: ManifestSettings | None = None) -> int | None:
    """The number of rows of a Parquet manifest whose columns and ids are valid; otherwise None.

    Reads the column of ids alone: a cheap check before references are fetched. None asks for a full scan, which finds
    the problems or reads the formats that this check does not.
    """
    settings = settings or ManifestSettings()
    if _suffix(uri) not in _PARQUET:
        return None
    ids: set[str] = set()
    count = 0
    try:
        with _open(uri) as file:
            parquet = pq.ParquetFile(file)
            schema, metadata = parquet.schema_arrow, parquet.metadata
            if any(column_problems(schema)) or any(missing_columns(schema.names)):
                return None
            if any(footer_problems(metadata, _usable(schema.names), settings)):
                return None
            for texts in parquet_texts(file, metadata, "concept_id", _MAX_ID_BYTES):
                if texts is None or not all(one is not None and CONCEPT_ID_PATTERN.fullmatch(one) for one in texts):
                    return None
                count += len(texts)
                ids.update(filter(None, texts))
                if len(ids) < count:
                    return None
    except Exception:  # of any kind: a full scan reports it
        return None
    return count or None


def _open(uri: str) -> BinaryIO:
    fs, path = file_system(uri)
    return cast(BinaryIO, fs.open(path, "rb"))


def _suffix(uri: str) -> str:
    return os.path.splitext(uri.split("?")[0] if "://" in uri else uri)[1].lower()


def _usable(names: Collection[str]) -> list[str]:
    return [name for name in COLUMNS if name in names]


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

    def __init__(
        self,
        uri: str | os.PathLike[str],
        *,
        default_prompts: Sequence[str],
        settings: ManifestSettings | None = None,
    ) -> None:
        self.problems: list[Problem] = []
        self.warnings: list[str] = []
        self.row_count = 0
        self._embedded_bytes = 0
        self._uri = os.fspath(uri)
        self._settings = settings or ManifestSettings()
        self._folder = parent_folder(normalized(self._uri))
        self._default_prompts = tuple(default_prompts)
        self._row_by_id: dict[str, int] = {}
        self._invalid_columns: frozenset[str] = frozenset()
        self._has_unreadable_rows = False
        self._has_masks = False
        self._manifest_problem_count = 0

    @property
    def manifest_problems(self) -> list[Problem]:
        """The problems that make the whole manifest unusable."""
        return [problem for problem in self.problems if problem.level == "manifest"]

    def __iter__(self) -> Iterator[tuple[ManifestRow, bool]]:
        uri = normalized(self._uri)
        formats = dict.fromkeys(_PARQUET, self._scan_parquet) | dict.fromkeys(_JSON_LINES, self._scan_json_lines)
        if (suffix := _suffix(uri)) not in formats:
            what = f"the file type {suffix!r} is not supported"
            self._report_unreadable(what, "write it as Parquet (.parquet) or JSON lines (.jsonl)")
            return
        try:
            with _open(uri) as file:
                for found in formats[suffix](file):
                    yield found
                    if self.row_count > self._settings.max_rows:
                        self.problems.append(too_many_rows(self._settings.max_rows, self._settings))
                        break
                    if self._manifest_problem_count > _MAX_PROBLEMS:
                        self._report_unreadable("more problems than are listed: the rest is not read", "correct these")
                        break
        except InvalidText as error:
            self._has_unreadable_rows = True
            what, fix, value = "the text is not UTF-8", "write the text as UTF-8", shorten(error.text)
            self.problems.append(Problem(what, fix, "manifest", error.row, None, error.column, value))
        except Exception as error:  # Arrow, the store and the codecs each raise their own kinds
            self._report_unreadable(*_read_error(error, uri))
        self._finish()

    def _scan_parquet(self, file: BinaryIO) -> Iterator[tuple[ManifestRow, bool]]:
        parquet = pq.ParquetFile(file)
        names, metadata = parquet.schema_arrow.names, parquet.metadata
        self.warnings.extend(unused_columns(names))
        self._report_columns([*column_problems(parquet.schema_arrow), *missing_columns(names)])
        usable = [name for name in _usable(names) if name not in self._invalid_columns]
        if refused := list(footer_problems(metadata, usable, self._settings)):
            self.problems.extend(refused)
            self._has_unreadable_rows = True
            return
        for values, oversized in parquet_rows(file, metadata, usable, self._settings):
            yield self._parse(values, oversized)

    def _scan_json_lines(self, file: BinaryIO) -> Iterator[tuple[ManifestRow, bool]]:
        names: dict[str, None] = {}
        limit = self._settings.max_list_items
        for values in json_lines(file, self._settings):
            if isinstance(values, BadLine):
                self._report_unreadable(str(values), values.fix, value=shorten(values.text), row=self.row_count)
                self.row_count += values.lines
                continue
            names.update(dict.fromkeys(values))
            oversized = {
                name: (
                    f"{name} has {len(value)} items, and the limit is {limit}",
                    "shorten it, or raise manifest.max_list_items in the run spec",
                )
                for name, value in values.items()
                if isinstance(value, list | dict) and len(value) > limit and name in COLUMNS
            }
            yield self._parse({name: value for name, value in values.items() if name not in oversized}, oversized)
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

    def _parse(self, values: dict[str, Any], oversized: Mapping[str, tuple[str, str]]) -> tuple[ManifestRow, bool]:
        row, self.row_count = self.row_count, self.row_count + 1
        parsed, problems = parse_row(
            values,
            row=row,
            folder=self._folder,
            default_prompts=self._default_prompts,
            invalid_columns=self._invalid_columns | oversized.keys() if oversized else self._invalid_columns,
        )
        for column, (reason, fix) in oversized.items():
            level = "manifest" if column == "concept_id" else "concept"
            problems.append(Problem(reason, fix, level, row, parsed.concept_id or None, column, ""))
        first = self._row_by_id.setdefault(parsed.concept_id, row) if parsed.concept_id else row
        if first != row:
            reason, fix = f"the id is already used by row {first}", "give each concept one row and its own id"
            problems.append(Problem(reason, fix, "manifest", row, parsed.concept_id, "concept_id", parsed.concept_id))
        for source in parsed.reference_images:
            if source.data is not None:
                self._embedded_bytes += len(source.data)
        self._has_masks |= bool(parsed.masks) and not problems
        self.problems.extend(problems)
        if problems:
            self._manifest_problem_count += sum(problem.level == "manifest" for problem in problems)
        return parsed, not problems

    def _report_unreadable(self, reason: str, fix: str, *, value: str | None = None, row: int | None = None) -> None:
        value = without_credentials(self._uri) if value is None else value
        self._has_unreadable_rows = True
        self.problems.append(Problem(reason, fix, "manifest", row, None, None, value))

    def _report_columns(self, problems: list[Problem]) -> None:
        self._invalid_columns |= {problem.column for problem in problems if problem.column}
        self.problems.extend(problems)
