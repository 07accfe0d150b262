"""Parse one row of a manifest: plain values in, a `ManifestRow` and its problems out."""

from __future__ import annotations

import math
import os
import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from typing import Any, Literal

from ...core.concept import CONCEPT_ID_PATTERN, PLACEHOLDER, check_template
from ...core.errors import Problem
from ..storage.uri import normalized, without_credentials
from .text import (
    MAX_CLASS_CHARACTERS,
    MAX_METADATA_CHARACTERS,
    MAX_PROMPT_CHARACTERS,
    MAX_URI_CHARACTERS,
    check_surrogates,
    check_text,
)


@dataclass(frozen=True, slots=True)
class ReferenceSource:
    """Where one reference image (or its mask) is.

    Attributes:
        uri: an absolute path or fsspec URI; with `data`, only the name that the bytes were stored under.
        data: the encoded image itself, if it is embedded in the manifest.
    """

    uri: str | None = None
    data: bytes | None = field(default=None, repr=False)

    @property
    def label(self) -> str:
        """The source for messages and logs: without user names, passwords and signatures."""
        if self.uri:
            return printable(without_credentials(self.uri))
        return f"<{len(self.data or b'')} bytes>"


@dataclass(frozen=True, slots=True)
class ManifestRow:
    """One requested concept.

    Attributes:
        row: its index in the manifest, from 0.
        reference_images: at least one.
        prompts: templates; the run spec's prompts if the row has none.
        seed: the row's own seed, or None for the run's.
        metadata: copied to the catalog.
        masks: a foreground mask for each reference image, or None.
    """

    row: int
    concept_id: str
    macro_class: str
    reference_images: tuple[ReferenceSource, ...]
    prompts: tuple[str, ...]
    seed: int | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    masks: tuple[ReferenceSource, ...] | None = None

    def seed_for(self, run_seed: int) -> int:
        """The seed of this concept's random numbers."""
        return run_seed if self.seed is None else self.seed


_NOT_NORMALIZED = re.compile(r"//|/$|(?:^|/)\.{1,2}(?:/|$)|\\")
"""Matches a path that is not normalized, or may not be on every operating system."""

_SOURCE_CACHE_SIZE = 65_536
_LOOKED_AT = 200  # characters or items of a value that a message shows


def printable(text: str) -> str:
    """`text` itself, or its escaped form if it has control characters or lone surrogates."""
    return text if check_text(text) is None else repr(text)[1:-1]


def parent_folder(uri: str) -> str:
    """The folder of a file, as an absolute path or URI."""
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return os.path.dirname(os.path.abspath(uri))
    return f"{scheme}://{rest.split('?')[0].rpartition('/')[0]}"


def resolve_uri(uri: str, folder: str) -> str:
    """`uri` as file systems take it if it is absolute, otherwise joined to `folder` and normalized."""
    if ":" in uri or uri[:1] in ("/", "~"):
        uri = normalized(uri)
        if "://" in uri or os.path.isabs(uri):
            return uri
    scheme, separator, root = folder.partition("://") if "://" in folder else ("", "", folder)
    joined = f"{root}/{uri}"
    if root and not _NOT_NORMALIZED.search(joined):
        return f"{scheme}{separator}{joined}"  # the same as below, in a tenth of the time
    join, normpath = (posixpath.join, posixpath.normpath) if separator else (os.path.join, os.path.normpath)
    return f"{scheme}{separator}{normpath(join(root, uri))}"


def escapes_bucket(uri: str, folder: str) -> bool:
    """Whether a relative path leads out of the bucket (or host) of `folder`."""
    uri = normalized(uri)
    _, separator, root = folder.partition("://")
    if not separator or "://" in uri or os.path.isabs(uri):
        return False
    bucket = root.split("/")[0]
    return not f"{posixpath.normpath(posixpath.join(root, uri))}/".startswith(f"{bucket}/")


@dataclass(slots=True)
class _ProblemCollector:
    """Collects all problems of one row."""

    row: int
    concept_id: str | None
    found: list[Problem] = field(default_factory=list)

    def add(
        self, column: str, value: Any, reason: str, fix: str, level: Literal["manifest", "concept"] = "concept"
    ) -> None:
        self.found.append(Problem(reason, fix, level, self.row, self.concept_id, column, shorten(value)))


def shorten(value: Any) -> str:
    """`value` on one line of at most 80 characters; only the beginning of a large one is looked at."""
    value = _beginning(value)
    text = value if isinstance(value, str) else repr(value)
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= 80 else text[:79] + "…"


