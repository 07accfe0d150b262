"""What the files of a folder hold, as one digest, computed again only when a file has changed.

Hashing a base model's gigabytes takes seconds to minutes, and every submit asks for it. So the digest is remembered in
the user's cache folder, beside the size and times of every file it was made of. That memory may be lost, damaged or
written by several processes at once: then the files are hashed again, and nothing worse.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
import uuid
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from ...core.timing import FILE_SETTLED_S
from .cache_folder import cache_folder

_DIGEST = re.compile(r"sha256:[0-9a-f]{32}")
_WORTH_REMEMBERING = 64 << 20  # bytes; fewer are hashed in a moment

State = dict[str, list[int]]
"""Of every file, by its path in the folder: size in bytes, and when content and entry last changed, in nanoseconds."""


def folder_digest(folder: Path, files: list[Path]) -> str:
    """One digest over the files' relative names and bytes; neither the folder's own place nor any time counts.

    Args:
        files: inside `folder`, the ones that count.
    """
    state, memory = _state(folder, files), _memory_of(folder)
    if sum(size for size, *_ in state.values()) < _WORTH_REMEMBERING:
        return _hashed(folder, files)
    remembered = _recall(memory, folder, state)
    if remembered is not None:
        return remembered
    started = time.time()
    digest = _hashed(folder, files)
    newest = max((max(times) for _, *times in state.values()), default=0)
    if newest < (started - FILE_SETTLED_S) * 1e9 and _state(folder, files) == state:
        _remember(memory, folder, state, digest)
    return digest


def _hashed(folder: Path, files: list[Path]) -> str:
    return digest_of_files(file_digests(folder, [file.relative_to(folder).as_posix() for file in files]))


def file_digests(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """The SHA-256 of every file's bytes, in hexadecimal digits, by its path in the folder."""
    names = list(names)
    with ThreadPoolExecutor(4) as pool:  # hashing releases the interpreter lock, and weights are gigabytes
        return dict(zip(names, pool.map(lambda name: _file_digest(folder / name), names), strict=True))


def digest_of_files(digests: Mapping[str, str]) -> str:
    """`folder_digest` of a folder whose files have these digests, as `file_digests` gives them."""
    return "sha256:" + hashlib.sha256(json.dumps(sorted(digests.items())).encode()).hexdigest()[:32]


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _state(folder: Path, files: list[Path]) -> State:
    stats = ((file.relative_to(folder).as_posix(), file.stat()) for file in files)
    return {name: [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns] for name, stat in sorted(stats)}


def _memory_of(folder: Path) -> Path:
    """The file that remembers this folder's digest; one a folder, so that writers of different ones never meet."""
    name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:32]
    return cache_folder() / "folder-digests" / f"{name}.json"


def _recall(memory: Path, folder: Path, state: State) -> str | None:
    try:
        told: Any = json.loads(memory.read_bytes())
        digest = told["digest"] if (told["folder"], told["files"]) == (str(folder.resolve()), state) else ""
        return digest if _DIGEST.fullmatch(digest) else None
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


def _remember(memory: Path, folder: Path, state: State, digest: str) -> None:
    text = json.dumps({"folder": str(folder.resolve()), "files": state, "digest": digest})
    temporary = memory.with_name(f".{memory.name}.{uuid.uuid4().hex}.tmp")
    with suppress(OSError):  # no home, a full disk: the next submit hashes again
        memory.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_text(text, encoding="utf-8")
            os.replace(temporary, memory)
        finally:
            temporary.unlink(missing_ok=True)
