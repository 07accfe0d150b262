"""Lines on standard output and standard error: the one place that prints them.

Their text comes from manifests, catalogs, logs and stores, so none of it reaches a terminal as it is. An exit code
does not depend on who reads: characters that a stream cannot encode are escaped, and a closed pipe (`| head -1`) is no
error.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

from ...core.exit_codes import ExitCode
from ...core.terminal_text import terminal_line, terminal_lines


def echo(*lines: str, error: bool = False, flush: bool = False) -> None:
    """Print lines, each on one line whatever it holds; without a line, print nothing.

    Args:
        error: on standard error.
        flush: at once, for what somebody waits for.
    """
    _write("".join(terminal_line(line) + "\n" for line in lines), error=error, flush=flush)


def echo_error(message: str) -> None:
    """Print a message on standard error, which may have several lines of its own."""
    _write(terminal_lines(message) + "\n", error=True, flush=True)


def echo_document(text: str) -> None:
    """Print a document for programs on standard output: JSON, or a file that is not written to a disk.

    Args:
        text: JSON that is ASCII, or text from which its writer has kept control characters.
    """
    _write(text.replace("\x7f", "\\u007f") + ("" if text.endswith("\n") else "\n"), error=False, flush=True)


@contextmanager
def standard_streams() -> Iterator[None]:
    """Prepare standard output and standard error for the block, and flush them at its end.

    An exit code is changed by neither their encoding nor a pipe that its reader has closed. Output that is lost for
    another reason, such as a full disk, is an error.
    """
    streams = sys.stdout, sys.stderr
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    # A process may have been started without one.
    tolerant = [None if stream is None else cast(TextIO, _Tolerant(stream)) for stream in streams]
    sys.stdout, sys.stderr = tolerant  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        _flush()
        sys.stdout, sys.stderr = streams


class _Tolerant:
    """A stream whose reader may go away: what is left of the output is then discarded, and nobody hears of it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            _discard(self._stream)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            _discard(self._stream)


def _write(text: str, *, error: bool, flush: bool) -> None:
    stream = sys.stderr if error else sys.stdout
    if stream is None:  # a process started without one
        return
    stream.write(text)
    if flush:
        stream.flush()


def _flush() -> None:
    for stream in (sys.stderr, sys.stdout):
        if stream is None or stream.closed:
            continue
        try:
            stream.flush()
        except OSError as error:
            _discard(stream)
            echo_error(f"persres-batch: the output cannot be written: {error.strerror}")
            sys.exit(ExitCode.FAILED)


def _discard(stream: TextIO) -> None:
    """Send what a stream still holds, and all that follows, nowhere."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    except (OSError, ValueError):  # a stream without a descriptor
        return
