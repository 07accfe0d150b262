"""One digest of the files in a folder, cached until a file changes.

Hashing a base model's gigabytes takes seconds to minutes, and every submit needs it. So the digest is cached with the
size and times of every file. A cache entry that is missing, damaged or of other files only causes the files to be
hashed again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import platformdirs

from ...core.timing import FILE_SETTLED_S
from ..storage.local_files import replace_file

FOLDER_DIGEST = re.compile(r"sha256:[0-9a-f]{32}")
"""The form of `folder_digest`, which is also the revision of a model in a folder."""

_MIN_CACHED_BYTES = 64 << 20  # smaller folders are hashed in a moment

FileStates = dict[str, list[int]]
"""By path in the folder: size in bytes, and the times of the last change of content and of entry, in nanoseconds."""


def cache_folder() -> Path:
    """The folder of this machine's caches: `PERSRES_CACHE`, or the user's cache folder. It need not exist yet.

    It has to be on a local disk, because locks on it hold between processes of one machine.
    """
    named = os.environ.get("PERSRES_CACHE")
    if named:
        return Path(named).expanduser().absolute()
    return platformdirs.user_cache_path("persres-batch", appauthor=False)


def folder_digest(folder: Path, files: list[Path]) -> str:
    """A digest of the files' relative paths and bytes, independent of the folder's location and of times.

    Args:
        files: the files in `folder` to digest.
    """
    states, entry = _file_states(folder, files), _entry_path(folder)
    if sum(size for size, *_ in states.values()) < _MIN_CACHED_BYTES:
        return _hash_files(folder, files)
    cached = _read_entry(entry, folder, states)
    if cached is not None:
        return cached
    started = time.time()
    digest = _hash_files(folder, files)
    newest = max((max(times) for _, *times in states.values()), default=0)
    if newest < (started - FILE_SETTLED_S) * 1e9 and _file_states(folder, files) == states:
        _write_entry(entry, folder, states, digest)
    return digest


def _hash_files(folder: Path, files: list[Path]) -> str:
    return digest_of_files(file_digests(folder, [file.relative_to(folder).as_posix() for file in files]))


def file_digests(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """The SHA-256 of every file in hexadecimal digits, by its path in the folder."""
    names = list(names)
    with ThreadPoolExecutor(4) as pool:  # hashing releases the interpreter lock
        return dict(zip(names, pool.map(lambda name: _file_digest(folder / name), names), strict=True))


def digest_of_files(digests: Mapping[str, str]) -> str:
    """The `folder_digest` of files with these `file_digests`."""
    return "sha256:" + hashlib.sha256(json.dumps(sorted(digests.items())).encode()).hexdigest()[:32]


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _file_states(folder: Path, files: list[Path]) -> FileStates:
    stats = ((file.relative_to(folder).as_posix(), file.stat()) for file in files)
    return {name: [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns] for name, stat in sorted(stats)}


def _entry_path(folder: Path) -> Path:
    """The path of a folder's cache entry."""
    name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:32]
    return cache_folder() / "folder-digests" / f"{name}.json"


def _read_entry(entry: Path, folder: Path, states: FileStates) -> str | None:
    """The cached digest of files in these states, or None."""
    try:
        parsed: Any = json.loads(entry.read_bytes())
        digest = parsed["digest"] if (parsed["folder"], parsed["files"]) == (str(folder.resolve()), states) else ""
        return digest if FOLDER_DIGEST.fullmatch(digest) else None
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


def _write_entry(entry: Path, folder: Path, states: FileStates, digest: str) -> None:
    text = json.dumps({"folder": str(folder.resolve()), "files": states, "digest": digest})
    with suppress(OSError):  # without a home folder or on a full disk, the next submit hashes again
        replace_file(str(entry), text.encode())
