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

from ...core.errors import StoreRefused

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


def files_below(folder: str, *, follow_links: bool) -> Iterator[tuple[str, os.stat_result]]:
    """Path and state of every file in `folder` at any depth; what disappears meanwhile is left out.

    Raises:
        StoreRefused: there is a link, and `follow_links` is False: what it points to may lie anywhere. Links with
            hidden names, as editors make them, are left out.
    """
    try:
        with os.scandir(folder) as found:
            entries = list(found)
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        if not follow_links and entry.is_symlink():
            if not entry.name.startswith("."):
                raise _is_link(entry.path)
        elif entry.is_dir():
            yield from files_below(entry.path, follow_links=follow_links)
        else:
            with suppress(FileNotFoundError):
                yield entry.path, entry.stat()


def folders_in(folder: str) -> list[str]:
    """The paths of the folders directly in `folder`, without hidden ones and links; none where it cannot be read."""
    try:
        with os.scandir(folder) as found:
            return [one.path for one in found if one.is_dir(follow_symlinks=False) and not one.name.startswith(".")]
    except OSError:
        return []


def refuse_links(root: str, path: str) -> None:
    """Check that no part of the relative `path` is a link; `root` itself may be one.

    Raises:
        StoreRefused: a part is a link.
    """
    full = root
    for name in filter(None, path.split("/")):
        full = f"{full}/{name}"
        if os.path.islink(full):
            raise _is_link(full)


def _is_link(path: str) -> StoreRefused:
    return StoreRefused(
        f"{path} is a link, and no object of a catalog is read, changed or removed through one",
        fix="replace it by what it points to, or remove the link itself",
        reason="a link",
    )


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
