"""One row of a manifest: its plain values in, a `ManifestRow` and the problems found on the way out."""

from __future__ import annotations

import math
import os
import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal
from urllib.parse import urlsplit, urlunsplit

from ...core.concept import CONCEPT_ID_PATTERN, PLACEHOLDER, check_template
from ...core.errors import Problem
from .text import MAX_CLASS_CHARACTERS, MAX_PROMPT_CHARACTERS, half_character_fault, text_fault


@dataclass(frozen=True, slots=True)
class ReferenceSource:
    """Where one reference image (or its mask) is.

    Attributes:
        uri: an absolute path or fsspec URI; with `data`, only the name the bytes came with.
        data: the encoded image itself, for manifests that carry their images.
    """

    uri: str | None = None
    data: bytes | None = field(default=None, repr=False)

    @property
    def label(self) -> str:
        """The source as it may be shown and logged: without user names, passwords and signatures."""
        if self.uri:
            return printable(without_credentials(self.uri))
        return f"<{len(self.data or b'')} bytes>"


@dataclass(frozen=True, slots=True)
class ManifestRow:
    """One requested concept.

    Attributes:
        row: its place in the manifest, counted from 0.
        reference_images: at least one.
        prompts: templates; the run spec's prompt set where the manifest has none.
        seed: the row's own seed, or None for the run's.
        metadata: passed through to the catalog.
        masks: a foreground mask for every reference image, or None.
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
        """The seed this concept's random numbers come from."""
        return run_seed if self.seed is None else self.seed


_UNTIDY = re.compile(r"//|/$|(?:^|/)\.{1,2}(?:/|$)|\\")
"""Matches a path that is not in its shortest form, or may not be on every system."""

_SOURCES_REMEMBERED = 65_536


def without_credentials(uri: str) -> str:
    """`uri` without user name, password, query and fragment, which may be secrets; plain paths are unchanged."""
    if "://" not in uri:
        return uri
    try:
        parts = urlsplit(uri)
    except ValueError:  # not a URI after all; what follows the scheme may still hold a password
        return uri.split("://")[0] + "://…"
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment=""))


def printable(text: str) -> str:
    """`text` itself, or its escaped form where a terminal would do something else with it than show it."""
    return text if text_fault(text) is None else repr(text)[1:-1]


def parent_folder(uri: str) -> str:
    """The folder of a file, as a path or URI that `resolve` can add a relative path to."""
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return os.path.dirname(os.path.abspath(uri))
    return f"{scheme}://{rest.split('?')[0].rpartition('/')[0]}"


def resolve(uri: str, folder: str) -> str:
    """`uri` itself if it is absolute, else as seen from `folder`."""
    if "://" in uri or os.path.isabs(uri):
        return uri
    scheme, separator, root = folder.partition("://") if "://" in folder else ("", "", folder)
    joined = f"{root}/{uri}"
    if root and not _UNTIDY.search(joined):
        return f"{scheme}{separator}{joined}"  # what the lines below come to, in a tenth of the time
    join, normalized = (posixpath.join, posixpath.normpath) if separator else (os.path.join, os.path.normpath)
    return f"{scheme}{separator}{normalized(join(root, uri))}"


def climbs(uri: str, folder: str) -> bool:
    """Whether a relative path leads out of its folder's bucket (or host), into one that nobody has named."""
    _, separator, root = folder.partition("://")
    if not separator or "://" in uri or os.path.isabs(uri):
        return False
    bucket = root.split("/")[0]
    return not f"{posixpath.normpath(posixpath.join(root, uri))}/".startswith(f"{bucket}/")


@dataclass(slots=True)
class _Notebook:
    """Collects the problems of one row, so that no parser stops at the first."""

    row: int
    concept_id: str | None
    problems: list[Problem] = field(default_factory=list)

    def add(
        self, column: str, value: Any, reason: str, fix: str, level: Literal["manifest", "concept"] = "concept"
    ) -> None:
        self.problems.append(Problem(reason, fix, level, self.row, self.concept_id, column, shown(value)))


