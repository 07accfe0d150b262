"""Stopping a run through its catalog: from any machine that can write there, wherever the run works."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from ...core.errors import StoreError
from ...core.timing import STOP_FILE_POLL_S, STOP_FILE_RETRY_S
from ..catalog.layout import RunPaths
from ..catalog.store import CatalogStore
from ..storage.json_document import DamagedDocument, parse_document


@dataclass(frozen=True, slots=True)
class StopFile:
    """The content of a run's stop file.

    Attributes:
        by: who requested the stop, such as "ana@laptop".
        at: when (UTC, ISO 8601).
    """

    by: str
    at: str


def write_stop_file(store: CatalogStore, run_id: str, by: str) -> None:
    """Request that a run stops as it does at a SIGTERM. It does so within seconds, unless it has ended already.

    Raises:
        StoreError: the stop file cannot be written.
    """
    content = StopFile(by, datetime.now(UTC).isoformat(timespec="seconds"))
    store.write(RunPaths(run_id).stop_request, (json.dumps(asdict(content), indent=1) + "\n").encode())


@contextmanager
def watch_stop_file(
    store: CatalogStore, run_id: str, on_stop: Callable[[StopFile], None], *, poll_s: float = STOP_FILE_POLL_S
) -> Iterator[None]:
    """Until the block ends, call `on_stop` once, from another thread, if the run's stop file appears."""
    watcher = _Watcher(store.with_retry(STOP_FILE_RETRY_S), RunPaths(run_id).stop_request, on_stop, poll_s)
    watcher.start()
    try:
        yield
    finally:
        watcher.end()


class _Watcher(threading.Thread):
    def __init__(self, store: CatalogStore, path: str, on_stop: Callable[[StopFile], None], poll_s: float) -> None:
        super().__init__(name="catalog-stop", daemon=True)
        self._store, self._path, self._on_stop, self._poll_s = store, path, on_stop, poll_s
        self._ended = threading.Event()

    def run(self) -> None:
        while not self._ended.wait(self._poll_s):
            try:
                if self._store.exists(self._path) and not self._ended.is_set():
                    self._on_stop(self._read())
                    return
            except StoreError:  # the run itself meets the same error, and retries it for as long as its spec says
                continue

    def end(self) -> None:
        self._ended.set()  # not joined: it may be blocked in a read of the store, which does no harm

    def _read(self) -> StopFile:
        name = self._store.url(self._path)
        try:
            return parse_document(self._store.read(self._path), StopFile, name=name, fix="delete it")
        except DamagedDocument:  # it is there, and that says enough
            return StopFile("somebody", "an unknown time")
