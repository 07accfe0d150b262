"""A model's folder in an object store: what is in it, as its listing says, and its files brought to this machine."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from fsspec.callbacks import Callback

from ...core.errors import InvalidInput, StoreError, StoreRefused, StoreUnavailable
from ..catalog.store import PATIENCE_S
from ..storage.errors import fix_for, meaning_of
from ..storage.retry import ask
from ..storage.uri import open_file_system, secrets_in, struck
from .names import check_model_uri

OnBytes = Callable[[int, int], None]
"""Called with (bytes so far, of how many)."""

_FILES_AT_ONCE = 4  # s3fs alone fetches a large file in ten ranges at a time
_CONTENT_TAGS = ("md5Hash", "ETag", "etag", "crc32c")
_TIME_TAGS = ("LastModified", "last_modified", "mtime", "updated", "modified", "created")
_MARGIN_BYTES = 64 << 20  # a disk filled to its last byte breaks more than a download

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """What a listing says about a file. `tag` changes when its content does; None: the store has nothing like it."""

    size: int
    tag: str | None


class RemoteFolder:
    """A folder that fsspec can list. What fails in passing is tried again, as in a catalog.

    Args:
        what: what messages call it, such as "base_model".

    Raises:
        InvalidInput: `check_model_uri` refuses the address, or no file system is installed for its scheme.
    """

    def __init__(self, uri: str, *, what: str, patience_s: float = PATIENCE_S) -> None:
        check_model_uri(uri, what)
        self.uri, self.what = uri.rstrip("/"), what
        self._patience_s = patience_s
        self._secrets = secrets_in({})
        self._fs, self._root = open_file_system(self.uri, {}, what=what)

    def list(self, entry: str) -> dict[str, RemoteFile]:
        """Every file below the folder, by its relative path; hidden ones are left out.

        Args:
            entry: the file without which it is no such folder; whole buckets are not listed to find that out.

        Raises:
            InvalidInput: there is no such folder, or not that file in it.
            StoreError: the store did not answer, or will not.
        """
        path = f"{self._root}/{entry}"
        self._ask("find", entry, lambda: self._fresh().info(path))
        found = self._ask("list", "", lambda: self._fresh().find(self._root, detail=True))
        files = {str(name)[len(self._root) + 1 :]: state for name, state in found.items()}
        return {
            name: RemoteFile(int(state.get("size") or 0), _tag(state))
            for name, state in sorted(files.items())
            if state.get("type") != "directory" and not _is_outside(name)
        }

    def fetch(self, files: Mapping[str, RemoteFile], folder: Path, on_bytes: OnBytes) -> None:
        """Bring files into `folder`, some at a time; those that are there already, whole, are left alone.

        A file has its name only when all of it is on the disk.

        Raises:
            InvalidInput: a file is no longer there, or not as long as the listing says.
            StoreRefused: there is no room for them, or the store says no.
            StoreUnavailable: the store did not answer as it should.
        """
        here = {name for name, file in files.items() if _size(folder / name) == file.size}
        left = sorted(files.keys() - here, key=lambda name: -files[name].size)
        progress = _Progress(sum(file.size for file in files.values()), on_bytes)
        progress.add("", sum(files[name].size for name in here))
        self._require_room(folder, sum(files[name].size for name in left))
        pool = ThreadPoolExecutor(_FILES_AT_ONCE, thread_name_prefix="model")
        try:
            for _ in pool.map(lambda name: self._fetch_one(name, files[name], folder / name, progress), left):
                pass
        finally:
            progress.stop()  # after an error or Ctrl-C, gigabytes that are still coming are not waited for
            pool.shutdown(cancel_futures=True)

    def _fetch_one(self, name: str, file: RemoteFile, target: Path, progress: _Progress) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f"{target.name}.part")

        def get() -> None:
            progress.forget(name)
            self._fs.get_file(f"{self._root}/{name}", str(part), callback=_Counted(name, progress))
            if _size(part) != file.size:
                raise OSError(errno.EAGAIN, f"{_size(part)} bytes came of {file.size}")

        self._ask("fetch", name, get)
        with part.open("rb") as written:
            os.fsync(written.fileno())  # what has its name must be whole also after the power went
        part.replace(target)

    def _require_room(self, folder: Path, needed: int) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(folder).free
        except OSError as error:
            raise StoreRefused(f"cannot write to {folder}: {error.strerror}", fix=_OTHER_DISK) from error
        if needed + _MARGIN_BYTES > free:
            reason = f"no room for {self.what} {self.uri!r}: {_gigabytes(needed)} to fetch, {_gigabytes(free)} free"
            raise StoreRefused(f"{reason} on the disk of {folder}", fix=_OTHER_DISK)

    def _fresh(self) -> Any:
        self._fs.invalidate_cache()
        return self._fs

    def _ask(self, verb: str, name: str, operation: Callable[[], T]) -> T:
        try:
            return ask(
                operation,
                patience_s=self._patience_s,
                is_passing=lambda error: meaning_of(error, on_disk=False) == "passing",
                said=lambda error: self._said(error, verb, name),
            )
        except Exception as error:
            meaning = meaning_of(error, on_disk=False)
            if meaning == "bug":
                raise
            # `from None`: the store's own error may carry a signed request, which a traceback would print
            raise self._named(error, verb, name, meaning) from None

    def _said(self, error: BaseException, verb: str, name: str) -> str:
        text = " ".join(str(error).split()).rstrip(".")
        return (
            f"cannot {verb} {f'{self.uri}/{name}'.rstrip('/')}: {type(error).__name__}: {struck(text, self._secrets)}"
        )

    def _named(self, error: Exception, verb: str, name: str, meaning: str) -> InvalidInput | StoreError:
        if meaning == "missing" and verb == "find":
            reason = f"{self.what} {self.uri!r} is no model: there is no {self.uri}/{name}"
            return InvalidInput(reason, fix="check the address; upload the folder that `save_pretrained` wrote")
        if meaning == "missing":
            reason = f"{self.what} {self.uri!r} is not whole: {name} is listed, but is not there"
            return InvalidInput(reason, fix="upload the folder again")
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return StoreRefused(f"no room left while {self.uri}/{name} was fetched", fix=_OTHER_DISK)
        if meaning == "passing":
            fix = "check that the store can be reached and is well, then try again: what has come whole is kept"
            return StoreUnavailable(self._said(error, verb, name), fix=fix)
        fix = fix_for(error, meaning="refused", writing=False).replace("the catalog's", f"the {self.what}'s")
        return StoreRefused(self._said(error, verb, name), fix=fix)


def listing_key(files: Mapping[str, RemoteFile], names: Iterable[str]) -> str | None:
    """A word that stays the same while the listing of these files does; None: the store has no tags to go by."""
    chosen = [(name, files[name].size, files[name].tag) for name in sorted(names)]
    if any(tag is None for *_, tag in chosen):
        return None
    return hashlib.sha256(json.dumps(chosen).encode()).hexdigest()[:32]


_OTHER_DISK = (
    "make room: `persres-batch fetch --spec RUN.YAML --prune` removes models that this spec does not name; or set "
    "PERSRES_CACHE to a folder on a larger disk"
)


class _Progress:
    """Bytes of files under way, told as one number, from several threads."""

    def __init__(self, total: int, on_bytes: OnBytes) -> None:
        self._total, self._on_bytes = total, on_bytes
        self._done: dict[str, int] = {}
        self._stopped = False

    def add(self, name: str, count: int) -> None:
        """Raises StoreError, in the thread that fetches, once `stop` was called."""
        if self._stopped:
            raise StoreError("stopped while it was fetched", fix="try again: what has come whole is kept")
        self._done[name] = self._done.get(name, 0) + count
        self._on_bytes(min(self._total, sum(tuple(self._done.values()))), self._total)

    def forget(self, name: str) -> None:
        self._done.pop(name, None)

    def stop(self) -> None:
        self._stopped = True


class _Counted(Callback):
    def __init__(self, name: str, progress: _Progress) -> None:
        super().__init__()
        self._name, self._progress = name, progress

    def relative_update(self, inc: int = 1) -> None:
        self._progress.add(self._name, inc)


def _is_outside(name: str) -> bool:
    """Whether a path is hidden, or leads out of its folder: keys of object stores may be `../x` or `//x`."""
    return any(not part or part.startswith(".") for part in name.split("/"))


def _tag(state: Mapping[str, Any]) -> str | None:
    for names in (_CONTENT_TAGS, _TIME_TAGS):
        found = next((str(state[name]) for name in names if state.get(name)), None)
        if found is not None and not found.startswith("W/"):  # a weak ETag may stay while bytes change
            return found.strip('"')
    return None


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 50e6 else f"{count / 1e6:.1f} MB"
