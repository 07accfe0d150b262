"""Whole objects on a local disk: a name appears when all of its bytes are safely there, and never before.

Folders are read here rather than by fsspec, which takes a folder that cannot be read for an empty one.
"""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})


def replace_file(target: str, data: bytes) -> None:
    """Write a file, in place of one of that name."""
    with _temporary_file(target, data) as temporary:
        os.replace(temporary, target)
    _sync_folder(target)


def create_file(target: str, data: bytes) -> None:
    """Write a file of a new name; FileExistsError if there is one."""
    with _temporary_file(target, data) as temporary:
        _link_or_create(temporary, target, data)
    _sync_folder(target)


def files_below(folder: str) -> Iterator[tuple[str, os.stat_result]]:
    """Path and state of every file in `folder` at any depth; what disappears meanwhile is left out."""
    try:
        with os.scandir(folder) as found:
            entries = list(found)
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        if entry.is_dir():
            yield from files_below(entry.path)
        else:
            with suppress(FileNotFoundError):
                yield entry.path, entry.stat()


@contextmanager
def _temporary_file(target: str, data: bytes) -> Iterator[str]:
    """A synced file holding `data` beside `target`, hidden from listings, and gone afterwards unless renamed."""
    folder = Path(target).parent
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{Path(target).name}.{uuid.uuid4().hex}.tmp"
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield str(temporary)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _link_or_create(temporary: str, target: str, data: bytes) -> None:
    """Give `temporary` the name `target` unless that is taken (FileExistsError); whole at once where disks can link."""
    try:
        os.link(temporary, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        with open(target, "xb") as file:
            file.write(data)


def _sync_folder(target: str) -> None:
    """Make a new name survive a power cut, where the disk can: the object itself is already there and whole."""
    with suppress(OSError):
        descriptor = os.open(Path(target).parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