def shown(value: Any) -> str:
    """`value` as a short piece of one line."""
    text = value if isinstance(value, str) else repr(value)
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= 80 else text[:79] + "…"


def parse_row(
    values: Mapping[str, Any],
    *,
    row: int,
    folder: str,
    default_prompts: Sequence[str],
    unusable: frozenset[str] = frozenset(),
) -> tuple[ManifestRow, list[Problem]]:
    """Read one row, going on after every problem.

    Args:
        values: column -> plain Python value, as Arrow's `to_pylist` or `json.loads` gives them.
        folder: what relative reference paths are relative to.
        default_prompts: the prompt set of rows whose `prompts` is null.
        unusable: columns already reported for the whole manifest; nothing more is said about them.

    Returns:
        The row, and what is wrong with it. With problems the row holds only what could be read.
    """
    raw_id = values.get("concept_id")
    notes = _Notebook(row, _shown_id(raw_id) if isinstance(raw_id, str) and raw_id else None)
    references = _sources(values.get("reference_images"), "reference_images", folder, notes) or ()
    masks = _masks(values.get("masks"), len(references), folder, notes)
    parsed = ManifestRow(
        row=row,
        concept_id=_concept_id(raw_id, notes),
        macro_class=_macro_class(values.get("macro_class"), notes),
        reference_images=references,
        prompts=_prompts(values.get("prompts"), default_prompts, notes),
        seed=_seed(values.get("seed"), notes),
        metadata=_metadata(values.get("metadata"), notes),
        masks=masks,
    )
    return parsed, [problem for problem in notes.problems if problem.column not in unusable]


def _shown_id(value: str) -> str:
    return value if CONCEPT_ID_PATTERN.fullmatch(value) else shown(value)


def _concept_id(value: Any, notes: _Notebook) -> str:
    if value is None or value == "":
        notes.add("concept_id", value, "the id is missing", "give every row a unique concept_id", "manifest")
        return ""
    if not isinstance(value, str):
        notes.add("concept_id", value, "the id is not a string", f'write it as a string: "{value}"', "manifest")
        return ""
    if not CONCEPT_ID_PATTERN.fullmatch(value):
        reason = "an id starts with a letter or digit and has at most 128 letters, digits, '.', '_' and '-'"
        cleaned = re.sub(r"[^A-Za-z0-9._-]+", "-", value).strip("-._")[:128]
        notes.add("concept_id", value, reason, f"for example {cleaned!r}" if cleaned else "choose another", "manifest")
        return ""
    return value


def _macro_class(value: Any, notes: _Notebook) -> str:
    if not isinstance(value, str) or not value.strip():
        notes.add("macro_class", value, "the macro class is missing", 'name the concept\'s category, such as "mug"')
        return ""
    fault = text_fault(value, max_characters=MAX_CLASS_CHARACTERS)
    if fault:
        notes.add("macro_class", value, f"the macro class {fault[0]}", fault[1])
        return ""
    if not value.isprintable():
        notes.add("macro_class", value, "the macro class has unprintable characters", "write it as plain words")
    return value.strip()


def _sources(value: Any, column: str, folder: str, notes: _Notebook) -> tuple[ReferenceSource, ...] | None:
    if value is None and column == "masks":
        return None
    if not isinstance(value, list):
        what = "is missing" if value is None else "is not a list"
        notes.add(column, value, f"{column} {what}", "give a list of paths or URIs, even for one image")
        return None
    if not value:
        notes.add(column, value, f"{column} is an empty list", "give at least one image")
    if all(
        type(item) is str and item and ".." not in item and item.isprintable() for item in value
    ):  # as in almost all of a million rows
        return tuple([_resolved_source(item, folder) for item in value])
    sources = tuple(_source(item, index, column, folder, notes) for index, item in enumerate(value))
    return tuple(source for source in sources if source is not None)


