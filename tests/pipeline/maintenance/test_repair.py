"""An index is rebuilt from data files as it was, whatever part of it is lost."""

from __future__ import annotations

import dataclasses

import pytest

from persres.core.errors import StoreError
from persres.pipeline.catalog.index import compact, read_committed
from persres.pipeline.catalog.store import CatalogStore
from persres.pipeline.maintenance.forget import forget
from persres.pipeline.maintenance.repair import find_repair, repair
from persres.pipeline.maintenance.verify import verify

from ...support.catalog_factories import memory_store, planned
from ...support.catalog_history import commit_rerendered, commit_trained, write_documents


@pytest.fixture(name="store")
def store_with_history() -> CatalogStore:
    """Two runs are compacted, ben is forgotten, and a third one has a loose record that the index names."""
    store = memory_store()
    commit_trained(store, planned("anna"), planned("ben"), planned("cleo"))
    commit_rerendered(store, "anna", "ben", run=1)
    compact(store)
    forget(store, ["ben"])
    commit_trained(store, planned("dora"), run=2)
    compact(store, after=100)
    write_documents(store, 2, names=("dora",))
    return store


def cut(store: CatalogStore, path: str) -> None:
    store.write(path, store.read(path)[:-25])


def flip(store: CatalogStore, path: str) -> None:
    data = bytearray(store.read(path))
    data[len(data) // 2] ^= 8
    store.write(path, bytes(data))


@pytest.mark.parametrize("damage", [cut, flip, CatalogStore.delete])
@pytest.mark.parametrize("part", ["snapshot", "version", "record", "index", "index and records"])
def test_lost_part_of_the_index_is_recovered(store, part, damage):
    before = dict(read_committed(store))
    paths = [*store.list("index/"), *store.list("commits/")]
    chosen = {"snapshot": "index/2", "version": "index/0", "record": "commits/", "index": "index/"}.get(part, "")
    for path in paths:
        if path.startswith(chosen):
            damage(store, path)
    with pytest.raises(StoreError, match="persres-batch repair"):
        read_committed(store)
    assert not verify(store).clean

    objects = store.list("")
    planned_repair = find_repair(store)
    assert store.list("") == objects and planned_repair.fault is not None
    assert repair(store, generation=9) == planned_repair

    assert dict(read_committed(store)) == before and "ben" not in before
    assert verify(store).clean
    assert repair(store).fault is None


def test_whole_index_is_left_as_it_is(store):
    objects = store.list("")
    assert find_repair(store) == repair(store) and repair(store).concepts == 3
    assert store.list("") == objects


def test_what_cannot_be_recovered_is_named(store):
    committed = read_committed(store)
    cleo, anna = committed["cleo"], committed["anna"]
    assert cleo.rendering_file and anna.rendering_file
    store.delete(anna.rendering_file)  # her first renderings went when ben was forgotten, or are of an earlier prompt
    flip(store, committed["dora"].residual_file)
    for path in store.list("index/"):
        store.delete(path)
    result = repair(store)
    after = read_committed(store)
    assert "dora" not in after and {"anna", "cleo"} == after.keys()
    assert committed["dora"].residual_file in {loss.what for loss in result.losses}
    assert dataclasses.replace(after["cleo"], scores={}) == dataclasses.replace(cleo, scores={})
    assert after["anna"].residual_digest == anna.residual_digest
