"""The log of a run: its events as JSON lines, in `runs/<run id>/log.jsonl` of the catalog.

Object stores cannot append, so a thread rewrites the whole object at intervals, and once more at the end. A store that
refuses it neither fails a run nor makes it wait.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Literal

from pydantic_core import from_json

from ...core.errors import StoreError
from ...core.timing import RUN_LOG_WRITE_INTERVAL_S
from ..catalog.layout import RunPaths
from ..catalog.store import CatalogStore

Level = Literal["info", "warning", "error"]

FIRST_LINES, LAST_LINES = 2_000, 18_000
"""A log keeps its first and its last lines; one line between them counts those left out."""

_WRITE_BYTES_PER_S = 50_000
"""The longer a log, the less often it is rewritten: this bounds the average rate."""


@dataclass(frozen=True, slots=True)
class RunEvent:
    """One event of a run.

    Attributes:
        time: UTC, such as "2026-11-22T19:05:01.250Z".
        event: its kind: run_started, plan, shard_started, shard_ended, concept_failed, progress, incident, notice,
            run_ended, run_stopped, run_failed.
        text: the event for people.
        fields: further values by name, such as shard_id, attempt, concept_id and seconds.
    """

    time: str
    level: Level
    event: str
    run_id: str
    text: str
    fields: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """The event as one line, without a line break."""
        values = asdict(self)
        return json.dumps({**values.pop("fields"), **values}, sort_keys=True, ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str) -> RunEvent:
        """Parse a line of `to_json`.

        Raises:
            ValueError: the line is no JSON object.
        """
        values = from_json(line)
        if not isinstance(values, dict):
            raise ValueError("not an object")
        named = {name: str(values.pop(name, "")) for name in ("time", "event", "run_id", "text")}
        level = values.pop("level", "info")
        return cls(**named, level=level if level in ("warning", "error") else "info", fields=values)


def format_event(event: RunEvent) -> str:
    """An event as a line for people."""
    mark = "" if event.level == "info" else f"{event.level}: "
    return f"{event.time[:19].replace('T', ' ')}  {mark}{event.text or event.event}"


def read_run_log(store: CatalogStore, run_id: str) -> list[RunEvent]:
    """The events in a run's log, oldest first. Damaged lines are left out.

    Raises:
        StoreError: there is no log, or it cannot be read.
    """
    events = []
    for line in store.read(RunPaths(run_id).log).decode("utf-8", errors="replace").splitlines():
        with suppress(ValueError):
            events.append(RunEvent.from_json(line))
    return events


def _utc_now() -> datetime:
    return datetime.now(UTC)


class RunLog:
    """The log of one run, kept by its driver. As a context manager, it is written a last time when the block ends.

    Args:
        store: the run's catalog, which should retry only briefly. None: events are only passed to `on_event`.
        on_event: called with every event as it is emitted.
        clock: the present in UTC; tests pass their own.
    """

    def __init__(
        self,
        store: CatalogStore | None,
        run_id: str,
        on_event: Callable[[RunEvent], None] = lambda event: None,
        *,
        clock: Callable[[], datetime] = _utc_now,
        write_interval_s: float = RUN_LOG_WRITE_INTERVAL_S,
    ) -> None:
        self._store, self.run_id, self._on_event, self._clock = store, run_id, on_event, clock
        self._first: list[str] = []
        self._last: deque[str] = deque(maxlen=LAST_LINES)
        self._emitted = 0
        self._written = 0
        self._write_interval_s = write_interval_s
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._writer = threading.Thread(target=self._write_at_intervals, name="run-log", daemon=True)

    def __enter__(self) -> RunLog:
        if self._store is not None:
            self._writer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._store is not None:
            self._writer.join()
            self._write()

    def emit(self, event: str, text: str, level: Level = "info", **fields: Any) -> None:
        """Log an event; `fields` whose value is None are left out."""
        stamp = self._clock().astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
        known = {name: value for name, value in fields.items() if value is not None}
        run_event = RunEvent(stamp, level, event, self.run_id, text, known)
        with self._lock:
            (self._first if len(self._first) < FIRST_LINES else self._last).append(run_event.to_json())
            self._emitted += 1
        self._on_event(run_event)

    def lines(self) -> Sequence[str]:
        """The retained lines."""
        with self._lock:
            first, last = list(self._first), list(self._last)
            left_out = self._emitted - len(first) - len(last)
        if left_out:
            text = f"{left_out} events are left out here"
            gap = RunEvent("", "warning", "left_out", self.run_id, text, {"events": left_out})
            first.append(gap.to_json())
        return first + last

    def _write_at_intervals(self) -> None:
        interval_s = self._write_interval_s
        while not self._ended.wait(interval_s):
            interval_s = max(self._write_interval_s, self._write() / _WRITE_BYTES_PER_S)

    def _write(self) -> int:
        """Write the log if it has new events. Returns its size in bytes."""
        emitted = self._emitted
        if self._store is None or emitted == self._written:
            return 0
        # A name that is not UTF-8 holds lone surrogates, whose escapes are JSON's too.
        data = ("\n".join(self.lines()) + "\n").encode(errors="backslashreplace")
        try:
            self._store.write(RunPaths(self.run_id).log, data)
        except StoreError:
            return len(data)  # the next write includes it; no result depends on the log
        self._written = emitted
        return len(data)
