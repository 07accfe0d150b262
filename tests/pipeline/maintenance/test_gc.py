from __future__ import annotations

import os
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from persres.core.errors import InvalidInput
from persres.pipeline.catalog import layout
from persres.pipeline.catalog.index import compact
from persres.pipeline.catalog.layout import AttemptPaths
from persres.pipeline.catalog.store import CatalogStore
from persres.pipeline.maintenance.gc import Garbage, collect_garbage, remove_garbage

from ...support.catalog_digest import concept_digests
from ...support.catalog_factories import memory_store, planned
from ...support.catalog_history import RUNS, commit_rerendered, commit_trained, lost_attempt

HOUR = 3600.0


@pytest.fixture(params=["disk", "memory"])
def store(request, tmp_path) -> CatalogStore:
    return CatalogStore(str(tmp_path / "catalog")) if request.param == "disk" else memory_store()


def all_garbage(store: CatalogStore) -> Garbage:
    return collect_garbage(store, older_than_s=0, now=time.time() + 60)


def reasons(store: CatalogStore) -> dict[str, str]:
    return {one.path: one.why for one in all_garbage(store).objects}


def test_gc_finds_nothing_in_an_intact_catalog(store):
    commit_trained(store, planned("a"), planned("b"))
    commit_rerendered(store, "a")
    assert reasons(store) == {}
    compact(store)
    assert reasons(store) == {}


def test_gc_removes_files_of_lost_attempts_and_replaced_files(store):
    first = commit_trained(store, planned("a"), planned("b"))
    dead = lost_attempt(store, planned("a"))
    again = commit_rerendered(store, "a", "b")
    latest = commit_trained(store, planned("a", training="t2"), run=2)
    digests = concept_digests(store)

    found = all_garbage(store)
    assert [one.path for one in found.objects] == sorted([*dead, first.files["renderings"]])
    assert {one.why for one in found.objects} == {"not committed"}
    assert found.size == sum(len(store.read(one.path)) for one in found.objects)
    remove_garbage(store, found)

    assert reasons(store) == {} and concept_digests(store) == digests
    there = store.list("residuals/") + store.list("renderings/")
    assert set(there) == {first.files["residuals"], again.files["renderings"], *latest.files.values()}


def test_gc_finds_torn_records_and_snapshots_not_in_force(store):
    record = commit_trained(store, planned("a"))
    compact(store)
    torn = AttemptPaths("r", "s", "1").record
    store.write(torn, record.to_json()[: len(record.to_json()) // 2])
    snapshot = layout.index_snapshot(RUNS[0], "00000000", "0" * 32)
    store.write(snapshot, b"PAR1 and not much more")
    assert reasons(store) == {torn: "torn record", snapshot: "unused index"}


def test_gc_finds_temporary_files_of_killed_writers(tmp_path):
    store = CatalogStore(str(tmp_path / "catalog"))
    commit_trained(store, planned("a"))
    left = "residuals/.x_y_1.parquet.0f.tmp"
    (tmp_path / "catalog" / left).write_bytes(b"half")
    assert reasons(store) == {left: "temporary file"}
    remove_garbage(store, all_garbage(store))
    assert not (tmp_path / "catalog" / left).exists()


def test_gc_ignores_and_counts_young_objects(tmp_path):
    store = CatalogStore(str(tmp_path / "catalog"))
    commit_trained(store, planned("a"))
    old, young = lost_attempt(store, planned("a"))
    now = time.time()
    os.utime(tmp_path / "catalog" / old, (now - 25 * HOUR, now - 25 * HOUR))
    os.utime(tmp_path / "catalog" / young, (now - 23 * HOUR, now - 23 * HOUR))
    found = collect_garbage(store, older_than_s=24 * HOUR, now=now)
    assert ([one.path for one in found.objects], found.too_young) == ([old], 1)


def test_gc_ignores_objects_of_others(store):
    commit_trained(store, planned("a"))
    for path in ("README.md", "residuals/notes.parquet", "elsewhere/x_y_1.parquet", "runs/r/plan.json"):
        store.write(path, b"mine")
    assert reasons(store) == {}


def test_gc_refuses_to_empty_a_catalog_without_an_index(store):
    lost_attempt(store, planned("a"))
    found = all_garbage(store)
    assert len(found.objects) == 2
    with pytest.raises(InvalidInput, match=r"nothing is committed.*delete .* as a whole"):
        remove_garbage(store, found)
    assert len(store.list("")) == 2


def test_gc_stops_when_the_lease_is_lost(store):
    commit_trained(store, planned("a"))
    lost_attempt(store, planned("a"))

    def lost() -> None:
        raise RuntimeError("lost")

    with pytest.raises(RuntimeError, match="lost"):
        remove_garbage(store, all_garbage(store), check=lost)
    assert len(all_garbage(store).objects) == 2


steps = st.lists(
    st.tuples(st.sampled_from(["train", "die", "render", "compact"]), st.sampled_from("abc"), st.integers(0, 2)),
    min_size=1,
    max_size=6,
)


@given(steps)
def test_gc_never_changes_what_is_read_and_leaves_no_garbage(steps):
    store = memory_store()
    commit_trained(store, planned("a"), planned("b"), planned("c"))
    for number, (what, name, run) in enumerate(steps):
        if what == "compact":
            compact(store)
        elif what == "render":
            commit_rerendered(store, name, run=run, rendering=f"r{number}")
        else:
            act = commit_trained if what == "train" else lost_attempt
            act(store, planned(name, training=f"t{number}"), run=run, attempt=f"1{number:02}")
    digests = concept_digests(store)
    remove_garbage(store, all_garbage(store))
    assert concept_digests(store) == digests and all_garbage(store).objects == ()
    for path in store.list(""):  # all catalogs in memory share one listing
        store.delete(path)
