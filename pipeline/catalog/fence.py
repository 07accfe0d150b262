"""The fence: a run that has lost its lease commits nothing any more once another process changes the catalog.

A worker of a lost run may commit late: results that refer to a residual which `forget` has moved since, or data files
that `gc` has taken for garbage. So whoever is about to move or delete data files raises the fence to the generation of
its own lease first. Then the lost run's commits do not count, whenever they arrive.

What such a worker has committed before must not vanish. So the fence is raised in two versions of the index: under the
first, records of lost runs still count, but no writer takes its own for committed any more; the second names all that
are there by then. A worker that finds its record under neither removes it, with its data files.
"""

from __future__ import annotations

import time

from ...core.errors import CatalogHeld
from ...core.timing import FENCE_POLL_S, FENCE_TIMEOUT_S
from .commit_record import ShardCommit
from .index import read_committed, read_contents
from .index_version import create_version, newest_version
from .store import CatalogStore


def raise_fence(store: CatalogStore, generation: int) -> None:
    """From now on, refuse commits of runs whose lease is older than `generation`. What is committed stays.

    Raises:
        Overtaken: another process has changed the index in the meantime, or has a later lease.
        StoreError: the index cannot be read, or the store cannot be written.
    """
    contents = read_contents(store)
    version = contents.version
    version.require_fence(generation, store)
    if version.fence == generation and version.undecided == version.fence:
        return
    snapshots, records = contents.snapshots, contents.records.accepted
    create_version(store, version, snapshots=snapshots, records=records, fence=generation, undecided=version.undecided)
    contents = read_contents(store)
    create_version(store, contents.version, snapshots=contents.snapshots, records=contents.records.accepted)


def require_counted(store: CatalogStore, record: ShardCommit) -> None:
    """Check that a commit record that has just been written counts. If not, remove it and its data files.

    Raises:
        CatalogHeld: it does not count, because its run has lost its lease and another process has raised the fence.
        StoreError: the index cannot be read.
    """
    path, generation = record.paths.record, record.lease_generation
    deadline = time.monotonic() + FENCE_TIMEOUT_S
    while True:
        version = newest_version(store)
        if generation >= version.fence or path in version.records:
            return
        if generation < version.undecided:
            break
        if time.monotonic() > deadline:  # the other process is suspended or lost; the next one decides
            raise refused(store, record.run_id)
        time.sleep(FENCE_POLL_S)
    if not read_committed(store).files().isdisjoint(record.files.values()):
        return  # it was named, and has been merged into a snapshot since
    for written in (path, *record.files.values()):
        store.delete(written)
    raise refused(store, record.run_id)


def refused(store: CatalogStore, run_id: str) -> CatalogHeld:
    """The error for a commit behind the fence."""
    return CatalogHeld(
        f"run {run_id} lost its lease on {store.uri}, and another process has changed the catalog since",
        fix="submit again, which does whatever is missing; what was committed is kept",
    )
