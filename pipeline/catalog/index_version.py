"""Versions of the index: small objects `index/<number>.json`, each of which names what the catalog consists of.

The highest number is in force. It names the snapshot, and the loose commit records that were there when it was written:
one that is missing or damaged since is an error, not a smaller catalog. A new version is created under the next number,
which the store lets exactly one writer do. So of two writers that started from one version, one is overtaken: it
changes nothing, whatever it was suspended for. Objects are deleted only after a version without them is in force.

A version also has a fence (see `fence`): the lowest lease generation whose records count without being named.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection
from dataclasses import asdict, dataclass

from ...core.errors import CatalogHeld, StoreError
from . import layout
from .sealed_json import seal, unseal
from .snapshot import REPAIR
from .store import CatalogStore

INDEX_VERSION = 1


class Overtaken(CatalogHeld):
    """Another writer has created a version of the index since; this one has changed nothing."""


@dataclass(frozen=True, slots=True)
class IndexVersion:
    """One version of the index.

    Attributes:
        number: 0 if the catalog has no version, because it is empty or an earlier release wrote it.
        snapshots: paths of the snapshots that hold what is committed. Usually one; none in a catalog that has never
            been compacted.
        records: paths of the loose commit records that count besides.
        fence: records of lease generations below it count only if they are in `records`.
        undecided: while it is below `fence`, records of lease generations from it on still count: the writer that is
            raising the fence has yet to name those that were there before.
        retired: records that `snapshots` contain and that are about to be deleted. They do not count, and no later
            version names them.
        token: distinguishes the versions of two writers.
    """

    number: int = 0
    snapshots: tuple[str, ...] = ()
    records: frozenset[str] = frozenset()
    fence: int = 0
    undecided: int = 0
    retired: frozenset[str] = frozenset()
    token: str = ""
    version: int = INDEX_VERSION

    def counts(self, record_path: str, lease_generation: int) -> bool:
        """Whether a commit record of a run with this lease counts."""
        return record_path not in self.retired and (lease_generation >= self.undecided or record_path in self.records)

    def require_fence(self, generation: int, store: CatalogStore) -> None:
        """Raise Overtaken if a process with a later lease than `generation` has raised the fence."""
        if self.fence > generation:
            raise _overtaken(store)

    def to_json(self) -> bytes:
        return seal({**asdict(self), "records": sorted(self.records), "retired": sorted(self.retired)})

    @classmethod
    def from_json(cls, data: bytes, *, number: int) -> IndexVersion:
        """Parse a version.

        Raises:
            ValueError: its content is not the one that was written, or it is of a newer format.
        """
        content = unseal(data, sealed_since=1)
        if content["version"] > INDEX_VERSION:
            raise ValueError(f"its format {content['version']} is newer than this persres-batch, which reads up to 1")
        if content.get("number") != number:
            raise ValueError(f"it is number {content.get('number')}")
        return cls(
            number,
            tuple(content["snapshots"]),
            frozenset(content["records"]),
            content["fence"],
            content["undecided"],
            frozenset(content["retired"]),
            content["token"],
        )


def newest_version(store: CatalogStore) -> IndexVersion:
    """The version in force; number 0 if there is none.

    Raises:
        StoreError: it cannot be read, or is damaged.
    """
    while True:
        number = newest_number(store.list(layout.INDEX))
        try:
            return read_version(store, number)
        except StoreError:
            if newest_number(store.list(layout.INDEX)) == number:
                raise
            # A later version has replaced it.


def read_version(store: CatalogStore, number: int) -> IndexVersion:
    """The version of this number; 0 is that of a catalog that has none.

    Raises:
        StoreError: it cannot be read, or is damaged.
    """
    if not number:
        return IndexVersion()
    path = layout.index_version(number)
    data = store.read(path)
    try:
        return IndexVersion.from_json(data, number=number)
    except (ValueError, LookupError, TypeError) as error:
        fix = REPAIR.format(catalog=store.uri)
        raise StoreError(f"commit index {store.url(path)} is damaged ({error})", fix=fix) from None


def newest_number(paths: Collection[str]) -> int:
    """The highest number of the versions among some paths; 0 without one."""
    return max((number for path in paths if (number := layout.index_version_number(path))), default=0)


def create_version(
    store: CatalogStore,
    current: IndexVersion,
    *,
    snapshots: Collection[str],
    records: Collection[str],
    fence: int | None = None,
    undecided: int | None = None,
    retired: Collection[str] = (),
) -> IndexVersion:
    """Create the version after `current`, and remove the ones before.

    Args:
        fence: that of `current` by default, and never below it.
        undecided: the fence by default.
        retired: records to retire, besides those of `current` that are still there.

    Raises:
        Overtaken: another writer has created one since `current` was read.
        StoreError: the store cannot be read or written.
    """
    fence = max(fence or 0, current.fence)
    still_there = set(current.retired).intersection(store.list(layout.COMMITS)) if current.retired else set()
    created = IndexVersion(
        current.number + 1,
        tuple(sorted(snapshots)),
        frozenset(records),
        fence,
        fence if undecided is None else undecided,
        frozenset(still_there.union(retired)),
        secrets.token_hex(8),
    )
    path, data = layout.index_version(created.number), created.to_json()
    is_ours = store.create(path, data)
    # The store decides, not the result: some ignore the condition, and a writer that was suspended may create a number
    # that was in force and has been removed since.
    if newest_version(store) != created:
        if is_ours and newest_number(store.list(layout.INDEX)) > created.number:
            store.delete(path)
        raise _overtaken(store)
    for older in store.list(layout.INDEX):
        if 0 < (layout.index_version_number(older) or 0) < created.number:
            store.delete(older)
    return created


def _overtaken(store: CatalogStore) -> Overtaken:
    return Overtaken(
        f"another process has changed the index of {store.uri} in the meantime",
        fix="wait for it to end, then do this again; what was committed is kept",
    )
