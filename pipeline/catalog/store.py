"""Every path and every byte operation of a catalog, on a local disk or any object store fsspec knows.

Objects are written whole or not at all: bytes are complete before the first one is sent, and on a local disk they go
to a temporary file that takes the object's name only when it is safely on the disk. Streaming writers are not used:
an exception inside one leaves a truncated object under the final name.

Whatever goes wrong in passing is asked again, with growing pauses of random length, for as long as the store's patience
lasts. So an operation may have been carried out more than once, or once and reported as failed: both are harmless,
since nothing is ever appended, and no two writers use one name.
"""

from __future__ import annotations

import copy
import io
import math
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, BinaryIO, TypeVar, cast

from fsspec.implementations.local import LocalFileSystem

from ...core.errors import StoreError, StoreRefused, StoreUnavailable
from ..storage.errors import Meaning, fix_for, is_precondition_failed, meaning_of
from ..storage.local_files import create_file, files_below, replace_file
from ..storage.retry import ask
from ..storage.uri import open_file_system, secrets_in, struck

PATIENCE_S = 60.0
"""How long a store that does not answer is asked again, unless somebody says otherwise."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_MODIFIED = ("mtime", "LastModified", "last_modified", "updated", "created")  # as file systems call it

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class StoredObject:
    """How large an object is, in bytes, and when it was written, in seconds since 1970 by the store's clock."""

    size: int
    modified: float


