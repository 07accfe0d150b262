"""Where the embedded Ray keeps its sessions: a folder whose path leaves room for the names of sockets.

The path of a Unix socket has at most 107 bytes, 103 on macOS, and Ray puts its own below the folder for temporary
files, which schedulers of batch jobs like to give a long name.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from ...core.errors import InvalidInput

_MAX_SOCKET_BYTES = 103 if sys.platform == "darwin" else 107
_LONGEST_SOCKET = "/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
_SHORT_FOLDERS = ("/tmp", "/var/tmp")


def check_session_folder() -> None:
    """Check that there is a folder for Ray's sessions, before there is a run to lose.

    Raises:
        InvalidInput: every folder for temporary files has too long a path, or cannot be written.
    """
    _short_folder()


@contextmanager
def session_folder() -> Iterator[str | None]:
    """Yield the folder to give to Ray, which is removed at the end of the block; None for Ray's own choice.

    Raises:
        InvalidInput: as for `check_session_folder`.
    """
    parent = _short_folder()
    if parent is None:
        yield None
        return
    folder = tempfile.mkdtemp(prefix="ray-", dir=parent)  # for this user alone
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _short_folder() -> str | None:
    """The folder to make one for Ray's sessions in; None if Ray's own choice is short enough."""
    default = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    if _fits(os.path.join(default, "ray")):
        return None
    for parent in _SHORT_FOLDERS:
        if _fits(os.path.join(parent, "ray-12345678")) and os.access(parent, os.W_OK | os.X_OK):
            return parent
    raise InvalidInput(
        f"the folder for temporary files, {default}, has too long a path for Ray's sockets",
        fix="set TMPDIR to a shorter folder",
    )


def _fits(folder: str) -> bool:
    return len(os.fsencode(folder + _LONGEST_SOCKET)) <= _MAX_SOCKET_BYTES
