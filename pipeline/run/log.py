"""What happened in a run, an object a line: for machines that collect logs, and for people when the cluster is gone.

The driver tells every event as it happens. All of them together are `runs/<run id>/log.jsonl` of the catalog. Object
stores do not append, so the whole object is written again now and then by a thread of its own, and once more at the
end. A store that does not take it never ends a run, nor keeps it waiting.
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

from rich.console import Console

from ...core.errors import StoreError
from ..catalog.store import CatalogStore
from ..timing import RUN_LOG_WRITE_INTERVAL_S

Level = Literal["info", "warning", "error"]

LOG_FILE = "log.jsonl"
FIRST_LINES, LAST_LINES = 2_000, 18_000
"""A log keeps its beginning and its end; what is left out between them is one line that says how much."""

_BYTES_A_SECOND = 50_000
"""A long log is written again less often: at most about so many bytes a second."""


@dataclass(frozen=True, slots=True)
class RunEvent:
    """One thing that happened.

    Attributes:
        time: UTC, such as "2026-11-22T19:05:01.250Z".
        event: what kind of thing: run_started, plan, shard_started, shard_ended, concept_failed, progress, incident,
            notice, run_ended, run_stopped, run_failed.
        text: the same for people.
        fields: what else is known of it, such as shard_id, attempt, concept_id and seconds, by name.
    """

    time: str
    level: Level
    event: str
    run_id: str
    text: str
    fields: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """One line, without its end."""
        told = asdict(self)
        return json.dumps({**told.pop("fields"), **told}, sort_keys=True, ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str) -> RunEvent:
        """Raises ValueError for a line that is none of ours."""
        told = json.loads(line)
        if not isinstance(told, dict):
            raise ValueError("not an object")
        named = {name: str(told.pop(name, "")) for name in ("time", "event", "run_id", "text")}
        level = told.pop("level", "info")
        return cls(**named, level=level if level in ("warning", "error") else "info", fields=told)


def line_of(event: RunEvent) -> str:
    """An event for people, on one line."""
    mark = "" if event.level == "info" else f"{event.level}: "
    return f"{event.time[:19].replace('T', ' ')}  {mark}{event.text or event.event}"


def read_run_log(store: CatalogStore, run_id: str) -> list[RunEvent]:
    """A run's events as far as they were kept, the oldest first; lines that cannot be read are left out.

    Raises:
        StoreError: there is no log, or it cannot be read.
    """
    events = []
    for line in store.read(store.run_file(run_id, LOG_FILE)).decode("utf-8", errors="replace").splitlines():
        with suppress(ValueError):
            events.append(RunEvent.from_json(line))
    return events


def utc_now() -> datetime:
    """The present; tests bring their own."""
    return datetime.now(UTC)


class RunLog:
    """The log of one run, as its driver keeps it; a context manager, which writes it a last time at its end.

    Args:
        store: the run's catalog; its patience should be brief. None: events are only passed on.
        on_event: told of every event at once.
    """

    def __init__(
        self,
        store: CatalogStore | None,
        run_id: str,
        on_event: Callable[[RunEvent], None] = lambda event: None,
        *,
        clock: Callable[[], datetime] = utc_now,
        write_every_s: float = RUN_LOG_WRITE_INTERVAL_S,
    ) -> None:
        self._store, self.run_id, self._on_event, self._clock = store, run_id, on_event, clock
        self._first: list[str] = []
        self._last: deque[str] = deque(maxlen=LAST_LINES)
        self._told = 0
        self._written = 0
        self._write_every_s = write_every_s
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._writer = threading.Thread(target=self._write_now_and_then, name="run-log", daemon=True)

    def __enter__(self) -> RunLog:
        if self._store is not None:
            self._writer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._store is not None:
            self._writer.join()
            self._write()

    def tell(self, event: str, text: str, level: Level = "info", **fields: Any) -> None:
        """Something happened; `fields` whose value is None are left out."""
        stamp = self._clock().astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
        known = {name: value for name, value in fields.items() if value is not None}
        told = RunEvent(stamp, level, event, self.run_id, text, known)
        with self._lock:
            (self._first if len(self._first) < FIRST_LINES else self._last).append(told.to_json())
            self._told += 1
        self._on_event(told)

    def lines(self) -> Sequence[str]:
        """What is kept."""
        with self._lock:
            first, last, left_out = list(self._first), list(self._last), self._told - len(self._first) - len(self._last)
        if left_out:
            text = f"{left_out} events are left out here"
            gap = RunEvent("", "warning", "left_out", self.run_id, text, {"events": left_out})
            first.append(gap.to_json())
        return first + last

    def _write_now_and_then(self) -> None:
        pause_s = self._write_every_s
        while not self._over.wait(pause_s):
            pause_s = max(self._write_every_s, self._write() / _BYTES_A_SECOND)

    def _write(self) -> int:
        """Write the log if anything was told since the last time; returns how many bytes that were."""
        told = self._told
        if self._store is None or told == self._written:
            return 0
        data = ("\n".join(self.lines()) + "\n").encode()
        try:
            self._store.write(self._store.run_file(self.run_id, LOG_FILE), data)
        except StoreError:
            return len(data)  # the next time, or never: the results do not depend on it
        self._written = told
        return len(data)


LogFormat = Literal["text", "json"]
_FOR_PEOPLE = frozenset({"notice", "incident"})
"""What is printed as it happens; a display shows progress, and the end of a run has lines of its own."""


def event_printer(console: Console, log_format: LogFormat) -> Callable[[RunEvent], None]:
    """A function that prints events as they happen: for people what they are to know, or everything as JSON lines."""
    if log_format == "json":
        return lambda event: print(event.to_json(), file=console.file, flush=True)

    def show(event: RunEvent) -> None:
        if event.event in _FOR_PEOPLE:
            console.print(event.text, highlight=False, markup=False, soft_wrap=True)

    return show
