"""Graceful shutdown by SIGINT and SIGTERM: the first one lets shards in flight be committed, the second one interrupts.

Outside of `StopRequest.graceful` no shard is in flight, and the first signal interrupts too. `StopRequest.set` does the
same as a SIGTERM, for callers in other threads.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from ...core.exit_codes import ExitCode

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Whether this process has been requested to stop; true once it has been.

    Attributes:
        received: the first signal, if any.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._is_graceful = False
        self._handles_sigterm = False

    def __bool__(self) -> bool:
        return self.received is not None

    @property
    def exit_code(self) -> ExitCode:
        """The exit code that a shell reports for a process ended by this signal."""
        return ExitCode.TERMINATED if self.received is signal.SIGTERM else ExitCode.INTERRUPTED

    def set(self) -> None:
        """Request a stop from any thread, as a first SIGTERM does; a second call has no effect."""
        if self.received is not None:
            return
        main = threading.main_thread().ident
        if self._handles_sigterm and main is not None:
            signal.pthread_kill(main, signal.SIGTERM)  # it may be asleep, and only a signal wakes it
        else:
            self.received = signal.SIGTERM

    @contextmanager
    def graceful(self) -> Iterator[None]:
        """Until the block ends the first signal only sets this request, which the block has to poll."""
        previous = _install(self._handle)  # again: a library may have installed its own handlers since
        self._is_graceful = True
        try:
            yield
        finally:
            self._is_graceful = False
            _restore(previous)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        first = self.received is None
        if first:
            self.received = signal.Signals(number)
        if not (first and self._is_graceful):
            raise KeyboardInterrupt


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Until the block ends, SIGINT and SIGTERM raise KeyboardInterrupt, or inside `graceful()` set the request.

    A process that ignores SIGINT continues to do so. Outside the main thread, which alone receives signals, no handler
    is installed.
    """
    request = StopRequest()
    previous = _install(request._handle)
    request._handles_sigterm = signal.SIGTERM in previous
    try:
        yield request
    finally:
        request._handles_sigterm = False
        _restore(previous)


def _install(handler: object) -> dict[signal.Signals, object]:
    """Install a handler for every signal that is not ignored. Returns the previous handlers."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    numbers = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in numbers}  # pyright: ignore[reportArgumentType]


def _restore(previous: dict[signal.Signals, object]) -> None:
    for number, handler in previous.items():
        signal.signal(number, handler)  # pyright: ignore[reportArgumentType]