def _source(item: Any, index: int, column: str, folder: str, notes: _Notebook) -> ReferenceSource | None:
    data, uri = (item.get("bytes"), item.get("path")) if isinstance(item, dict) else (None, item)
    where = f"{column}[{index}]"
    if isinstance(data, bytes):
        return ReferenceSource(uri if isinstance(uri, str) and uri else None, data)  # nothing is read from this path
    if data is not None:
        fix = "use Parquet for embedded images, or give a path"
        notes.add(column, item, f"{where} has bytes that are not binary", fix)
    elif uri is None or uri == "":
        notes.add(column, item, f"{where} is empty", "give its path or URI, or leave it out")
    elif not isinstance(uri, str):
        notes.add(column, item, f"{where} is not a path or URI", "give a string")
    elif fault := text_fault(uri):
        notes.add(column, item, f"{where} {fault[0]}", fault[1])
    elif climbs(uri, folder):
        notes.add(column, item, f"{where} climbs above {without_credentials(folder)}", "give the whole URI")
    else:
        return _resolved_source(uri, folder)
    return None


@lru_cache(_SOURCES_REMEMBERED)
def _resolved_source(uri: str, folder: str) -> ReferenceSource:
    """One object for an image that many rows name."""
    return ReferenceSource(resolve(uri, folder))


def _masks(value: Any, references: int, folder: str, notes: _Notebook) -> tuple[ReferenceSource, ...] | None:
    masks = _sources(value, "masks", folder, notes)
    if masks and len(value) != references:
        reason = f"{len(value)} masks for {references} reference images"
        notes.add("masks", len(value), reason, "give one mask for every reference image, in the same order, or null")
    return masks


def _prompts(value: Any, default_prompts: Sequence[str], notes: _Notebook) -> tuple[str, ...]:
    if value is None:
        return tuple(default_prompts)
    if not isinstance(value, list) or not value:
        what = "an empty list" if value == [] else "not a list"
        fix = "give a list of templates, or null for the run spec's prompts"
        notes.add("prompts", value, f"prompts is {what}", fix)
        return ()
    good = []
    for index, prompt in enumerate(value):
        fault = isinstance(prompt, str) and text_fault(prompt, max_characters=MAX_PROMPT_CHARACTERS, lines=True)
        reason = check_template(prompt) if isinstance(prompt, str) else "the prompt is not a string"
        if fault:
            notes.add("prompts", prompt, f"prompts[{index}]: the prompt {fault[0]}", fault[1])
        elif reason:
            example = f'write {PLACEHOLDER} where the concept belongs: "a photo of a {PLACEHOLDER} on a beach"'
            notes.add("prompts", prompt, f"prompts[{index}]: {reason}", example)
        else:
            good.append(prompt)
    return tuple(good)


def _seed(value: Any, notes: _Notebook) -> int | None:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    # pandas writes an integer column that has gaps as floats
    whole = type(value) is int or (isinstance(value, float) and value.is_integer())
    if not whole or not 0 <= value < 2**63:
        notes.add("seed", value, "the seed is not a whole number from 0 to 2^63 - 1", "give such a number, or null")
        return None
    return int(value)


def _metadata(value: Any, notes: _Notebook) -> dict[str, str]:
    if value is None:
        return {}
    try:
        pairs = dict(value)  # Arrow gives a map as a list of pairs, a struct as a dict
    except (TypeError, ValueError):
        notes.add("metadata", value, "metadata is not a map", "give a map of names to strings, or null")
        return {}
    kept = {}
    for key, item in pairs.items():
        fault = half_character_fault(f"{key}{item}") if isinstance(item, str) else half_character_fault(str(key))
        if isinstance(item, dict | list | bytes):
            notes.add("metadata", item, f"metadata[{key!r}] is not a plain value", "give a string, or encode it as one")
        elif fault:
            notes.add("metadata", item, f"metadata[{key!r}] {fault[0]}", fault[1])
        elif item is not None:
            kept[str(key)] = item if isinstance(item, str) else str(item)
    return kept
