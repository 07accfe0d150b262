"""Commands in processes of their own."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any


def command_line(*arguments: object) -> list[str]:
    """`persres-batch` with the given arguments, run by this Python."""
    return [sys.executable, "-m", "persres.jobs.cli", *map(str, arguments)]


@contextmanager
def running(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Start a process with captured output; kill it when the block ends.

    Args:
        options: of `subprocess.Popen`.
    """
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, **options)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_until(
    condition: Callable[[], object], process: subprocess.Popen[str] | None = None, timeout_s: float = 200
) -> None:
    """Return when `condition` holds; fail after `timeout_s`, or as soon as `process` has ended."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"not within {timeout_s:.0f} s"
        time.sleep(0.1)


def restore_sigint() -> None:
    """For `preexec_fn`: a test run in the background ignores SIGINT, which its children inherit."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
