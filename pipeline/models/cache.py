"""Models from object stores, fetched once for all processes of a machine, and kept by what they hold.

    <cache>/models/sha256-<digest>/          a whole model, and SHA256SUMS of its files
    <cache>/models/sha256-<digest>.plan/     only what planning needs: configuration, tokenizer, and SHA256SUMS of all
    <cache>/models/known/<address>.json      which digest an address had, under which listing
    <cache>/models/fetching/<address>/       on its way, under <address>.lock

A model's folder gets its name when all of it has come and was digested: readers need no lock, and never see a part. The
system frees the lock of a process that dies, and the next holder goes on with the files that came whole.
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
from .cache_folder import cache_folder
from .folder import (
    CHECKSUMS,
    ENTRY_FILE,
    PICKLES,
    WEIGHTS,
    ResolvedModel,
    Role,
    check_weights,
    may_be_read,
    model_files,
)
from .folder_digest import digest_of_files, file_digests
from .remote_folder import OnBytes, RemoteFile, RemoteFolder, listing_key

REVISION = re.compile(r"sha256:[0-9a-f]{32}")
"""What the revision of a folder looks like, wherever it lies."""

_WORTH_A_WORD = 32 << 20  # bytes; fewer come in a moment
_STORE_MAY_CHANGE = 3  # so many downloads begun anew because the folder changed meanwhile
_SUM_LINE = re.compile(r"(?P<digest>[0-9a-f]{64}) [ *](?:\./)?(?P<name>.+)")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Pruned:
    """What `ModelCache.prune` removed: how many folders, of how many bytes together."""

    folders: int
    size: int


class ModelCache:
    """The models of object stores that this machine has.

    Args:
        root: the folder of all of them; by default in `cache_folder()`.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or cache_folder() / "models"

    def find(self, revision: str, *, weights: bool = True) -> ResolvedModel | None:
        """The model of this revision, if it is here; nothing is fetched."""
        for suffix in ("",) if weights else ("", ".plan"):
            folder = self.root / (revision.replace(":", "-") + suffix)
            if _holds(folder, revision, weights=not suffix):
                return ResolvedModel(str(folder), revision, has_weights=not suffix)
        return None

    def last_of(self, uri: str, *, role: Role) -> str | None:
        """The revision that an address had when this machine last looked."""
        return self._known(uri, role).get("revision")

    def fetch(
        self,
        uri: str,
        *,
        role: Role,
        revision: str | None = None,
        weights: bool = True,
        on_bytes: OnBytes | None = None,
    ) -> ResolvedModel:
        """The model in a store's folder, fetched if this machine does not have it.

        Of any number of processes one fetches, and the others wait for it. Nothing is asked of the store where
        `revision` is here already.

        Args:
            revision: refuse any other; None: whatever the folder holds now.
            weights: False: only what planning needs, if the revision can be known without the weights: because
                SHA256SUMS lies beside them, or because this machine has seen the same listing before.
            on_bytes: called from several threads; by default the log says now and then how far it is.

        Raises:
            InvalidInput: there is no such model, it is of another revision, or it would have to be unpickled.
            StoreError: the store did not answer, or there is no room.
        """
        if revision is not None and (here := self.find(revision, weights=weights)):
            return here
        remote = RemoteFolder(uri, what=role)
        on_bytes = on_bytes or _Said(f"fetching {role} {remote.uri}")
        for _ in range(_STORE_MAY_CHANGE):
            files = {
                name: file
                for name, file in remote.list(ENTRY_FILE[role]).items()
                if may_be_read(name, role) or name == CHECKSUMS or name.endswith(PICKLES)
            }
            key = listing_key(files, files)
            found = self._seen(remote.uri, role, key, weights)
            if found is None:
                with self._locked(remote.uri, role):
                    found = self._seen(remote.uri, role, key, weights)
                    if found is None:
                        download = _Download(remote, files, role, self._fetching(remote.uri, role) / (key or "untold"))
                        found = self._downloaded(download, key, weights, on_bytes)
            if found is not None:
                return _require(found, revision, role, remote.uri)
        raise StoreRefused(f"{role} {uri!r} changed each time it was fetched", fix="fetch it when its upload has ended")

    def prune(self, keep: Collection[str]) -> Pruned:
        """Remove models of other revisions, and what broken downloads left; those under way stay.

        A process that has a removed model loaded is not disturbed; one that is about to load it fetches it again.
        """
        folders, size = 0, 0
        kept = {revision.replace(":", "-") for revision in keep}
        for folder in [*self.root.glob("sha256-*"), *self.root.glob("fetching/*")]:
            if folder.name.removesuffix(".plan") in kept or not folder.is_dir():
                continue
            with suppress(Timeout), _free(folder):
                size += sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
                shutil.rmtree(folder, ignore_errors=True)
                folders += 1
        return Pruned(folders, size)

    # -- inside --------------------------------------------------------------------------------------------------

    def _downloaded(
        self, download: _Download, key: str | None, weights: bool, on_bytes: OnBytes
    ) -> ResolvedModel | None:
        """The model, fetched and in its place; None: the folder changed meanwhile."""
        fetching = self._fetching(download.remote.uri, download.role)
        for other in fetching.glob("*"):  # begun under another listing, or without tags that tell listings apart
            if other != download.folder or key is None:
                shutil.rmtree(other, ignore_errors=True)
        try:
            has_weights, digests = download.carry_out(weights, on_bytes)
            if download.has_changed():
                return None
            revision = digest_of_files(digests)
            self._place(download.folder, revision, digests, has_weights)
        except OSError as error:
            raise _not_ours(self.root, error) from error
        self._remember(download.remote.uri, download.role, key, revision)
        if has_weights:
            shutil.rmtree(fetching, ignore_errors=True)
        return self.find(revision, weights=has_weights)

    def _place(self, folder: Path, revision: str, digests: Mapping[str, str], has_weights: bool) -> None:
        """Give what was fetched its name, in one step."""
        target = self.root / (revision.replace(":", "-") + ("" if has_weights else ".plan"))
        new = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}")
        if has_weights:
            folder.rename(new)
        else:
            shutil.copytree(folder, new)  # the weights may be asked for next, and need not begin anew
        for path in [path for path in new.rglob("*") if path.is_file()]:
            if path.relative_to(new).as_posix() not in digests:
                path.unlink()
        lines = (f"{digest}  {name}\n" for name, digest in sorted(digests.items()))
        (new / CHECKSUMS).write_text("".join(lines), encoding="utf-8")
        if _holds(target, revision, weights=has_weights):
            shutil.rmtree(new)  # the same model from another address
            return
        shutil.rmtree(target, ignore_errors=True)
        new.rename(target)

    def _seen(self, uri: str, role: Role, key: str | None, weights: bool) -> ResolvedModel | None:
        known = self._known(uri, role)
        if key is None or known.get("listing") != key:
            return None
        return self.find(known["revision"], weights=weights)

    def _known(self, uri: str, role: Role) -> dict[str, str]:
        try:
            told = json.loads((self.root / "known" / f"{_word(uri, role)}.json").read_bytes())
            return told if REVISION.fullmatch(told["revision"]) and told["uri"] == uri.rstrip("/") else {}
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return {}

    def _remember(self, uri: str, role: Role, key: str | None, revision: str) -> None:
        file = self.root / "known" / f"{_word(uri, role)}.json"
        temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps({"uri": uri, "listing": key or "", "revision": revision}), encoding="utf-8")
        temporary.replace(file)

    def _fetching(self, uri: str, role: Role) -> Path:
        return self.root / "fetching" / _word(uri, role)

    @contextmanager
    def _locked(self, uri: str, role: Role) -> Iterator[None]:
        """This address for this process alone; waits, and says now and then for what."""
        folder = self._fetching(uri, role)
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(f"{folder}.lock")
            while True:
                try:
                    lock.acquire(timeout=MODEL_FETCH_LOG_INTERVAL_S)
                    break
                except Timeout:
                    _log.warning("waiting for another process of this machine that fetches %s", uri)
        except OSError as error:
            raise _not_ours(self.root, error) from error
        try:
            yield
        finally:
            lock.release()


