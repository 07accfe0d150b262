"""Whole objects on a local disk or in any object store that fsspec knows: the one place that reads and writes bytes.

Objects are written whole or not at all: bytes are complete before the first one is sent, and on a local disk they go
to a temporary file that takes the object's name only when it is safely on the disk. Streaming writers are not used:
an exception inside one leaves a truncated object under the final name.

Transient errors are retried with growing random pauses. So an operation may have run more than once, or once and
reported as failed: both are harmless, since nothing is ever appended, and no two writers use one name.
"""

from __future__ import annotations

import copy
import errno
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Self, TypeVar, cast

from fsspec.callbacks import Callback
from fsspec.implementations.local import LocalFileSystem

from ...core.errors import StoreError, StoreObjectMissing, StoreRefused, StoreUnavailable
from ...core.timing import STORE_RETRY_S
from .errors import ErrorKind, error_kind, fix_for, is_precondition_failed, short_reason
from .local_files import create_file, files_below, folders_in, refuse_links, replace_file
from .range_reader import RangeReader
from .retry import with_retry
from .stored_object import StoredObject, stored_object
from .uri import file_system, known_secrets, normalized, open_file_system, redact, without_credentials

T = TypeVar("T")


class ObjectStore:
    """Objects below one address, by paths relative to it, with `/` between folders.

    Every operation may raise `StoreUnavailable`, when transient errors lasted for all of `retry_s`, and `StoreRefused`,
    when a retry would end the same way: no permission, no such bucket, no room.

    Args:
        uri: a local path or an fsspec URI, such as `s3://bucket/catalogs/mugs`, without credentials: they come from the
            environment or a profile, and appear in no error and no log.
        what: the thing that lies there, for messages.
        retry_s: how long an operation with transient errors is retried, in seconds; 0: never.

    Raises:
        InvalidInput: `uri` holds credentials, or no file system is installed for its scheme.
    """

    _follows_links = True  # on a local disk

    def __init__(self, uri: str, *, what: str = "catalog", retry_s: float = STORE_RETRY_S) -> None:
        self.uri, self.what, self.retry_s = uri, what, retry_s
        self._secrets = known_secrets()
        self._fs, self._root = open_file_system(uri, what=what)
        self._local = isinstance(self._fs, LocalFileSystem)

    def with_retry(self, retry_s: float) -> Self:
        """The same store with another `retry_s`."""
        other = copy.copy(self)
        other.retry_s = retry_s
        return other

    def url(self, path: str) -> str:
        """`path` as a person would type it, for messages; without credentials."""
        return f"{self.uri.rstrip('/')}/{path}" if path else self.uri

    # -- reading -------------------------------------------------------------------------------------------------

    def read(self, path: str) -> bytes:
        """Return a whole object.

        Raises:
            StoreError: it is missing or cannot be read.
        """
        full = self._full(path)
        return self._retry("read", path, lambda: self._fs.cat_file(full))

    def read_many(self, paths: Iterable[str]) -> dict[str, bytes]:
        """Return whole objects by path, fetched concurrently where the store can.

        Raises:
            StoreError: one of them is missing or cannot be read.
        """
        left = {self._full(path): path for path in paths}
        found: dict[str, bytes] = {}

        def fetch() -> None:  # a retry fetches only what is still missing
            wanted = list(left)
            # cat_ranges and not cat, which takes [ ] * ? in a name for a pattern
            answers = self._fs.cat_ranges(wanted, None, None, on_error="return") if wanted else []
            failed = []
            for full, answer in zip(wanted, answers, strict=True):
                if isinstance(answer, BaseException):
                    failed.append(answer)
                else:
                    found[left.pop(full)] = answer
            for error in sorted(failed, key=lambda error: self._kind(error) == "transient"):
                raise error

        self._retry("read", f"{len(left)} objects", fetch)
        return found

    def read_at_most(self, path: str, limit: int) -> bytes | None:
        """Return a whole object, or None if it is larger than `limit` bytes; no more than that is fetched.

        Raises:
            StoreError: it is missing or cannot be read.
        """
        full = self._full(path)

        def fetch() -> bytes | None:
            with self._fs.open(full, "rb") as file:
                if (getattr(file, "size", None) or 0) > limit:
                    return None
                data = file.read(limit + 1)  # the size is a claim; this is what holds
            return data if len(data) <= limit else None

        return self._retry("read", path, fetch)

    @contextmanager
    def open_input(self, path: str) -> Iterator[BinaryIO]:
        """A seekable file for range reads, such as one row group of a Parquet file; without read-ahead.

        Raises:
            StoreError: it is missing; and while it is read: it cannot be read, or its reader finds it damaged.
        """
        full, state = self._full(path), self.stat(path)
        if state is None:
            raise self._store_error(FileNotFoundError(full), "read", path)

        def fetch(start: int, end: int) -> bytes:
            return self._retry("read", path, lambda: self._fs.cat_file(full, start=start, end=end))

        with RangeReader(state.size or 0, fetch) as file:
            try:
                yield cast(BinaryIO, file)
            except OSError as error:  # the reader's own, such as Arrow's when a checksum is wrong
                fix = f"restore {self.url(path)} from a copy, or see what `persres-batch verify` says"
                raise StoreError(f"{self.url(path)} is damaged ({type(error).__name__}: {error})", fix=fix) from None

    def download(self, path: str, target: Path, *, size: int, callback: Callback) -> None:
        """Copy an object to a local file, which is not synced to its disk.

        Args:
            size: how many bytes have to arrive.
            callback: `set_size(size)` is called at the start of every try, `relative_update(bytes)` as they arrive.

        Raises:
            StoreError: it is missing or cannot be read, or the local disk does not take it.
        """
        full = self._full(path)

        def get() -> None:
            callback.set_size(size)
            self._fs.get_file(full, str(target), callback=callback)
            arrived = target.stat().st_size
            if arrived != size:
                raise OSError(errno.EAGAIN, f"{arrived} bytes arrived of {size}")

        self._retry("fetch", path, get)

    # -- writing -------------------------------------------------------------------------------------------------

    def write(self, path: str, data: bytes) -> None:
        """Put a whole object, replacing one of that name. A reader sees the old bytes or the new, never a part.

        Raises:
            StoreError: it could not be written; what was there before still is, or else all of the new.
        """
        full = self._full(path)
        put = replace_file if self._local else self._fs.pipe_file
        self._retry("write", path, lambda: put(full, data))

    def create(self, path: str, data: bytes) -> bool:
        """Put a whole object only if there is none of that name. Of any number of creators exactly one gets True.

        That holds for creators whose bytes differ: one that is declined and finds exactly its own bytes there counts
        them as its own, sent by an earlier try whose answer was lost.

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

        return self._retry("create", path, put) or self.read(path) == data

    def supports_create(self, probe_folder: str) -> bool:
        """Whether the store honours the condition of `create`; found by trying, since some overwrite all the same.

        Args:
            probe_folder: where the object for the trial lies; it is removed afterwards.

        Raises:
            StoreError: it could not be tried.
        """
        if self._local:
            return True  # links and exclusive opens exist for this
        probe = f"{probe_folder}{secrets.token_hex(8)}"
        try:
            return self.create(probe, b"first") and not self.create(probe, b"second")
        finally:
            with suppress(StoreError):  # `persres-batch gc` removes what is left
                self.delete(probe)

    def delete(self, path: str) -> None:
        """Remove an object; one that is already gone is no error."""
        full = self._full(path)

        def remove() -> None:
            with suppress(FileNotFoundError):
                self._fs.rm_file(full)

        self._retry("delete", path, remove)

    # -- listing -------------------------------------------------------------------------------------------------

    def exists(self, path: str) -> bool:
        """Whether there is an object of that name now."""
        return self.stat(path) is not None

    def size(self, path: str) -> int | None:
        """An object's size in bytes; None: there is none of that name."""
        state = self.stat(path)
        return None if state is None else state.size

    def stat(self, path: str) -> StoredObject | None:
        """What the store says about one object; None: there is none of that name, or it is a folder."""
        state = self.stat_any(path)
        return None if state is None or state.kind == "directory" else state

    def stat_any(self, path: str) -> StoredObject | None:
        """As `stat`, for folders too."""
        full = self._full(path)

        def info() -> StoredObject | None:
            self._fs.invalidate_cache()  # object-store file systems cache listings; other writers do not tell them
            try:
                return stored_object(self._fs.info(full))
            except FileNotFoundError:
                return None

        return self._retry("look for", path, info)

    def list(self, prefix: str) -> list[str]:
        """The paths of all objects in the folder `prefix`, at any depth, sorted. An absent folder is empty."""
        return list(self.stat_all(prefix))

    def stat_all(self, prefix: str = "", *, hidden: bool = False) -> dict[str, StoredObject]:
        """All objects in the folder `prefix`, at any depth, by path.

        Args:
            hidden: include temporary files that killed writers leave on local disks.
        """
        folder = self._full(prefix.rstrip("/")).rstrip("/")
        found = self._retry("list", prefix, lambda: dict(self._objects_below(folder)))
        relative = ((path[len(self._root) + 1 :], state) for path, state in sorted(found.items()))
        return {path: state for path, state in relative if hidden or not path.rsplit("/", 1)[-1].startswith(".")}

    def folders(self, prefix: str = "") -> list[str]:
        """The paths of the folders directly in the folder `prefix`, sorted, without hidden ones and links."""
        folder = self._full(prefix.rstrip("/"))
        names = self._retry("list", prefix, lambda: self._folders_in(folder))
        return sorted(name[len(self._root) + 1 :].rstrip("/") for name in names)

    # -- inside --------------------------------------------------------------------------------------------------

    def _full(self, path: str) -> str:
        if path.startswith("/") or ".." in path.split("/"):
            raise ValueError(f"not a path inside a {self.what}: {path!r}")
        if self._local and not self._follows_links:
            refuse_links(self._root, path)
        return f"{self._root}/{path}" if path else self._root

    def _folders_in(self, folder: str) -> list[str]:
        if self._local:
            return folders_in(folder)
        self._fs.invalidate_cache()
        try:
            return [str(one["name"]) for one in self._fs.ls(folder, detail=True) if one["type"] == "directory"]
        except FileNotFoundError:
            return []

    def _objects_below(self, folder: str) -> Iterator[tuple[str, StoredObject]]:
        if self._local:
            for path, state in files_below(folder, follow_links=self._follows_links):
                yield path, StoredObject(state.st_size, state.st_mtime)
            return
        self._fs.invalidate_cache()
        try:
            found = self._fs.find(folder, detail=True)
        except FileNotFoundError:
            return
        for path, state in found.items():
            if state["type"] != "directory":
                yield str(path), stored_object({**state, "size": state["size"] or 0})

    def _retry(self, verb: str, path: str, operation: Callable[[], T]) -> T:
        """Return what `operation` returns; retry its transient errors, and raise the last one as a StoreError."""
        try:
            return with_retry(
                operation,
                retry_s=self.retry_s,
                is_transient=lambda error: self._kind(error) == "transient",
                describe=lambda error: self._describe(error, verb, path),
            )
        except Exception as error:
            if self._kind(error) == "bug":
                raise
            # `from None`: the store's own error may carry a signed request, which a traceback would print
            raise self._store_error(error, verb, path) from None

    def _kind(self, error: BaseException) -> ErrorKind:
        return error_kind(error, on_disk=self._local)

    def _describe(self, error: BaseException, verb: str, path: str) -> str:
        text = " ".join(str(error).split()).rstrip(".")
        return f"cannot {verb} {self.url(path)}: {type(error).__name__}: {redact(text, self._secrets)}"

    def _store_error(self, error: Exception, verb: str, path: str) -> StoreError:
        """A StoreError that names the object and no secret."""
        kind, writing = self._kind(error), verb in ("write", "create")
        raised = StoreUnavailable if kind == "transient" else StoreRefused
        if kind == "missing" and not writing:
            raised = StoreObjectMissing
        fix = fix_for(error, kind=kind, writing=writing, what=self.what)
        return raised(self._describe(error, verb, path), fix=fix, reason=short_reason(error))


class SingleObjects(ObjectStore):
    """Objects that are given by their whole addresses, of one scheme; a path is the file system's own.

    Unlike a folder's, such an address may hold credentials, such as a signed URL: messages leave them out.

    Args:
        uri: one of the objects; others of the same scheme share its file system.
    """

    def __init__(self, uri: str, *, what: str, retry_s: float) -> None:
        self.uri, self.what, self.retry_s = without_credentials(uri), what, retry_s
        self._secrets = known_secrets()
        self._fs, self._root = file_system(uri)
        self._local = isinstance(self._fs, LocalFileSystem)

    @property
    def is_local(self) -> bool:
        """Whether they lie on a local disk."""
        return self._local

    def path_of(self, uri: str) -> str:
        """The path to give to the other methods."""
        return str(self._fs._strip_protocol(normalized(uri)))

    def url(self, path: str) -> str:
        return without_credentials(path)

    def _full(self, path: str) -> str:
        return path
