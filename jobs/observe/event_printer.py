"""Printing the events of a run as they are emitted."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from ...pipeline.run.log import RunEvent

if TYPE_CHECKING:
    from rich.console import Console

LogFormat = Literal["text", "json"]

_PRINTED_AS_TEXT = frozenset({"notice", "incident"})
"""The progress display and the summary at the end of a run show the other events."""


def event_printer(console: Console, log_format: LogFormat) -> Callable[[RunEvent], None]:
    """Return a function that prints an event: as text only incidents and notices, as JSON lines every event."""
    if log_format == "json":
        return lambda event: print(event.to_json(), file=console.file, flush=True)

    def print_text(event: RunEvent) -> None:
        if event.event in _PRINTED_AS_TEXT:
            console.print(event.text, highlight=False, markup=False, soft_wrap=True)

    return print_text