@dataclass(frozen=True, slots=True)
class _Download:
    """One model on its way into `folder`, whose address this process has locked."""

    remote: RemoteFolder
    files: Mapping[str, RemoteFile]
    role: Role
    folder: Path

    def carry_out(self, weights: bool, on_bytes: OnBytes) -> tuple[bool, dict[str, str]]:
        """Fetch it; returns whether the weights have come too, and the SHA-256 of every file that is read."""
        small = {name: file for name, file in self.files.items() if not name.endswith((WEIGHTS, *PICKLES))}
        self.remote.fetch(small, self.folder, _nobody if weights else on_bytes)
        names = model_files(self.files.keys() - {CHECKSUMS}, self.folder, name=self.remote.uri, role=self.role)
        sums, told = self._checksums(), [name for name in names if name in small]
        digests = file_digests(self.folder, told)
        self._compare(digests, sums)
        if not weights and all(name in sums for name in names if name not in small):
            return False, {name: digests.get(name) or sums[name] for name in names}
        if not weights:
            _log.warning(
                "%s has to be fetched as a whole to know its revision; a list %s beside it would spare that",
                self.remote.uri,
                CHECKSUMS,
            )
        self.remote.fetch({name: self.files[name] for name in names}, self.folder, on_bytes)
        check_weights(self.folder, names, f"{self.role} {self.remote.uri!r}")
        digests |= file_digests(self.folder, [name for name in names if name not in small])
        self._compare(digests, sums)
        return True, digests

    def has_changed(self) -> bool:
        """Whether the folder in the store is no longer as it was listed; a mixture of two models would be neither."""
        now = self.remote.list(ENTRY_FILE[self.role])
        return any(now.get(name) != file for name, file in self.files.items())

    def _checksums(self) -> dict[str, str]:
        path = self.folder / CHECKSUMS
        return checksums_in(path.read_text("utf-8", errors="replace")) if path.is_file() else {}

    def _compare(self, digests: Mapping[str, str], sums: Mapping[str, str]) -> None:
        for name, digest in digests.items():
            if sums.get(name, digest) != digest:
                (self.folder / name).unlink()  # should the store have sent it damaged, another try gets it whole
                raise InvalidInput(
                    f"{self.role} {self.remote.uri!r}: {name} is not what {CHECKSUMS} beside it says",
                    fix=f"upload the model again, with a {CHECKSUMS} that was made from it",
                )


