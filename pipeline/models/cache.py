"""The cache of models from object stores: each is fetched once per machine and stored by its digest.

    <cache>/models/sha256-<digest>/          a complete model, and SHA256SUMS of its files
    <cache>/models/sha256-<digest>.plan/     only what planning needs: configuration, tokenizer, and SHA256SUMS of all
    <cache>/models/known/<address>.json      the digest that an address had, and its listing at that time
    <cache>/models/fetching/<address>/       a download in progress, locked by <address>.lock

A folder is renamed to its digest only when it is complete and digested, so readers need no lock and never see a partial
model. The operating system releases the lock of a process that is killed; the next holder keeps its complete files.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from ...core.errors import InvalidInput, StoreRefused
from ...core.timing import MODEL_FETCH_LOG_INTERVAL_S
from ...core.weights.files import WEIGHTS
from ..storage.local_files import replace_file
from .folder import (
    CHECKSUMS,
    ENTRY_FILE,
    PICKLES,
    ResolvedModel,
    Role,
    check_weights,
    is_of_model,
    model_files,
    readable_files,
)
from .folder_digest import FOLDER_DIGEST, cache_folder, digest_of_files, file_digests
from .remote_folder import OnBytes, RemoteFile, RemoteFolder, listing_key

_MIN_LOGGED_BYTES = 32 << 20  # smaller downloads take a moment
_MAX_DOWNLOADS = 3  # of a folder that changes during each of them
_SUM_LINE = re.compile(r"(?P<digest>[0-9a-f]{64}) [ *](?:\./)?(?P<name>.+)")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Pruned:
    """What `ModelCache.prune` removed: the number of folders and their total size in bytes."""

    folders: int
    size: int


class ModelCache:
    """This machine's cache of models from object stores.

    Args:
        root: its folder; by default `models` in `cache_folder()`.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or cache_folder() / "models"

    def find(self, revision: str, *, weights: bool = True) -> ResolvedModel | None:
        """Return the cached model of this revision, or None; fetches nothing."""
        for suffix in ("",) if weights else ("", ".plan"):
            folder = self.root / (revision.replace(":", "-") + suffix)
            if _is_complete(folder, revision, weights=not suffix):
                return ResolvedModel(str(folder), revision, has_weights=not suffix)
        return None

    def last_revision(self, uri: str, *, role: Role) -> str | None:
        """The revision that an address had at its last fetch on this machine."""
        return self._read_known(uri, role).get("revision")

    def fetch(
        self,
        uri: str,
        *,
        role: Role,
        revision: str | None = None,
        weights: bool = True,
        on_bytes: OnBytes | None = None,
    ) -> ResolvedModel:
        """Return the model in a store's folder, fetching it unless it is cached.

        If several processes call this, one fetches and the others wait. A cached `revision` needs no request.

        Args:
            revision: the only one accepted; None: the folder's current one.
            weights: False: only what planning needs, if the revision is known without the weights: from SHA256SUMS
                beside them, or from an earlier fetch with the same listing.
            on_bytes: called from several threads; by default the progress is logged.

        Raises:
            InvalidInput: there is no such model, it has another revision, or its weights are pickled.
            StoreError: the store fails or refuses, or the disk is full.
        """
        if revision is not None and (cached := self.find(revision, weights=weights)):
            return cached
        remote = RemoteFolder(uri, what=role)
        on_bytes = on_bytes or _ProgressLog(f"fetching {role} {remote.uri}")
        for _ in range(_MAX_DOWNLOADS):
            files = {
                name: file
                for name, file in remote.list(ENTRY_FILE[role]).items()
                if is_of_model(name, role) or name == CHECKSUMS
            }
            # Variants of the weights that are not read, and whether they have changed, are of no account.
            read = {*readable_files(files, role), CHECKSUMS} & files.keys()
            key = listing_key(files, read | {name for name in files if name.endswith(PICKLES)})
            found = self._find_by_listing(remote.uri, role, key, weights)
            if found is None:
                with self._locked(remote.uri, role):
                    found = self._find_by_listing(remote.uri, role, key, weights)
                    if found is None:
                        folder = self._fetching(remote.uri, role) / (key or "untold")
                        found = self._download(_Download(remote, files, role, folder), key, weights, on_bytes)
            if found is not None:
                return _require_revision(found, revision, role, remote.uri)
        raise StoreRefused(
            f"{role} {uri!r} changed each time it was fetched", fix="fetch it when its upload is complete"
        )

    def prune(self, keep: Collection[str]) -> Pruned:
        """Remove models of all other revisions and remains of failed downloads; keep running downloads.

        A process that has loaded a removed model is not affected; one that is about to load it fetches it again.
        """
        folders, size = 0, 0
        kept = {revision.replace(":", "-") for revision in keep}
        for folder in [*self.root.glob("sha256-*"), *self.root.glob("fetching/*")]:
            if folder.name.removesuffix(".plan") in kept or not folder.is_dir():
                continue
            with suppress(Timeout), _unless_fetching(folder):
                size += sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
                shutil.rmtree(folder, ignore_errors=True)
                folders += 1
        return Pruned(folders, size)

    # -- inside --------------------------------------------------------------------------------------------------

    def _download(self, download: _Download, key: str | None, weights: bool, on_bytes: OnBytes) -> ResolvedModel | None:
        """Download a model and rename it to its digest; None: the folder in the store changed during the download."""
        fetching = self._fetching(download.remote.uri, download.role)
        for other in fetching.glob("*"):  # of another listing, or of one without tags, which may be another one
            if other != download.folder or key is None:
                shutil.rmtree(other, ignore_errors=True)
        try:
            has_weights, digests = download.run(weights, on_bytes)
            if download.has_changed():
                return None
            revision = digest_of_files(digests)
            self._publish(download.folder, revision, digests, has_weights)
        except OSError as error:
            raise _cache_error(self.root, error) from error
        self._write_known(download.remote.uri, download.role, key, revision)
        if has_weights:
            shutil.rmtree(fetching, ignore_errors=True)
        return self.find(revision, weights=has_weights)

    def _publish(self, folder: Path, revision: str, digests: Mapping[str, str], has_weights: bool) -> None:
        """Rename a complete download to its digest."""
        target = self.root / (revision.replace(":", "-") + ("" if has_weights else ".plan"))
        new = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}")
        if has_weights:
            folder.rename(new)
        else:
            shutil.copytree(folder, new)  # the next download may continue with the weights
        for path in [path for path in new.rglob("*") if path.is_file()]:
            if path.relative_to(new).as_posix() not in digests:
                path.unlink()
        lines = (f"{digest}  {name}\n" for name, digest in sorted(digests.items()))
        (new / CHECKSUMS).write_text("".join(lines), encoding="utf-8")
        if _is_complete(target, revision, weights=has_weights):
            shutil.rmtree(new)  # the same model from another address
            return
        shutil.rmtree(target, ignore_errors=True)
        new.rename(target)

    def _find_by_listing(self, uri: str, role: Role, key: str | None, weights: bool) -> ResolvedModel | None:
        known = self._read_known(uri, role)
        if key is None or known.get("listing") != key:
            return None
        return self.find(known["revision"], weights=weights)

    def _read_known(self, uri: str, role: Role) -> dict[str, str]:
        """The stored "uri", "listing" and "revision" of an address; empty if there are none, or they are damaged."""
        try:
            known = json.loads(self._known_file(uri, role).read_bytes())
            return known if FOLDER_DIGEST.fullmatch(known["revision"]) and known["uri"] == uri.rstrip("/") else {}
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return {}

    def _write_known(self, uri: str, role: Role, key: str | None, revision: str) -> None:
        known = {"uri": uri, "listing": key or "", "revision": revision}
        replace_file(str(self._known_file(uri, role)), json.dumps(known).encode())

    def _known_file(self, uri: str, role: Role) -> Path:
        return self.root / "known" / f"{_address_digest(uri, role)}.json"

    def _fetching(self, uri: str, role: Role) -> Path:
        return self.root / "fetching" / _address_digest(uri, role)

    @contextmanager
    def _locked(self, uri: str, role: Role) -> Iterator[None]:
        """Hold the lock of an address; logs from time to time while another process holds it."""
        folder = self._fetching(uri, role)
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(f"{folder}.lock")
            while True:
                try:
                    lock.acquire(timeout=MODEL_FETCH_LOG_INTERVAL_S)
                    break
                except Timeout:
                    _log.warning("waiting for another process on this machine that is fetching %s", uri)
        except OSError as error:
            raise _cache_error(self.root, error) from error
        try:
            yield
        finally:
            lock.release()


