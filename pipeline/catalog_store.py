"""Every path and every byte operation of a catalog, on a local disk or any object store fsspec knows.

Objects are written whole or not at all: bytes are complete before the first one is sent, and on a local disk they go
to a temporary file that takes the object's name only when it is safely on the disk. Streaming writers are not used:
an exception inside one leaves a truncated object under the final name.
"""

from __future__ import annotations

import errno
import os
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import urlsplit

import fsspec
from fsspec.implementations.local import LocalFileSystem

from ..core.errors import InvalidInput, PersresError, StoreError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})


class CatalogStore:
    """One catalog's objects, addressed by paths relative to its root, with `/` between folders.

    Args:
        uri: a local path or an fsspec URI, such as `s3://bucket/catalogs/mugs`.
        storage_options: passed to fsspec. Credentials belong in the environment or here, never in `uri`; neither
            appears in an error message.

    Raises:
        InvalidInput: no filesystem is installed for the URI's scheme.
    """

    COMMITS = "commits/"
    INDEX = "index/"
    LEASES = "lease/"
    RUNS = "runs/"

    def __init__(self, uri: str, storage_options: Mapping[str, Any] | None = None) -> None:
        self._secrets = _secrets_in(uri, storage_options or {})
        self.uri = self._redacted(uri)
        try:
            fs, root = fsspec.url_to_fs(os.path.expanduser(uri), **(storage_options or {}))
        except (ImportError, ValueError) as error:
            raise InvalidInput(
                f"cannot open the catalog {self.uri}: {self._redacted(str(error))}",
                fix="give a local path or a URI whose fsspec package is installed, such as s3fs for s3://",
            ) from None
        self._fs = fs
        self._root = str(root).rstrip("/")
        self._local = isinstance(fs, LocalFileSystem)

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
        with self._naming("read", path):
            return self._fs.cat_file(self._full(path))

    def read_many(self, paths: Iterable[str]) -> dict[str, bytes]:
        """Whole objects, fetched concurrently where the store can.

        Raises:
            StoreError: one of them is not there or cannot be read.
        """
        full = {self._full(path): path for path in paths}
        if not full:
            return {}
        with self._naming("read", f"{len(full)} objects"):
            found = self._fs.cat(list(full), on_error="raise")
            return {path: found[where] for where, path in full.items()}

    def write(self, path: str, data: bytes) -> None:
        """Put a whole object, replacing one of that name. A reader sees the old bytes or the new, never a part.

        Raises:
            StoreError: it could not be written; what was there before still is.
        """
        with self._naming("write", path):
            if self._local:
                with _temporary_file(self._full(path), data) as temporary:
                    os.replace(temporary, self._full(path))
                _sync_folder(self._full(path))
            else:
                self._fs.pipe_file(self._full(path), data)

    def create(self, path: str, data: bytes) -> bool:
        """Put a whole object only if there is none of that name. Of any number of creators exactly one gets True.

        Raises:
            StoreError: it could not be written.
        """
        with self._naming("create", path):
            try:
                if self._local:
                    with _temporary_file(self._full(path), data) as temporary:
                        _link_or_create(temporary, self._full(path), data)
                    _sync_folder(self._full(path))
                else:
                    self._fs.pipe_file(self._full(path), data, mode="create")
            except FileExistsError:
                return False
            return True

    def exists(self, path: str) -> bool:
        """Whether there is an object of that name now."""
        with self._naming("look for", path):
            self._fs.invalidate_cache()  # object-store filesystems remember listings; other writers don't tell them
            return self._fs.exists(self._full(path))

    def list(self, prefix: str) -> list[str]:
        """The paths of all objects in the folder `prefix`, at any depth, sorted. An absent folder is empty."""
        with self._naming("list", prefix):
            self._fs.invalidate_cache()
            try:
                found = self._fs.find(self._full(prefix.rstrip("/")))
            except FileNotFoundError:
                return []
        relative = (str(path)[len(self._root) + 1 :] for path in cast(Iterable[str], found))
        return sorted(path for path in relative if not path.rsplit("/", 1)[-1].startswith("."))

    def delete(self, path: str) -> None:
        """Remove an object; one that is already gone is no error."""
        with self._naming("delete", path):
            try:
                self._fs.rm_file(self._full(path))
            except FileNotFoundError:
                return

    @contextmanager
    def open_input(self, path: str) -> Iterator[BinaryIO]:
        """A seekable file for range reads, such as one row group of a Parquet file; nothing is read ahead.

        Raises:
            StoreError: it cannot be opened or read.
        """
        with self._naming("read", path), self._fs.open(self._full(path), "rb", cache_type="none") as file:
            yield cast(BinaryIO, file)

    # -- inside --------------------------------------------------------------------------------------------------

    def _full(self, path: str) -> str:
        if path.startswith("/") or ".." in path.split("/"):
            raise ValueError(f"not a path inside a catalog: {path!r}")
        return f"{self._root}/{path}"

    def _redacted(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text

    @contextmanager
    def _naming(self, verb: str, path: str) -> Iterator[None]:
        """Turn whatever the store raises into a StoreError that names the object and no secret."""
        try:
            yield
        except (PersresError, ValueError, TypeError, AssertionError, AttributeError):
            raise  # already named, or a bug of ours
        except Exception as error:
            # `from None`: the store's own error may carry a signed request, which a traceback would print
            raise StoreError(
                f"cannot {verb} {self.url(path)}: {type(error).__name__}: {self._redacted(str(error))}",
                fix="check that the catalog's address is right, reachable, writable and not full; then submit again",
            ) from None


def _name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise ValueError(f"not a name for an object in a catalog: {text!r}")
    return text


def _joined(*names: str) -> str:
    """The names of a run, a shard or an attempt as one."""
    if any("_" in _name(name) for name in names):  # it separates them
        raise ValueError(f"a run, shard or attempt with '_' in its name: {names}")
    return "_".join(names)


def _secrets_in(uri: str, storage_options: Mapping[str, Any]) -> tuple[str, ...]:
    """Every text of the options, and the credentials inside `uri`, longest first, to be struck from messages."""
    found: list[str] = []

    def collect(value: Any) -> None:
        if isinstance(value, Mapping):
            for item in value.values():
                collect(item)
        elif isinstance(value, str) and len(value) >= 4:
            found.append(value)

    collect({name: value for name, value in storage_options.items() if "url" not in name})
    credentials, at, _ = urlsplit(uri).netloc.rpartition("@")
    if at:
        found.extend([credentials, credentials.partition(":")[2]])
    return tuple(sorted((text for text in found if text), key=len, reverse=True))


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
