"""Ctrl-C and termination signals: the first asks a run to end in an orderly way, the next one ends it at once.
Whoever cannot send a signal has `StopRequest.ask`.

Orderly is only possible while shards are in flight. Before that and after it there is nothing to wait for, and the
first signal ends the run like the second.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Whether somebody has asked this process to stop. `received` is the first signal that did."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._orderly = False
        self._heeds_signals = False

    def __bool__(self) -> bool:
        return self.received is not None

    @property
    def exit_code(self) -> int:
        """What a shell reports of a process that such a signal ended: 130 for Ctrl-C, 143 for a termination signal."""
        return 128 + (self.received or signal.SIGINT)

    def ask(self) -> None:
        """Ask the run to stop, from any thread, as a first SIGTERM does."""
        if self.received is not None:
            return
        main = threading.main_thread().ident
        if self._heeds_signals and main is not None:
            signal.pthread_kill(main, signal.SIGTERM)  # it may be asleep, and only a signal wakes it
        else:
            self.received = signal.SIGTERM

    @contextmanager
    def orderly(self) -> Iterator[None]:
        """While the block lasts the first signal is only noted; whoever is inside looks at this object now and then."""
        before = _handlers(self._heed)  # again: a library started since then may have put its own in place
        self._orderly = True
        try:
            yield
        finally:
            self._orderly = False
            _restore(before)

    def _heed(self, number: int, frame: FrameType | None) -> None:
        first = self.received is None
        if first:
            self.received = signal.Signals(number)
        if not (first and self._orderly):
            raise KeyboardInterrupt


@contextmanager
def heeding_signals() -> Iterator[StopRequest]:
    """Turn SIGINT and SIGTERM into KeyboardInterrupt, or inside `orderly()` into a request, until the block ends.

    A process that was told to ignore Ctrl-C goes on ignoring it, and one that is not in its main thread, which alone
    gets signals, never sees a request.
    """
    request = StopRequest()
    before = _handlers(request._heed)
    request._heeds_signals = signal.SIGTERM in before
    try:
        yield request
    finally:
        request._heeds_signals = False
        _restore(before)


def _handlers(heed: object) -> dict[signal.Signals, object]:
    """Put `heed` in place; returns what was there before."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    heeded = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    return {number: signal.signal(number, heed) for number in heeded}  # pyright: ignore[reportArgumentType]


def _restore(before: dict[signal.Signals, object]) -> None:
    for number, handler in before.items():
        signal.signal(number, handler)  # pyright: ignore[reportArgumentType]
