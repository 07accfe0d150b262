"""Files that commands write on this machine: whole or not at all, through no link, replaced only where that is asked.

A path that cannot be written is the command's fault (exit code 2), and found before there is work to lose.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ...core.errors import InvalidInput
from .local_files import replace_file


def require_absent(paths: Iterable[Path], *, force: bool) -> None:
    """Refuse to replace what is there, also a link to nothing, unless `force`.

    Raises:
        InvalidInput: one of the paths exists.
    """
    existing = [path for path in paths if os.path.lexists(path)]
    if existing and not force:
        more = f" and {len(existing) - 1} more of these files" if existing[1:] else ""
        raise InvalidInput(f"{existing[0]} already exists{more}", fix="choose another name, or replace it with --force")


def require_own_folder(folder: Path, *, within: Path) -> None:
    """Check that a folder to write is directly in `within`, and is neither a link nor a file.

    Raises:
        InvalidInput: it is not so.
    """
    if folder.parent != within or folder.name in ("", ".."):
        raise InvalidInput(f"{folder} is not in {within}", fix="leave such a concept out: its id is no folder's name")
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise InvalidInput(f"{folder} is a link or a file", fix="remove it, or choose another folder with --out")


def require_writable(path: Path) -> None:
    """Check that a file can be written at `path`, before the work that it is to hold.

    Raises:
        InvalidInput: it is a folder, or its folder cannot be written.
    """
    if path.is_dir():
        raise InvalidInput(f"{path} is a folder", fix=f"give a file, such as {path / 'report.html'}")
    with refusing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise PermissionError(13, "Permission denied")


def write_file(path: Path, content: str | bytes) -> None:
    """Write a file, replacing one of that name; where a link is, the link is replaced and its target stays.

    Raises:
        InvalidInput: it cannot be written.
    """
    data = content.encode("utf-8", errors="backslashreplace") if isinstance(content, str) else content
    with refusing(path):
        if _is_stream(path):
            path.write_bytes(data)
        else:
            replace_file(str(path), data)


@contextmanager
def refusing(path: Path) -> Iterator[None]:
    """Raise what the disk refuses in the block as InvalidInput that names `path`."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InvalidInput(f"cannot write {path}: {reason}", fix="choose another place, or make it writable") from None


def _is_stream(path: Path) -> bool:
    """Whether `path` is a device or a pipe, such as /dev/stdout, which is written and not replaced."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return stat.S_ISCHR(mode) or stat.S_ISFIFO(mode)
