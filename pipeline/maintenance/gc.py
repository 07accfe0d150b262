"""Garbage collection: find the objects of a catalog that no reader uses, and remove them.

Lost attempts leave files that no record names, refreshes leave files whose every row was replaced, and killed writers
leave temporary files and torn records. None of it is ever read, but it costs money, and globs over the data files
match it.

An attempt's files have no record until the record is written. So age decides: an object younger than `older_than_s` is
never garbage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from ...core.errors import InvalidInput
from ..catalog import layout
from ..catalog.committed import CommittedConcepts
from ..catalog.data_file import referenced_files
from ..catalog.fence import raise_fence
from ..catalog.index import read_committed, unused_objects
from ..catalog.layout import AttemptPaths
from ..catalog.store import CatalogStore
from ..storage.stored_object import StoredObject

Why = Literal["not committed", "torn record", "refused record", "unused index", "temporary file", "probe"]


@dataclass(frozen=True, slots=True)
class GarbageObject:
    """An object that can be removed: its path, size in bytes, time of writing (seconds since 1970), and why.

    "not committed": a data file that nothing committed refers to, left by a lost attempt or replaced by a later one;
    "torn record": cut off while it was written, and so never read; "refused record": written by a lost run after
    another process had raised the fence; "unused index": a snapshot or version that is not in force; "temporary file":
    of a killed writer; "probe": of a run that was killed while it tested the store's conditional writes.
    """

    path: str
    size: int
    modified: float
    why: Why


@dataclass(frozen=True, slots=True)
class Garbage:
    """All garbage by path; `too_young` counts objects that would be garbage but for their age."""

    objects: tuple[GarbageObject, ...]
    too_young: int

    @property
    def size(self) -> int:
        """In bytes."""
        return sum(one.size for one in self.objects)


def collect_garbage(store: CatalogStore, *, older_than_s: float, now: float) -> Garbage:
    """Find garbage; removes nothing. To remove it, call this again while holding the catalog's lease.

    Args:
        older_than_s: ignore objects written less than this many seconds before `now`.
        now: seconds since 1970.

    Raises:
        StoreError: the catalog cannot be read, or its index or a record is damaged, so that garbage is not known.
    """
    objects = store.stat_all(hidden=True)  # before the records, so that what is committed meanwhile is no garbage
    candidates: dict[str, Why] = dict(_candidates(store, objects, read_committed(store)))
    garbage = tuple(
        GarbageObject(path, objects[path].size or 0, objects[path].modified, why)
        for path, why in sorted(candidates.items())
        if now - objects[path].modified >= older_than_s
    )
    return Garbage(garbage, too_young=len(candidates) - len(garbage))


def remove_garbage(
    store: CatalogStore,
    garbage: Garbage,
    *,
    generation: int = 0,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    check: Callable[[], None] = lambda: None,
) -> Garbage:
    """Remove what `collect_garbage` found and is still garbage behind the fence. Returns what was removed.

    The caller has held the catalog's lease since before that.

    Args:
        generation: of the caller's lease.
        on_progress: called with (removed, all).
        check: called before each removal; raises if the lease is lost.

    Raises:
        CatalogHeld: another process has taken over the catalog.
        InvalidInput: nothing is committed, so every data file would be garbage: more likely the index was lost.
        StoreError: an object could not be removed; those before it were.
    """
    unreferenced = [one for one in garbage.objects if one.why == "not committed"]
    if unreferenced and not read_committed(store):
        raise InvalidInput(
            f"nothing is committed in {store.uri}, so all of its {len(unreferenced)} data files would be removed",
            fix=f"if this is intended, delete {store.uri} as a whole; if not, restore {store.url(layout.INDEX)}, or "
            f"rebuild it from the data files: `persres-batch repair {store.uri}`",
        )
    if not garbage.objects:
        return garbage
    check()
    raise_fence(store, generation)
    still = dict(_candidates(store, store.stat_all(hidden=True), read_committed(store)))
    removed = tuple(one for one in garbage.objects if one.path in still)
    for done, one in enumerate(removed, start=1):
        check()
        store.delete(one.path)
        on_progress(done, len(removed))
    return Garbage(removed, garbage.too_young)


def _candidates(
    store: CatalogStore, objects: dict[str, StoredObject], committed: CommittedConcepts
) -> Iterator[tuple[str, Why]]:
    """Garbage of any age."""
    in_use = referenced_files(committed.to_table())
    for path in objects:
        name = path.rsplit("/", 1)[-1]
        if name.startswith("."):
            if name.endswith(".tmp"):
                yield path, "temporary file"
        elif path.startswith(layout.PROBES):
            yield path, "probe"
        elif path.startswith((layout.RESIDUALS, layout.RENDERINGS)) and path not in in_use and AttemptPaths.parse(path):
            yield path, "not committed"
    unused = unused_objects(store)
    kinds: dict[Why, tuple[str, ...]] = {
        "torn record": unused.torn,
        "refused record": unused.refused,
        "unused index": unused.replaced,
    }
    for why, paths in kinds.items():
        for path in paths:
            if path in objects:
                yield path, why
