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
    from ..terminal.consoles import print_line  # here, because Rich takes long to import

    def print_event(event: RunEvent) -> None:
        if log_format == "json":
            print_line(console, event.to_json())
        elif event.event in _PRINTED_AS_TEXT:
            print_line(console, event.text)

    return print_event
