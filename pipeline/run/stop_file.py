"""Stopping a run by a word in its catalog: from any machine that can write there, whatever the run itself runs on."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from ...core.errors import StoreError
from ..catalog.store import CatalogStore
from ..timing import STOP_FILE_POLL_S, STOP_FILE_RETRY_S


@dataclass(frozen=True, slots=True)
class StopWord:
    """Who wants a run to stop, such as "ana@laptop", and since when (UTC, ISO 8601)."""

    by: str
    at: str


def ask_to_stop(store: CatalogStore, run_id: str, by: str) -> None:
    """Leave word that a run is to stop as if it had got SIGTERM. It does within seconds, or has ended already.

    Raises:
        StoreError: it cannot be written.
    """
    word = StopWord(by, datetime.now(UTC).isoformat(timespec="seconds"))
    store.write(store.run_file(run_id, "stop.json"), (json.dumps(asdict(word), indent=1) + "\n").encode())


@contextmanager
def heeding_catalog(
    store: CatalogStore, run_id: str, on_asked: Callable[[StopWord], None], *, every_s: float = STOP_FILE_POLL_S
) -> Iterator[None]:
    """While the block lasts, `on_asked` is called once, from another thread, if somebody wants this run to stop."""
    watch = _Watch(store.with_patience(STOP_FILE_RETRY_S), store.run_file(run_id, "stop.json"), on_asked, every_s)
    watch.start()
    try:
        yield
    finally:
        watch.end()


class _Watch(threading.Thread):
    def __init__(self, store: CatalogStore, path: str, on_asked: Callable[[StopWord], None], every_s: float) -> None:
        super().__init__(name="catalog-stop", daemon=True)
        self._store, self._path, self._on_asked, self._every_s = store, path, on_asked, every_s
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(self._every_s):
            try:
                if self._store.exists(self._path) and not self._over.is_set():
                    self._on_asked(self._word())
                    return
            except StoreError:  # the run itself finds out, and has its own patience
                continue

    def end(self) -> None:
        self._over.set()  # not joined: it may be waiting for the store, and is only reading

    def _word(self) -> StopWord:
        try:
            told = json.loads(self._store.read(self._path))
            return StopWord(str(told["by"]), str(told["at"]))
        except (ValueError, TypeError, KeyError):
            return StopWord("somebody", "an unknown time")
