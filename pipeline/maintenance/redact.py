"""Redact the documents of runs: find which name some concepts, and rewrite them without these.

A run's plan, failures and summary are JSON and are rewritten without the concepts. So is its log, whose lines are JSON:
a line about a concept is removed. A report shows images of concepts, so one that names them is removed as a whole;
`persres-batch report` writes another. A run's spec names none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from contextlib import suppress
from typing import Any

from ..catalog import layout
from ..catalog.layout import RunPaths
from ..catalog.store import CatalogStore
from ..storage.json_document import DamagedDocument, parse_json

_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_EMBEDDED_IMAGE = re.compile(r"data:image/[\w+]+;base64,[A-Za-z0-9+/=]*")
_DOCUMENTS_PER_BATCH = 16


def find_documents(store: CatalogStore, concept_ids: Collection[str]) -> Iterator[tuple[str, frozenset[str]]]:
    """Yield every document of a run that names any of the concepts, with those it names; JSON documents last.

    Raises:
        StoreError: a document cannot be read.
    """
    wanted = frozenset(concept_ids)
    paths = [path for path in store.list(layout.RUNS) if (run := RunPaths.parse(path)) is None or path != run.spec]
    # Plans last: after a crash they still name what is to be forgotten.
    paths.sort(key=lambda path: path.endswith((".json", ".jsonl")))
    for start in range(0, len(paths), _DOCUMENTS_PER_BATCH):
        batch = paths[start : start + _DOCUMENTS_PER_BATCH]
        documents = store.read_many(batch)
        for path in batch:
            if found := _concepts_named(path, documents[path], wanted):
                yield path, found


def redact_document(path: str, document: bytes, concept_ids: Collection[str]) -> bytes | None:
    """Return a document without some concepts, or None if it has to be removed, because it is no JSON or damaged.

    An item of a list is removed if it is a concept's id, an object about it, or a sentence with the id in it. A
    summary's row count is reduced by the failures it has lost, so that its counts still add up.
    """
    wanted = frozenset(concept_ids)
    if path.endswith(".jsonl"):
        return _redact_log(document, wanted)
    parsed = _parse_json(path, document)
    if parsed is None:
        return None
    redacted = _redact_value(parsed, wanted)
    if isinstance(parsed, dict) and isinstance(parsed.get("rows"), int) and isinstance(parsed.get("failed"), list):
        redacted["rows"] -= len(parsed["failed"]) - len(redacted["failed"])
    return (json.dumps(redacted, indent=1, sort_keys=True) + "\n").encode()


def _concepts_named(path: str, data: bytes, wanted: frozenset[str]) -> frozenset[str]:
    if path.endswith(".jsonl"):
        found = (_subjects_of_event(event, wanted) | _concepts_listed(event, wanted) for event in _log_events(data))
        return frozenset().union(*found)
    parsed = _parse_json(path, data)
    if parsed is not None:
        return frozenset(_redacted_concepts(parsed, wanted))
    return _words(_EMBEDDED_IMAGE.sub("", data.decode("utf-8", errors="replace"))) & wanted


def _redact_log(data: bytes, wanted: frozenset[str]) -> bytes:
    kept = [event for event in _log_events(data) if not _subjects_of_event(event, wanted)]
    for event in kept:
        if isinstance(listed := event.get("concepts"), list):
            event["concepts"] = [concept_id for concept_id in listed if concept_id not in wanted]
    return "".join(json.dumps(event, sort_keys=True, ensure_ascii=False) + "\n" for event in kept).encode()


def _log_events(data: bytes) -> Iterator[dict[str, Any]]:
    """The JSON objects of a log; skips other lines, as every reader does."""
    for line in data.decode("utf-8", errors="replace").splitlines():
        with suppress(DamagedDocument):
            parsed = parse_json(line, name="", fix="")
            if isinstance(parsed, dict):
                yield parsed


def _subjects_of_event(event: dict[str, Any], wanted: frozenset[str]) -> frozenset[str]:
    """The concepts that a log's event is about, or that its text names."""
    return (_words(str(event.get("text", ""))) | {str(event.get("concept_id"))}) & wanted


def _concepts_listed(event: dict[str, Any], wanted: frozenset[str]) -> frozenset[str]:
    """The concepts that a log's event lists among others."""
    listed = event.get("concepts")
    return frozenset(map(str, listed)) & wanted if isinstance(listed, list) else frozenset()


def _parse_json(path: str, data: bytes) -> Any:
    try:
        return parse_json(data, name=path, fix="") if path.endswith(".json") else None
    except DamagedDocument:
        return None


def _redact_value(value: Any, wanted: frozenset[str]) -> Any:
    if isinstance(value, list):
        return [_redact_value(item, wanted) for item in value if not _subjects_of_item(item, wanted)]
    if isinstance(value, dict):
        return {name: _redact_value(item, wanted) for name, item in value.items() if name not in wanted}
    return value


def _redacted_concepts(value: Any, wanted: frozenset[str]) -> Iterator[str]:
    """The concepts for which `_redact_value` removes something."""
    if isinstance(value, list):
        for item in value:
            yield from found if (found := _subjects_of_item(item, wanted)) else _redacted_concepts(item, wanted)
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from [name] if name in wanted else _redacted_concepts(item, wanted)


def _subjects_of_item(item: Any, wanted: frozenset[str]) -> frozenset[str]:
    """The concepts that an item of a list is about: an object with a concept's id, an id, or a sentence with ids."""
    if isinstance(item, dict):
        return frozenset({str(item.get("concept_id"))}) & wanted
    if not isinstance(item, str):
        return frozenset()
    return (_words(item) if " " in item else frozenset({item})) & wanted


def _words(text: str) -> frozenset[str]:
    """The words of a text that could be concept ids, with and without punctuation at the end."""
    words = {match.group() for match in _WORD.finditer(text)}
    return frozenset(words | {word.rstrip("._-") for word in words})
