"""What a catalog holds and nobody needs: finding it, and removing it.

Attempts that died leave files that no record names, refreshes leave files whose every row was replaced, and writers
killed in the middle leave temporary files and torn records. None of it is ever read. It costs money, and other
people's globs over the data files see it.

An attempt's files lie there without a record for as long as it takes to write the record. So age decides: what is
younger than `older_than_s` is left alone, whatever it looks like.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from ...core.errors import InvalidInput
from ..catalog.committed import CommittedConcepts
from ..catalog.data_file import FOLDERS
from ..catalog.index import read_committed, torn_records, torn_snapshots
from ..catalog.store import CatalogStore, StoredObject

_OURS = re.compile(r"\w+/[^/_]+_[^/_]+_[^/_]+\.parquet")  # what somebody else has put there is left alone
Why = Literal["not committed", "torn record", "torn snapshot", "temporary file", "probe"]


@dataclass(frozen=True, slots=True)
class GarbageObject:
    """One object that can go: its path, its size in bytes, when it was written (seconds since 1970), and what it is.

    "not committed": a data file that nothing committed refers to, left by an attempt that died or replaced by a later
    one; "torn …": cut off while it was written, and so never believed; "temporary file": of a writer that was killed;
    "probe": of a run that was killed while it asked whether the store honours conditions.
    """

    path: str
    size: int
    modified: float
    why: Why


@dataclass(frozen=True, slots=True)
class Garbage:
    """All of it, by path; `too_young` counts objects like these that are left alone for their age."""

    objects: tuple[GarbageObject, ...]
    too_young: int

    @property
    def size(self) -> int:
        """In bytes."""
        return sum(one.size for one in self.objects)


def collect_garbage(store: CatalogStore, *, older_than_s: float, now: float) -> Garbage:
    """Find what can go; removes nothing. To remove it, call this again while holding the catalog's lease.

    Args:
        older_than_s: leave alone what was written less than this many seconds before `now`.
        now: seconds since 1970.

    Raises:
        StoreError: the catalog cannot be read, or what it says of itself is damaged: then nothing can be told apart.
    """
    there = store.stat_all(hidden=True)  # before the records: what is committed meanwhile is then no garbage
    committed = read_committed(store)
    candidates: dict[str, Why] = dict(_candidates(store, there, committed))
    objects = tuple(
        GarbageObject(path, there[path].size, there[path].modified, candidates[path])
        for path in sorted(candidates)
        if now - there[path].modified >= older_than_s
    )
    return Garbage(objects, too_young=len(candidates) - len(objects))


def remove_garbage(
    store: CatalogStore,
    garbage: Garbage,
    *,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Remove what was found. The caller has held the catalog's lease since before it was found.

    Args:
        on_progress: called with (removed, all).
        check: called before each removal; raises if the lease is lost.

    Raises:
        InvalidInput: there is nothing committed, and so every data file is garbage: more likely the index was lost.
        StoreError: an object could not be removed; those before it are gone.
    """
    lost = [one for one in garbage.objects if one.why == "not committed"]
    if lost and not read_committed(store):
        raise InvalidInput(
            f"nothing is committed in {store.uri}, so all of its {len(lost)} data files would be removed",
            fix=f"if that is meant, delete {store.uri} as a whole; if not, restore {store.url(store.INDEX)}",
        )
    for done, one in enumerate(garbage.objects, start=1):
        check()
        store.delete(one.path)
        on_progress(done, len(garbage.objects))


def committed_files(committed: CommittedConcepts) -> set[str]:
    """The data files in which results of any committed concept lie."""
    table = committed.to_table()
    columns = (table.column(name).cast(pa.string()).unique() for name in ("residual_file", "rendering_file"))
    return {path for column in columns for path in column.to_pylist() if path is not None}


def _candidates(
    store: CatalogStore, there: dict[str, StoredObject], committed: CommittedConcepts
) -> Iterator[tuple[str, Why]]:
    in_use = committed_files(committed)
    for path in there:
        name = path.rsplit("/", 1)[-1]
        if name.startswith("."):
            if name.endswith(".tmp"):
                yield path, "temporary file"
        elif path.startswith(store.PROBES):
            yield path, "probe"
        elif path.startswith(FOLDERS) and path not in in_use and _OURS.fullmatch(path):
            yield path, "not committed"
    for path in there.keys() & set(torn_records(store)):
        yield path, "torn record"
    for path in there.keys() & set(torn_snapshots(store)):
        yield path, "torn snapshot"