class CatalogStore:
    """One catalog's objects, addressed by paths relative to its root, with `/` between folders.

    Every operation may raise `StoreUnavailable`, when the store did not answer as it should for as long as patience
    lasts, and `StoreRefused`, when it will not do what is asked however often: no permission, no such bucket, no room.

    Args:
        uri: a local path or an fsspec URI, such as `s3://bucket/catalogs/mugs`, without credentials.
        storage_options: passed to fsspec. Credentials belong in the environment, in a profile or here; they appear in
            no error and no log.
        patience_s: for so many seconds an operation that fails in passing is tried again; 0: never.

    Raises:
        InvalidInput: `uri` holds credentials, or no filesystem is installed for its scheme.
    """

    COMMITS = "commits/"
    INDEX = "index/"
    LEASES = "lease/"
    PROBES = "probe/"
    RUNS = "runs/"

    def __init__(
        self, uri: str, storage_options: Mapping[str, Any] | None = None, *, patience_s: float = PATIENCE_S
    ) -> None:
        self.uri = uri
        self.patience_s = patience_s
        self._secrets = secrets_in(storage_options or {})
        self._fs, self._root = open_file_system(uri, storage_options or {})
        self._local = isinstance(self._fs, LocalFileSystem)

    def with_patience(self, patience_s: float) -> CatalogStore:
        """The same catalog, asked again for another number of seconds."""
        other = copy.copy(self)
        other.patience_s = patience_s
        return other

    # -- names ---------------------------------------------------------------------------------------------------

    def residual_file(self, run_id: str, shard_id: str, attempt: str) -> str:
        """Where one attempt at a shard puts its residuals."""
        return f"residuals/{_joined(run_id, shard_id, attempt)}.parquet"

    def rendering_file(self, run_id: str, shard_id: str, attempt: str) -> str:
        """Where one attempt at a shard puts its renderings."""
        return f"renderings/{_joined(run_id, shard_id, attempt)}.parquet"

    def commit_record(self, run_id: str, shard_id: str, attempt: str) -> str:
        """Where one attempt at a shard is declared done."""
        return f"{self.COMMITS}{_joined(run_id, shard_id, attempt)}.json"

    def index_file(self, run_id: str, token: str) -> str:
        """A snapshot of the commit index: the newest run it covers, and a word that makes its name its own."""
        return f"{self.INDEX}{_joined(run_id, token)}.parquet"

    def newest_run_of(self, index_file: str) -> str:
        """The newest run that a snapshot of the commit index covers, by its name."""
        return index_file.removeprefix(self.INDEX).split("_")[0]

    def pack_size_file(self, digest: str) -> str:
        """The pack size that was measured for a device and a model; `digest` says for which."""
        return f"pack_sizes/{_name(digest)}.json"

    def run_file(self, run_id: str, name: str) -> str:
        """A document about a run, such as `summary.json` or `report.html`."""
        return f"{self.RUNS}{_name(run_id)}/{_name(name)}"

    def lease_file(self, generation: int) -> str:
        """The lease's object of one generation; the highest generation holds the catalog."""
        return f"{self.LEASES}{generation:08d}.json"

    def run_ids(self) -> list[str]:
        """Every run that left a document or a loose commit, and the newest of those compacted; oldest first."""
        documents = {path.split("/")[1] for path in self.list(self.RUNS)}
        commits = {path.split("/")[1].split("_")[0] for path in (*self.list(self.COMMITS), *self.list(self.INDEX))}
        return sorted(documents | commits)

    def url(self, path: str) -> str:
        """`path` as a person would type it, for messages; without credentials."""
        return f"{self.uri.rstrip('/')}/{path}"

    # -- bytes ---------------------------------------------------------------------------------------------------

    def read(self, path: str) -> bytes:
        """A whole object.

        Raises:
            StoreError: it is not there or cannot be read.
        """
        full = self._full(path)
        return self._ask("read", path, lambda: self._fs.cat_file(full))

    def read_many(self, paths: Iterable[str]) -> dict[str, bytes]:
        """Whole objects, fetched concurrently where the store can.

        Raises:
            StoreError: one of them is not there or cannot be read.
        """
        left = {self._full(path): path for path in paths}
        found: dict[str, bytes] = {}

        def fetch() -> None:  # when asked again, only what is still missing
            answers = self._fs.cat(list(left), on_error="return") if left else {}
            failed = []
            for full, answer in answers.items():
                if isinstance(answer, BaseException):
                    failed.append(answer)
                else:
                    found[left.pop(full)] = answer
            for error in sorted(failed, key=lambda error: self._meaning(error) == "passing"):
                raise error

        self._ask("read", f"{len(left)} objects", fetch)
        return found

    def write(self, path: str, data: bytes) -> None:
        """Put a whole object, replacing one of that name. A reader sees the old bytes or the new, never a part.

        Raises:
            StoreError: it could not be written; what was there before still is, or else all of the new.
        """
        full = self._full(path)
        put = replace_file if self._local else self._fs.pipe_file
        self._ask("write", path, lambda: put(full, data))

    def create(self, path: str, data: bytes) -> bool:
        """Put a whole object only if there is none of that name. Of any number of creators exactly one gets True.

        That is, of creators whose bytes differ: who is refused and finds exactly its own bytes there takes them for
        its own, sent by an earlier try whose answer was lost.

        Raises:
            StoreError: it could not be written.
        """
        full = self._full(path)

        def put() -> bool:
            try:
                if self._local:
                    create_file(full, data)
                else:
                    self._fs.pipe_file(full, data, mode="create")
                return True
            except Exception as error:
                if not is_precondition_failed(error):
                    raise
                return False

        return self._ask("create", path, put) or self.read(path) == data

    def honours_create(self) -> bool:
        """Whether the store heeds the condition of `create`, found by trying: some overwrite all the same.

        Raises:
            StoreError: it could not be tried.
        """
        if self._local:
            return True  # what links and exclusive opens are for
        probe = f"{self.PROBES}{secrets.token_hex(8)}"
        try:
            return self.create(probe, b"first") and not self.create(probe, b"second")
        finally:
            with suppress(StoreError):  # `persres-batch gc` removes what is left
                self.delete(probe)

    def exists(self, path: str) -> bool:
        """Whether there is an object of that name now."""
        return self._state("look for", path) is not None

    def size(self, path: str) -> int | None:
        """How many bytes an object has; None: there is none of that name."""
        state = self._state("look for", path)
        return None if state is None else int(state["size"])

    def list(self, prefix: str) -> list[str]:
        """The paths of all objects in the folder `prefix`, at any depth, sorted. An absent folder is empty."""
        return list(self.stat_all(prefix))

    def stat_all(self, prefix: str = "", *, hidden: bool = False) -> dict[str, StoredObject]:
        """All objects in the folder `prefix`, at any depth, by path.

        Args:
            hidden: with what is no object: the temporary files that killed writers leave on local disks.
        """
        folder = self._full(prefix.rstrip("/")).rstrip("/")
        found = self._ask("list", prefix, lambda: dict(self._states_below(folder)))
        relative = ((path[len(self._root) + 1 :], state) for path, state in sorted(found.items()))
        return {path: state for path, state in relative if hidden or not path.rsplit("/", 1)[-1].startswith(".")}

    def delete(self, path: str) -> None:
        """Remove an object; one that is already gone is no error."""
        full = self._full(path)

        def remove() -> None:
            with suppress(FileNotFoundError):
                self._fs.rm_file(full)

        self._ask("delete", path, remove)

    @contextmanager
    def open_input(self, path: str) -> Iterator[BinaryIO]:
        """A seekable file for range reads, such as one row group of a Parquet file; nothing is read ahead.

        Raises:
            StoreError: it is not there; and while it is read: it cannot be read, or makes no sense to its reader.
        """
        full, state = self._full(path), self._state("read", path)
        if state is None:
            raise self._named(FileNotFoundError(full), "read", path)

        def fetch(start: int, end: int) -> bytes:
            return self._ask("read", path, lambda: self._fs.cat_file(full, start=start, end=end))

        with _RangeReader(int(state["size"]), fetch) as file:
            try:
                yield cast(BinaryIO, file)
            except OSError as error:  # the reader's own, such as Arrow's when a checksum is wrong
                fix = f"restore {self.url(path)} from a copy, or see what `persres-batch verify` says"
                raise StoreError(f"{self.url(path)} is damaged ({type(error).__name__}: {error})", fix=fix) from None

    # -- inside --------------------------------------------------------------------------------------------------

    def _full(self, path: str) -> str:
        if path.startswith("/") or ".." in path.split("/"):
            raise ValueError(f"not a path inside a catalog: {path!r}")
        return f"{self._root}/{path}"

    def _state(self, verb: str, path: str) -> Mapping[str, Any] | None:
        full = self._full(path)

        def look() -> Mapping[str, Any] | None:
            self._fs.invalidate_cache()  # object-store filesystems remember listings; other writers don't tell them
            try:
                state = self._fs.info(full)
            except FileNotFoundError:
                return None
            return None if state["type"] == "directory" else state

        return self._ask(verb, path, look)

    def _states_below(self, folder: str) -> Iterator[tuple[str, StoredObject]]:
        if self._local:
            for path, state in files_below(folder):
                yield path, StoredObject(state.st_size, state.st_mtime)
            return
        self._fs.invalidate_cache()
        try:
            found = self._fs.find(folder, detail=True)
        except FileNotFoundError:
            return
        for path, state in found.items():
            if state["type"] != "directory":
                yield str(path), StoredObject(int(state["size"] or 0), _modified(state))

    def _ask(self, verb: str, path: str, operation: Callable[[], T]) -> T:
        """What `operation` returns, tried again while its errors are passing ones and patience lasts."""

        try:
            return ask(
                operation,
                patience_s=self.patience_s,
                is_passing=lambda error: self._meaning(error) == "passing",
                said=lambda error: self._said(error, verb, path),
            )
        except Exception as error:
            if self._meaning(error) == "bug":
                raise
            # `from None`: the store's own error may carry a signed request, which a traceback would print
            raise self._named(error, verb, path) from None

    def _meaning(self, error: BaseException) -> Meaning:
        return meaning_of(error, on_disk=self._local)

    def _said(self, error: BaseException, verb: str, path: str) -> str:
        text = " ".join(str(error).split()).rstrip(".")
        return f"cannot {verb} {self.url(path)}: {type(error).__name__}: {struck(text, self._secrets)}"

    def _named(self, error: Exception, verb: str, path: str) -> StoreError:
        """A StoreError that names the object and no secret."""
        meaning, writing = self._meaning(error), verb in ("write", "create")
        kind = StoreUnavailable if meaning == "passing" else StoreRefused
        if meaning == "missing" and not writing:
            kind = StoreError
        return kind(self._said(error, verb, path), fix=fix_for(error, meaning=meaning, writing=writing))


class _RangeReader(io.RawIOBase):
    """An object of known size as a file: every read is one fetch, from the first byte to the one after the last."""

    def __init__(self, size: int, fetch: Callable[[int, int], bytes]) -> None:
        self._size, self._fetch = size, fetch
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence])
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        end = self._size if size is None or size < 0 else min(self._size, self._at + size)
        if end <= self._at:
            return b""
        data = self._fetch(self._at, end)
        self._at += len(data)
        return data


def _modified(state: Mapping[str, Any]) -> float:
    """Seconds since 1970; infinite, so never long ago, where the store does not say."""
    for name in _MODIFIED:
        match state.get(name):
            case float() | int() as seconds:
                return float(seconds)
            case datetime() as when:
                return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
            case str() as text if text:
                return datetime.fromisoformat(text).timestamp()
    return math.inf


def _name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise ValueError(f"not a name for an object in a catalog: {text!r}")
    return text


def _joined(*names: str) -> str:
    """The names of a run, a shard or an attempt as one."""
    if any("_" in _name(name) for name in names):  # it separates them
        raise ValueError(f"a run, shard or attempt with '_' in its name: {names}")
    return "_".join(names)
