"""The documents of runs without some concepts: who is named where, and the same document with nobody of them in it.

A run's plan, failures and summary are JSON: they are rewritten without the concepts. So is its log, whose lines are
JSON: a line about a concept goes. A report shows pictures of concepts, so one that names them is removed as a whole;
`persres-batch report` writes another. A run's spec names none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from contextlib import suppress
from typing import Any

from ..catalog.store import CatalogStore

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_PICTURE = re.compile(r"data:image/[\w+]+;base64,[A-Za-z0-9+/=]*")
_AT_A_TIME = 16


def naming_documents(store: CatalogStore, concept_ids: Collection[str]) -> Iterator[tuple[str, frozenset[str]]]:
    """Every document of a run that names one of the concepts, and which; those to be removed before the JSON ones.

    Raises:
        StoreError: a document cannot be read.
    """
    wanted = frozenset(concept_ids)
    paths = [path for path in store.list(store.RUNS) if not path.endswith("/spec.yaml")]
    # What a plan names can be asked for again until the very end.
    paths.sort(key=lambda path: path.endswith((".json", ".jsonl")))
    for start in range(0, len(paths), _AT_A_TIME):
        portion = paths[start : start + _AT_A_TIME]
        documents = store.read_many(portion)
        for path in portion:
            if found := _named(path, documents[path], wanted):
                yield path, found


def document_without(path: str, document: bytes, concept_ids: Collection[str]) -> bytes | None:
    """A document without some concepts, or None if it is to be removed: it is no JSON, or damaged.

    An item of a list goes if it is a concept's id, an object about it, or a sentence with the id in it. A summary
    counts as many rows less as it has lost failures, so that it still adds up.
    """
    if path.endswith(".jsonl"):
        return _lines_without(document, frozenset(concept_ids))
    told = _json(path, document)
    if told is None:
        return None
    wanted = frozenset(concept_ids)
    left = _without(told, wanted)
    if isinstance(told, dict) and isinstance(told.get("rows"), int) and isinstance(told.get("failed"), list):
        left["rows"] -= len(told["failed"]) - len(left["failed"])
    return (json.dumps(left, indent=1, sort_keys=True) + "\n").encode()


def _named(path: str, data: bytes, wanted: frozenset[str]) -> frozenset[str]:
    if path.endswith(".jsonl"):
        return frozenset().union(*(_about_line(line, wanted) | _listed(line, wanted) for line in _lines(data)))
    told = _json(path, data)
    if told is not None:
        return frozenset(concept_id for concept_id in _gone(told, wanted))
    return _names_in(_PICTURE.sub("", data.decode("utf-8", errors="replace"))) & wanted


def _lines_without(data: bytes, wanted: frozenset[str]) -> bytes:
    kept = [line for line in _lines(data) if not _about_line(line, wanted)]
    for line in kept:
        if isinstance(listed := line.get("concepts"), list):
            line["concepts"] = [concept_id for concept_id in listed if concept_id not in wanted]
    return "".join(json.dumps(line, sort_keys=True, ensure_ascii=False) + "\n" for line in kept).encode()


def _lines(data: bytes) -> Iterator[dict[str, Any]]:
    """The objects of a log; what is none says nothing that anybody reads."""
    for line in data.decode("utf-8", errors="replace").splitlines():
        with suppress(ValueError):
            told = json.loads(line)
            if isinstance(told, dict):
                yield told


def _about_line(line: dict[str, Any], wanted: frozenset[str]) -> frozenset[str]:
    """The concepts that one event of a log is about, or that its text names."""
    return (_names_in(str(line.get("text", ""))) | {str(line.get("concept_id"))}) & wanted


def _listed(line: dict[str, Any], wanted: frozenset[str]) -> frozenset[str]:
    """The concepts that it lists among others."""
    listed = line.get("concepts")
    return frozenset(map(str, listed)) & wanted if isinstance(listed, list) else frozenset()


def _json(path: str, data: bytes) -> Any:
    try:
        return json.loads(data) if path.endswith(".json") else None
    except ValueError:
        return None


def _without(value: Any, wanted: frozenset[str]) -> Any:
    if isinstance(value, list):
        return [_without(item, wanted) for item in value if not _about(item, wanted)]
    if isinstance(value, dict):
        return {name: _without(item, wanted) for name, item in value.items() if name not in wanted}
    return value


def _gone(value: Any, wanted: frozenset[str]) -> Iterator[str]:
    """The concepts on whose account `_without` would leave something out."""
    if isinstance(value, list):
        for item in value:
            yield from about if (about := _about(item, wanted)) else _gone(item, wanted)
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from [name] if name in wanted else _gone(item, wanted)


def _about(item: Any, wanted: frozenset[str]) -> frozenset[str]:
    if isinstance(item, dict):
        return frozenset({str(item.get("concept_id"))}) & wanted
    if not isinstance(item, str):
        return frozenset()
    return (_names_in(item) if " " in item else frozenset({item})) & wanted


def _names_in(text: str) -> frozenset[str]:
    """Every word of a text that could be a concept's id, with and without the stop at its end."""
    words = {match.group() for match in _NAME.finditer(text)}
    return frozenset(words | {word.rstrip("._-") for word in words})