def checksums_in(text: str) -> dict[str, str]:
    """Digests by file, from what `sha256sum` wrote; other lines are passed over."""
    found = (_SUM_LINE.fullmatch(line.rstrip("\r")) for line in text.split("\n"))
    return {match["name"]: match["digest"] for match in found if match}


class _Said:
    """Says in the log how far a download is, at the start and every half minute."""

    def __init__(self, what: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._what, self._clock = what, clock
        self._next = 0.0

    def __call__(self, done: int, total: int) -> None:
        now = self._clock()
        if total >= _WORTH_A_WORD and now >= self._next:
            self._next = now + MODEL_FETCH_LOG_INTERVAL_S
            _log.warning("%s: %.1f of %.1f MB", self._what, done / 1e6, total / 1e6)


def _holds(folder: Path, revision: str, *, weights: bool) -> bool:
    """Whether a folder of the cache is whole, judged by its list and by the weights' headers: nothing is digested."""
    try:
        sums = checksums_in((folder / CHECKSUMS).read_text("utf-8"))
        here = [name for name in sums if weights or not name.endswith(WEIGHTS)]
        if digest_of_files(sums) != revision or not all((folder / name).is_file() for name in here):
            return False
        check_weights(folder, here if weights else (), "")
    except (OSError, ValueError, InvalidInput):
        return False
    return True


@contextmanager
def _free(folder: Path) -> Iterator[None]:
    """Raises Timeout where somebody is fetching into this folder."""
    if folder.parent.name != "fetching":
        yield
        return
    with FileLock(f"{folder}.lock", timeout=0):
        yield


def _require(found: ResolvedModel, revision: str | None, role: Role, uri: str) -> ResolvedModel:
    if revision not in (None, found.revision):
        reason = f"{role} {uri!r} holds revision {found.revision} now, not {revision}"
        raise InvalidInput(reason, fix="name that revision or none in the spec; a run under way: submit again")
    return found


def _not_ours(root: Path, error: OSError) -> StoreRefused:
    reason = f"cannot write to the model cache {root}: {error.strerror or error}"
    return StoreRefused(reason, fix="set PERSRES_CACHE to a folder of yours, on a disk with room")


def _word(uri: str, role: Role) -> str:
    return hashlib.sha256(f"{role} {uri.rstrip('/')}".encode()).hexdigest()[:32]


def _nobody(done: int, total: int) -> None:
    pass