def _beginning(value: Any) -> Any:
    match value:
        case str() | bytes():
            return value[:_LOOKED_AT]
        case list():
            return [_beginning(item) for item in value[:_LOOKED_AT]]
        case dict():
            return {key: _beginning(item) for key, item in islice(value.items(), _LOOKED_AT)}
    return value


def parse_row(
    values: Mapping[str, Any],
    *,
    row: int,
    folder: str,
    default_prompts: Sequence[str],
    invalid_columns: frozenset[str] = frozenset(),
) -> tuple[ManifestRow, list[Problem]]:
    """Parse one row and find all of its problems.

    Args:
        values: column -> plain Python value, as Arrow's `to_pylist` or `json.loads` gives them.
        folder: the folder that relative reference paths start from.
        default_prompts: the prompts of rows whose `prompts` is null.
        invalid_columns: columns already reported for the whole manifest; their problems are left out.

    Returns:
        The row and its problems. A row with problems holds only what could be parsed.
    """
    raw_id = values.get("concept_id")
    problems = _ProblemCollector(row, _displayed_id(raw_id) if isinstance(raw_id, str) and raw_id else None)
    references = _parse_sources(values.get("reference_images"), "reference_images", folder, problems) or ()
    masks = _parse_masks(values.get("masks"), len(references), folder, problems)
    parsed = ManifestRow(
        row=row,
        concept_id=_parse_id(raw_id, problems),
        macro_class=_parse_class(values.get("macro_class"), problems),
        reference_images=references,
        prompts=_parse_prompts(values.get("prompts"), default_prompts, problems),
        seed=_parse_seed(values.get("seed"), problems),
        metadata=_parse_metadata(values.get("metadata"), problems),
        masks=masks,
    )
    return parsed, [problem for problem in problems.found if problem.column not in invalid_columns]


def _displayed_id(value: str) -> str:
    return value if CONCEPT_ID_PATTERN.fullmatch(value) else shorten(value)


def _parse_id(value: Any, problems: _ProblemCollector) -> str:
    if value is None or value == "":
        problems.add("concept_id", value, "the id is missing", "give every row a unique concept_id", "manifest")
        return ""
    if not isinstance(value, str):
        problems.add("concept_id", value, "the id is not a string", f'write it as a string: "{value}"', "manifest")
        return ""
    if not CONCEPT_ID_PATTERN.fullmatch(value):
        reason = "an id starts with a letter or digit and has at most 128 letters, digits, '.', '_' and '-'"
        cleaned = re.sub(r"[^A-Za-z0-9._-]+", "-", value[:_LOOKED_AT]).strip("-._")[:128]
        problems.add(
            "concept_id", value, reason, f"for example {cleaned!r}" if cleaned else "choose another", "manifest"
        )
        return ""
    return value


def _parse_class(value: Any, problems: _ProblemCollector) -> str:
    if not isinstance(value, str) or not value.strip():
        problems.add("macro_class", value, "the macro class is missing", 'name the concept\'s category, such as "mug"')
        return ""
    invalid = check_text(value, max_characters=MAX_CLASS_CHARACTERS)
    if invalid:
        problems.add("macro_class", value, f"the macro class {invalid[0]}", invalid[1])
        return ""
    if not value.isprintable():
        problems.add("macro_class", value, "the macro class has unprintable characters", "write it as plain words")
    return value.strip()


def _parse_sources(
    value: Any, column: str, folder: str, problems: _ProblemCollector
) -> tuple[ReferenceSource, ...] | None:
    if value is None and column == "masks":
        return None
    if not isinstance(value, list):
        what = "is missing" if value is None else "is not a list"
        problems.add(column, value, f"{column} {what}", "give a list of paths or URIs, even for one image")
        return None
    if not value:
        problems.add(column, value, f"{column} is an empty list", "give at least one image")
    if all(
        type(item) is str and item and len(item) < 1000 and ".." not in item and item.isprintable() for item in value
    ):  # as in almost all of a million rows
        return tuple([_resolved_source(item, folder) for item in value])
    sources = tuple(_parse_source(item, index, column, folder, problems) for index, item in enumerate(value))
    return tuple(source for source in sources if source is not None)


