"""A model's folder in an object store: its listing, and its files fetched to this machine."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fsspec.callbacks import Callback

from ...core.errors import InvalidInput, StoreError, StoreObjectMissing, StoreRefused, StoreUnavailable
from ...core.timing import STORE_RETRY_S
from ..storage.errors import NO_SPACE
from ..storage.object_store import ObjectStore
from .names import check_model_uri
from .single_file import is_single_file, single_file_at

OnBytes = Callable[[int, int], None]
"""Called with (bytes so far, bytes in all)."""

_CONCURRENT_FILES = 4  # s3fs alone fetches a large file in ten ranges at a time
_NO_SPACE_REASONS = frozenset(os.strerror(number) for number in NO_SPACE)
_MARGIN_BYTES = 64 << 20  # a disk filled to its last byte breaks more than a download


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """What a listing says about a file. `tag` changes when its content does; None: the store has none."""

    size: int
    tag: str | None


class RemoteFolder:
    """A model's folder in an object store that can be listed; transient errors are retried as in a catalog.

    Args:
        what: what messages call it, such as "base_model".

    Raises:
        InvalidInput: `check_model_uri` refuses the address, or no file system is installed for its scheme.
    """

    def __init__(self, uri: str, *, what: str, retry_s: float = STORE_RETRY_S) -> None:
        check_model_uri(uri, what)
        self.uri, self.what = uri.rstrip("/"), what
        self._store = ObjectStore(self.uri, what=what, retry_s=retry_s)

    def list(self, entry: str) -> dict[str, RemoteFile]:
        """Every file below the folder by its relative path, hidden ones left out.

        Args:
            entry: the file without which it is no such folder; looked for first, so that no whole bucket is listed.

        Raises:
            InvalidInput: there is no such folder, or it lacks `entry`.
            StoreError: the store fails or refuses.
        """
        with self._model_errors():
            if self._store.stat(entry) is None:
                if is_single_file(self.uri):
                    raise single_file_at(self.uri, self.what)
                reason = f"{self.what} {self.uri!r} is no model: there is no {self._store.url(entry)}"
                raise InvalidInput(reason, fix="check the address; upload the folder that `save_pretrained` wrote")
            found = self._store.stat_all()
        return {
            name: RemoteFile(state.size or 0, state.content_tag or state.time_tag)
            for name, state in found.items()
            if not _is_outside(name)
        }

    def fetch(self, files: Mapping[str, RemoteFile], folder: Path, on_bytes: OnBytes) -> None:
        """Fetch files into `folder`, several at a time; those that are there whole already are left alone.

        A file has its name only when all of it is on the disk.

        Raises:
            InvalidInput: a file is no longer there, or not as long as the listing says.
            StoreRefused: the local disk has no room, or the store refuses.
            StoreUnavailable: transient errors lasted too long.
        """
        here = {name for name, file in files.items() if _size(folder / name) == file.size}
        left = sorted(files.keys() - here, key=lambda name: -files[name].size)
        progress = _Progress(sum(file.size for file in files.values()), on_bytes)
        progress.add("", sum(files[name].size for name in here))
        self._require_room(folder, sum(files[name].size for name in left))
        pool = ThreadPoolExecutor(_CONCURRENT_FILES, thread_name_prefix="model")
        try:
            for _ in pool.map(lambda name: self._fetch_one(name, files[name], folder / name, progress), left):
                pass
        finally:
            progress.stop()  # after an error or Ctrl-C, do not wait for gigabytes that are still coming
            pool.shutdown(cancel_futures=True)

    def _fetch_one(self, name: str, file: RemoteFile, target: Path, progress: _Progress) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f"{target.name}.part")
        with self._model_errors(name):
            self._store.download(name, part, size=file.size, callback=_Counted(name, progress))
        with part.open("rb") as written:
            os.fsync(written.fileno())  # a file that has its name must be whole also after a power cut
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

    @contextmanager
    def _model_errors(self, name: str = "") -> Iterator[None]:
        """Store errors as what they mean for a model: an incomplete folder, a full local disk, a fetch to repeat."""
        try:
            yield
        except StoreObjectMissing:
            reason = f"{self.what} {self.uri!r} is incomplete: {name} is listed but missing"
            raise InvalidInput(reason, fix="upload the folder again") from None
        except StoreUnavailable as error:
            fix = "check that the store can be reached and is well, then try again: complete files are kept"
            raise StoreUnavailable(error.message, fix=fix) from None
        except StoreRefused as error:
            if error.reason in _NO_SPACE_REASONS:
                raise StoreRefused(f"no room left while {self._store.url(name)} was fetched", fix=_OTHER_DISK) from None
            raise


def listing_key(files: Mapping[str, RemoteFile], names: Iterable[str]) -> str | None:
    """A digest of the listing of these files; None: the store has no tags that would make it reliable."""
    chosen = [(name, files[name].size, files[name].tag) for name in sorted(names)]
    if any(tag is None for *_, tag in chosen):
        return None
    return hashlib.sha256(json.dumps(chosen).encode()).hexdigest()[:32]


_OTHER_DISK = (
    "make room: `persres-batch fetch --spec RUN.YAML --prune` removes models that this spec does not name; or set "
    "PERSRES_CACHE to a folder on a larger disk"
)


class _Progress:
    """The bytes of several files in progress as one number, counted from several threads."""

    def __init__(self, total: int, on_bytes: OnBytes) -> None:
        self._total, self._on_bytes = total, on_bytes
        self._done: dict[str, int] = {}
        self._stopped = False

    def add(self, name: str, count: int) -> None:
        """Raises StoreError in the fetching thread once `stop` was called."""
        if self._stopped:
            raise StoreError("stopped while it was fetched", fix="try again: complete files are kept")
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

    def set_size(self, size: int) -> None:  # called at the start of every try
        self._progress.forget(self._name)

    def relative_update(self, inc: int = 1) -> None:
        self._progress.add(self._name, inc)


def _is_outside(name: str) -> bool:
    """Whether a path is hidden, or leads out of its folder: keys of object stores may be `../x` or `//x`."""
    return any(not part or part.startswith(".") for part in name.split("/"))


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 50e6 else f"{count / 1e6:.1f} MB"