@dataclass(frozen=True, slots=True)
class _Download:
    """A download of a model to `folder`; this process holds the address's lock."""

    remote: RemoteFolder
    files: Mapping[str, RemoteFile]
    role: Role
    folder: Path

    def run(self, weights: bool, on_bytes: OnBytes) -> tuple[bool, dict[str, str]]:
        """Fetch the files; returns whether the weights are among them, and the SHA-256 of every file of the model."""
        small = {name: file for name, file in self.files.items() if not name.endswith((WEIGHTS, *PICKLES))}
        self.remote.fetch(small, self.folder, _ignore_progress if weights else on_bytes)
        names = model_files(self.files.keys() - {CHECKSUMS}, self.folder, name=self.remote.uri, role=self.role)
        sums = self._read_checksums()
        digests = file_digests(self.folder, [name for name in names if name in small])
        self._compare(digests, sums)
        if not weights and all(name in sums for name in names if name not in small):
            return False, {name: digests.get(name) or sums[name] for name in names}
        if not weights:
            _log.warning(
                "%s has to be fetched as a whole to determine its revision; a %s file beside it avoids this",
                self.remote.uri,
                CHECKSUMS,
            )
        self.remote.fetch({name: self.files[name] for name in names}, self.folder, on_bytes)
        check_weights(self.folder, names, f"{self.role} {self.remote.uri!r}")
        digests |= file_digests(self.folder, [name for name in names if name not in small])
        self._compare(digests, sums)
        return True, digests

    def has_changed(self) -> bool:
        """Whether the folder in the store differs from its listing, so that the files may be of two models."""
        now = self.remote.list(ENTRY_FILE[self.role])
        return any(now.get(name) != file for name, file in self.files.items())

    def _read_checksums(self) -> dict[str, str]:
        path = self.folder / CHECKSUMS
        return checksums_in(path.read_text("utf-8", errors="replace")) if path.is_file() else {}

    def _compare(self, digests: Mapping[str, str], sums: Mapping[str, str]) -> None:
        for name, digest in digests.items():
            if sums.get(name, digest) != digest:
                (self.folder / name).unlink()  # the next try fetches it again, in case it was damaged on the way
                raise InvalidInput(
                    f"{self.role} {self.remote.uri!r}: {name} does not match its digest in {CHECKSUMS}",
                    fix=f"upload the model again, with a {CHECKSUMS} made from its files",
                )