def _parse_source(
    item: Any, index: int, column: str, folder: str, problems: _ProblemCollector
) -> ReferenceSource | None:
    data, uri = (item.get("bytes"), item.get("path")) if isinstance(item, dict) else (None, item)
    where = f"{column}[{index}]"
    if isinstance(data, bytes):
        return ReferenceSource(uri if isinstance(uri, str) and uri else None, data)  # the path is only a name
    if data is not None:
        fix = "use Parquet for embedded images, or give a path"
        problems.add(column, item, f"{where} has bytes that are not binary", fix)
    elif uri is None or uri == "":
        problems.add(column, item, f"{where} is empty", "give its path or URI, or leave it out")
    elif not isinstance(uri, str):
        problems.add(column, item, f"{where} is not a path or URI", "give a string")
    elif invalid := check_text(uri, max_characters=MAX_URI_CHARACTERS):
        problems.add(column, item, f"{where} {invalid[0]}", invalid[1])
    elif escapes_bucket(uri, folder):
        problems.add(
            column, item, f"{where} leads out of the bucket of {without_credentials(folder)}", "give the full URI"
        )
    else:
        return _resolved_source(uri, folder)
    return None


@lru_cache(_SOURCE_CACHE_SIZE)
def _resolved_source(uri: str, folder: str) -> ReferenceSource:
    """Share one object between the rows that name the same image."""
    return ReferenceSource(resolve_uri(uri, folder))


def _parse_masks(
    value: Any, references: int, folder: str, problems: _ProblemCollector
) -> tuple[ReferenceSource, ...] | None:
    masks = _parse_sources(value, "masks", folder, problems)
    if masks and len(value) != references:
        reason = f"{len(value)} masks for {references} reference images"
        problems.add("masks", len(value), reason, "give one mask for every reference image, in the same order, or null")
    return masks


def _parse_prompts(value: Any, default_prompts: Sequence[str], problems: _ProblemCollector) -> tuple[str, ...]:
    if value is None:
        return tuple(default_prompts)
    if not isinstance(value, list) or not value:
        what = "an empty list" if value == [] else "not a list"
        fix = "give a list of templates, or null for the run spec's prompts"
        problems.add("prompts", value, f"prompts is {what}", fix)
        return ()
    good = []
    for index, prompt in enumerate(value):
        invalid = isinstance(prompt, str) and check_text(prompt, max_characters=MAX_PROMPT_CHARACTERS, multiline=True)
        reason = check_template(prompt) if isinstance(prompt, str) else "the prompt is not a string"
        if invalid:
            problems.add("prompts", prompt, f"prompts[{index}]: the prompt {invalid[0]}", invalid[1])
        elif reason:
            example = f'write {PLACEHOLDER} where the concept belongs: "a photo of a {PLACEHOLDER} on a beach"'
            problems.add("prompts", prompt, f"prompts[{index}]: {reason}", example)
        else:
            good.append(prompt)
    return tuple(good)


def _parse_seed(value: Any, problems: _ProblemCollector) -> int | None:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    # pandas writes an integer column that has gaps as floats
    whole = type(value) is int or (isinstance(value, float) and value.is_integer())
    if not whole or not 0 <= value < 2**63:
        problems.add("seed", value, "the seed is not a whole number from 0 to 2^63 - 1", "give such a number, or null")
        return None
    return int(value)


def _parse_metadata(value: Any, problems: _ProblemCollector) -> dict[str, str]:
    if value is None:
        return {}
    try:
        pairs = dict(value)  # Arrow gives a map as a list of pairs, a struct as a dict
    except (TypeError, ValueError):
        problems.add("metadata", value, "metadata is not a map", "give a map of names to strings, or null")
        return {}
    kept = {}
    for key, item in pairs.items():
        invalid = check_surrogates(f"{key}{item}") if isinstance(item, str) else check_surrogates(str(key))
        if isinstance(item, dict | list | bytes):
            problems.add(
                "metadata", item, f"metadata[{key!r}] is not a plain value", "give a string, or encode it as one"
            )
        elif invalid:
            problems.add("metadata", item, f"metadata[{key!r}] {invalid[0]}", invalid[1])
        elif len(str(key)) + len(str(item)) > MAX_METADATA_CHARACTERS:
            reason = f"metadata[{shorten(str(key))!r}] is longer than {MAX_METADATA_CHARACTERS} characters"
            problems.add("metadata", item, reason, "keep long texts elsewhere, and give their address")
        elif item is not None:
            kept[str(key)] = item if isinstance(item, str) else str(item)
    return kept
