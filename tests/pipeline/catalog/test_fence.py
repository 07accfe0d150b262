"""A writer that is suspended between any two operations undoes nothing of what another process does meanwhile.

A writer runs in a thread and stops before its n-th operation. Then a process with a later lease does something, and the
writer goes on. Whatever n is: what was committed stays readable, what was forgotten has no trace.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from persres.core.errors import CatalogHeld, PersresError
from persres.pipeline.catalog import fence
from persres.pipeline.catalog.fence import raise_fence
from persres.pipeline.catalog.index import compact, read_committed
from persres.pipeline.catalog.index_version import newest_version
from persres.pipeline.catalog.results import read_renderings, read_residual_row
from persres.pipeline.catalog.store import CatalogStore
from persres.pipeline.maintenance.forget import forget
from persres.pipeline.maintenance.gc import collect_garbage, remove_garbage
from persres.pipeline.planning.plan import PlannedConcept
from persres.pipeline.shard.commit import commit_shard

from ...support.catalog_factories import memory_store, planned, rendering_rows_of, shard_of
from ...support.catalog_history import RUNS, commit_trained, object_texts, real_residual_row, write_documents

OLD, NEW = 1, 2  # lease generations


class SuspendedStore(CatalogStore):
    """A store of which one operation waits until `resume` is set."""

    def __init__(self, store: CatalogStore, at: int) -> None:
        self.__dict__.update(store.__dict__)
        self._left, self.suspended, self.resume = at, threading.Event(), threading.Event()

    def _retry(self, verb: str, path: str, operation: Callable[[], Any]) -> Any:
        self._left -= 1
        if self._left == 0:
            self.suspended.set()
            assert self.resume.wait(60)
        return super()._retry(verb, path, operation)


def taken_over(store: CatalogStore) -> Callable[[], None]:
    """The check of a lease of the generation OLD, which is lost once a later process has changed the catalog."""

    def check() -> None:
        if newest_version(store).fence > OLD:
            raise CatalogHeld("the lease is lost", fix="wait")

    return check


def all_garbage(store: CatalogStore):
    return collect_garbage(store, older_than_s=0, now=float("inf"))


def commit_as(store: CatalogStore, *concepts: PlannedConcept, kind: str, run: int, generation: int) -> None:
    commit_shard(
        store,
        run_id=RUNS[run],
        shard=shard_of(*concepts, kind=kind),
        attempt="007",
        residuals=[real_residual_row(one) for one in concepts if kind == "train"],
        renderings=[row for one in concepts for row in rendering_rows_of(one)],
        failures=[],
        seconds={},
        lease_generation=generation,
    )


def late_training(store: CatalogStore, plan: dict[str, Any]) -> None:
    commit_as(store, planned("anna", training="t2"), planned("dora"), kind="train", run=1, generation=OLD)


def late_rendering(store: CatalogStore, plan: dict[str, Any]) -> None:
    concepts = [planned(name, rendering="r2", committed=plan[name]) for name in ("anna", "ben")]
    commit_as(store, *concepts, kind="render", run=1, generation=OLD)


def late_compaction(store: CatalogStore, plan: dict[str, Any]) -> None:
    compact(store)


def late_forget(store: CatalogStore, plan: dict[str, Any]) -> None:
    forget(store, ["cleo"], generation=OLD, check=taken_over(store))


def late_gc(store: CatalogStore, plan: dict[str, Any]) -> None:
    remove_garbage(store, all_garbage(store), generation=OLD, check=taken_over(store))


def new_forget(store: CatalogStore) -> None:
    forget(store, ["anna"], generation=NEW)


def new_run(store: CatalogStore) -> None:
    raise_fence(store, NEW)  # as of a run with `--prune`
    commit_as(store, planned("emil"), kind="train", run=2, generation=NEW)
    compact(store)


def new_gc(store: CatalogStore) -> None:
    remove_garbage(store, all_garbage(store), generation=NEW)


def history() -> CatalogStore:
    store = memory_store()
    commit_trained(store, planned("anna"), planned("ben"), planned("cleo"))
    compact(store)
    commit_trained(store, planned("ben", training="t2"), run=0, attempt="000")
    write_documents(store, 0, names=("anna", "ben", "cleo"))
    return store


def check_catalog(store: CatalogStore, *, forgotten: set[str], kept: set[str]) -> None:
    committed = read_committed(store)
    assert kept <= committed.keys() and not forgotten & committed.keys()
    for one in committed.values():
        read_residual_row(store, one)
        assert len(read_renderings(store, one)) == 4
    for path, text in object_texts(store).items():
        for name in forgotten:
            assert name not in text, path


@pytest.mark.parametrize("step", [5, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("late", [late_training, late_rendering, late_compaction, late_forget, late_gc])
@pytest.mark.parametrize("new", [new_forget, new_run, new_gc])
def test_writer_suspended_anywhere_undoes_nothing(late, new, step, monkeypatch):
    monkeypatch.setattr(fence, "FENCE_POLL_S", 0.01)
    forgotten = {"anna"} if new is new_forget else set()
    at, ended_first = 1, False
    while not ended_first:
        store = history()
        plan = dict(read_committed(store))
        writer, raised = SuspendedStore(store, at), list[BaseException]()

        def write(writer: SuspendedStore = writer, plan: dict[str, Any] = plan, raised: list = raised) -> None:
            try:
                late(writer, plan)
            except PersresError as error:  # overtaken, or what it refers to is gone
                raised.append(error)

        thread = threading.Thread(target=write, daemon=True)
        thread.start()
        while thread.is_alive() and not writer.suspended.wait(0.005):
            pass
        ended_first = not writer.suspended.is_set()
        seen = dict(read_committed(store))
        new(store)
        writer.resume.set()
        thread.join(60)
        assert not thread.is_alive()
        removed = {"cleo"} if late is late_forget and not raised else set()
        kept = seen.keys() - forgotten - {"cleo"} if late is late_forget else seen.keys() - forgotten
        check_catalog(store, forgotten=forgotten | removed, kept=kept | ({"emil"} if new is new_run else set()))
        at += step
    assert at > 5


def test_commit_behind_the_fence_is_refused_and_leaves_nothing():
    store = history()
    raise_fence(store, NEW)
    objects = store.list("")
    with pytest.raises(CatalogHeld, match=r"lost its lease.*Fix: submit again"):
        late_training(store, {})
    assert store.list("") == objects
    commit_as(store, planned("emil"), kind="train", run=2, generation=NEW)
    assert "emil" in read_committed(store)


def test_fence_keeps_what_was_committed_before():
    store = history()
    late_training(store, {})
    raise_fence(store, NEW)
    raise_fence(store, NEW + 1)
    assert read_committed(store)["anna"].training_fingerprint == "t2" and "dora" in read_committed(store)
    compact(store)
    check_catalog(store, forgotten=set(), kept={"anna", "ben", "cleo", "dora"})
