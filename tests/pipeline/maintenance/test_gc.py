"""Garbage is what nobody reads: all of it is found, nothing else is, and what is young stays."""

from __future__ import annotations

import os
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from persres.core.errors import InvalidInput
from persres.pipeline.catalog.index import compact
from persres.pipeline.catalog.store import CatalogStore
from persres.pipeline.maintenance.gc import collect_garbage, remove_garbage

from ...support.catalog_digest import concept_digests
from ...support.catalog_samples import memory_store, planned
from ...support.upkeep_samples import RUNS, dead_attempt, rendered_again, trained

HOUR = 3600.0


@pytest.fixture(params=["disk", "memory"])
def store(request, tmp_path) -> CatalogStore:
    return CatalogStore(str(tmp_path / "catalog")) if request.param == "disk" else memory_store()


def everything(store: CatalogStore):
    return collect_garbage(store, older_than_s=0, now=time.time() + 60)


def why(store: CatalogStore) -> dict[str, str]:
    return {one.path: one.why for one in everything(store).objects}


def test_a_catalog_in_order_has_no_garbage(store):
    trained(store, planned("a"), planned("b"))
    rendered_again(store, "a")
    assert why(store) == {}
    compact(store)
    assert why(store) == {}


def test_an_attempt_that_died_and_files_of_which_everything_was_replaced_are_found_and_removed(store):
    first = trained(store, planned("a"), planned("b"))
    dead = dead_attempt(store, planned("a"))
    again = rendered_again(store, "a", "b")
    latest = trained(store, planned("a", training="t2"), run=2)
    digests = concept_digests(store)

    found = everything(store)
    assert [one.path for one in found.objects] == sorted([*dead, first.files["renderings"]])
    assert {one.why for one in found.objects} == {"not committed"}
    assert found.size == sum(len(store.read(one.path)) for one in found.objects)
    remove_garbage(store, found)

    assert why(store) == {} and concept_digests(store) == digests
    there = store.list("residuals/") + store.list("renderings/")
    assert set(there) == {first.files["residuals"], again.files["renderings"], *latest.files.values()}


def test_torn_records_and_snapshots_are_garbage(store):
    record = trained(store, planned("a"))
    torn = store.commit_record("r", "s", "1")
    store.write(torn, record.to_json()[: len(record.to_json()) // 2])
    snapshot = store.index_file(RUNS[0], "00000000")
    store.write(snapshot, b"PAR1 and not much more")
    assert why(store) == {torn: "torn record", snapshot: "torn snapshot"}


def test_temporary_files_of_killed_writers_are_found_on_a_disk(tmp_path):
    store = CatalogStore(str(tmp_path / "catalog"))
    trained(store, planned("a"))
    left = "residuals/.x_y_1.parquet.0f.tmp"
    (tmp_path / "catalog" / left).write_bytes(b"half")
    assert why(store) == {left: "temporary file"}
    remove_garbage(store, everything(store))
    assert not (tmp_path / "catalog" / left).exists()


def test_what_is_young_is_left_alone_and_counted(tmp_path):
    store = CatalogStore(str(tmp_path / "catalog"))
    trained(store, planned("a"))
    old, young = dead_attempt(store, planned("a"))
    now = time.time()
    os.utime(tmp_path / "catalog" / old, (now - 25 * HOUR, now - 25 * HOUR))
    os.utime(tmp_path / "catalog" / young, (now - 23 * HOUR, now - 23 * HOUR))
    found = collect_garbage(store, older_than_s=24 * HOUR, now=now)
    assert ([one.path for one in found.objects], found.too_young) == ([old], 1)


def test_what_is_not_ours_is_left_alone(store):
    trained(store, planned("a"))
    for path in ("README.md", "residuals/notes.parquet", "elsewhere/x_y_1.parquet", "runs/r/plan.json"):
        store.write(path, b"mine")
    assert why(store) == {}


def test_a_catalog_whose_index_was_lost_is_not_emptied(store):
    dead_attempt(store, planned("a"))
    found = everything(store)
    assert len(found.objects) == 2
    with pytest.raises(InvalidInput, match=r"nothing is committed.*delete .* as a whole"):
        remove_garbage(store, found)
    assert len(store.list("")) == 2


def test_removing_stops_when_the_lease_is_lost(store):
    trained(store, planned("a"))
    dead_attempt(store, planned("a"))

    def lost() -> None:
        raise RuntimeError("lost")

    with pytest.raises(RuntimeError, match="lost"):
        remove_garbage(store, everything(store), check=lost)
    assert len(everything(store).objects) == 2


steps = st.lists(
    st.tuples(st.sampled_from(["train", "die", "render", "compact"]), st.sampled_from("abc"), st.integers(0, 2)),
    min_size=1,
    max_size=6,
)


@given(steps)
def test_collecting_never_changes_what_a_reader_sees_and_leaves_nothing_to_collect(steps):
    store = memory_store()
    trained(store, planned("a"), planned("b"), planned("c"))
    for number, (what, name, run) in enumerate(steps):
        if what == "compact":
            compact(store)
        elif what == "render":
            rendered_again(store, name, run=run, rendering=f"r{number}")
        else:
            act = trained if what == "train" else dead_attempt
            act(store, planned(name, training=f"t{number}"), run=run, attempt=f"1{number:02}")
    digests = concept_digests(store)
    remove_garbage(store, everything(store))
    assert concept_digests(store) == digests and everything(store).objects == ()
    for path in store.list(""):  # what is in memory is listed by the stores of later examples too
        store.delete(path)