def checksums_in(text: str) -> dict[str, str]:
    """Parse the output of `sha256sum`: digests by file; other lines are ignored."""
    found = (_SUM_LINE.fullmatch(line.rstrip("\r")) for line in text.split("\n"))
    return {match["name"]: match["digest"] for match in found if match}


class _ProgressLog:
    """Logs the progress of a download at its start and every `MODEL_FETCH_LOG_INTERVAL_S`."""

    def __init__(self, what: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._what, self._clock = what, clock
        self._next = 0.0

    def __call__(self, done: int, total: int) -> None:
        now = self._clock()
        if total >= _MIN_LOGGED_BYTES and now >= self._next:
            self._next = now + MODEL_FETCH_LOG_INTERVAL_S
            _log.warning("%s: %.1f of %.1f MB", self._what, done / 1e6, total / 1e6)


def _is_complete(folder: Path, revision: str, *, weights: bool) -> bool:
    """Whether a cached model is complete by its SHA256SUMS and the weights' headers; computes no digests."""
    try:
        sums = checksums_in((folder / CHECKSUMS).read_text("utf-8"))
        names = [name for name in sums if weights or not name.endswith(WEIGHTS)]
        if digest_of_files(sums) != revision or not all((folder / name).is_file() for name in names):
            return False
        check_weights(folder, names if weights else (), "")
    except (OSError, ValueError, InvalidInput):
        return False
    return True


@contextmanager
def _unless_fetching(folder: Path) -> Iterator[None]:
    """Lock a folder of a download; raises Timeout if a process is fetching into it."""
    if folder.parent.name != "fetching":
        yield
        return
    with FileLock(f"{folder}.lock", timeout=0):
        yield


def _require_revision(found: ResolvedModel, revision: str | None, role: Role, uri: str) -> ResolvedModel:
    if revision not in (None, found.revision):
        reason = f"{role} {uri!r} holds revision {found.revision} now, not {revision}"
        raise InvalidInput(reason, fix="set that revision or none in the spec; for a running run, submit again")
    return found


def _cache_error(root: Path, error: OSError) -> StoreRefused:
    reason = f"cannot write to the model cache {root}: {error.strerror or error}"
    return StoreRefused(reason, fix="set PERSRES_CACHE to a folder that you may write to, on a disk with room")


def _address_digest(uri: str, role: Role) -> str:
    return hashlib.sha256(f"{role} {uri.rstrip('/')}".encode()).hexdigest()[:32]


def _ignore_progress(done: int, total: int) -> None:
    pass
