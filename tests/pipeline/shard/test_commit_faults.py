"""Faults at each store operation of a commit: a reader sees all of it or nothing, and a retry completes it.

After the retry, the catalog is the one that an undisturbed commit gives.
"""

from __future__ import annotations

from typing import Any

import pytest

from persres.core.errors import StoreError, StoreUnavailable
from persres.pipeline.catalog.index import read_committed, unused_objects
from persres.pipeline.catalog.results import read_renderings, read_residual
from persres.pipeline.catalog.store import CatalogStore
from persres.pipeline.planning.plan import Shard

from ...support.catalog_digest import concept_digests
from ...support.catalog_factories import commit, memory_store, planned, shard_of
from ...support.faulty_stores import Fault, faulty
from ...support.s3_server import Fault as ServerFault
from ...support.s3_server import Request

NAMES = ("a", "b")


def held_before(store: CatalogStore, kind: str) -> Shard:
    """Commit an earlier run, and return the shard that is committed next."""
    commit(store, shard_of(*map(planned, NAMES)), run_id="run-1")
    held = read_committed(store)
    training = "t2" if kind == "train" else "t1"
    changed = [planned(name, training=training, rendering="r2", committed=held[name]) for name in NAMES]
    return shard_of(*changed, kind=kind)


def visible(store: CatalogStore) -> dict[str, Any]:
    """Return everything that a reader sees in a catalog."""
    return {
        concept_id: (read_residual(store, one), read_renderings(store, one))
        for concept_id, one in read_committed(store).items()
    }


@pytest.fixture(params=["train", "render"])
def kind(request) -> str:
    return request.param


@pytest.fixture
def undisturbed(kind) -> tuple[dict[str, Any], dict[str, Any], dict[str, str]]:
    """What a reader sees before and after an undisturbed commit, and the digests of its concepts."""
    store = memory_store()
    shard = held_before(store, kind)
    before = visible(store)
    commit(store, shard, run_id="run-2")
    return before, visible(store), concept_digests(store)


def check_visible_in_full_or_not_at_all(store: CatalogStore, shard: Shard, undisturbed: tuple[Any, Any, Any]) -> None:
    """Check that a reader sees the state before or after the commit, and that a retry completes it."""
    before, after, digests = undisturbed
    assert visible(store) in (before, after)
    commit(store, shard, run_id="run-2", attempt="002")
    assert visible(store) == after
    assert concept_digests(store) == digests


@pytest.mark.parametrize("fault", ["before", "after", "truncated", "shortened"])
@pytest.mark.parametrize("where", ["disk", "memory"])
def test_commit_that_fails_at_any_operation_is_visible_in_full_or_not_at_all(
    where, fault: Fault, kind, undisturbed, tmp_path, monkeypatch
):
    operations = 6 if kind == "train" else 5  # each put and its size; and whether the old residual is still there
    operations += 2 * (where == "memory")  # the fence before and after; a folder's listing has no faults
    for failing in range(1, operations + 1):
        store = memory_store() if where == "memory" else CatalogStore(str(tmp_path / f"catalog-{failing}"))
        shard = held_before(store, kind)
        with monkeypatch.context() as patched:
            broken, faults = faulty(store, lambda number, at=failing: fault if number == at else None, patched)
            try:
                commit(broken, shard, run_id="run-2")
            except StoreError:
                after = faults.operations[failing:]
                assert len(faults.operations) >= failing
                assert set(after) <= {"rm_file"} or fault == "shortened", "its own data files are removed, at most"
            else:
                pytest.fail(f"operation {failing} failed and the commit did not")
        check_visible_in_full_or_not_at_all(store, shard, undisturbed)


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        pytest.param(fault, kind, marks=[] if (fault, kind) == ("truncated", "train") else [pytest.mark.slow])
        for fault in ("503", "503 after", "reset", "reset after", "timeout", "403", "truncated")
        for kind in ("train", "render")
    ],
)
def test_commit_that_fails_at_any_s3_request_is_visible_in_full_or_not_at_all(
    fault: ServerFault, kind, undisturbed, s3, s3_store, monkeypatch
):
    monkeypatch.setattr(s3_store._fs, "retries", 1)
    monkeypatch.setattr(s3.faults, "timeout_s", 0.05)
    requests = 8 if kind == "train" else 7  # the index's listing takes two
    for failing in range(1, requests + 1):
        store = CatalogStore(f"{s3_store.uri}-{failing}", retry_s=0)
        shard = held_before(store, kind)
        came: list[Request] = []

        def rule(request: Request, at: int = failing, came: list[Request] = came) -> ServerFault | None:
            if request not in came:
                came.append(request)
            return fault if came[at - 1 :] and request == came[at - 1] else None  # and at every repetition of it

        s3.faults.rule = rule
        with pytest.raises(StoreError):
            commit(store, shard, run_id="run-2")
        s3.faults.rule = lambda request: None
        assert len(came) == failing
        if fault == "truncated" and came[-1].method == "PUT" and "commits" in came[-1].path:
            assert len(unused_objects(store).torn) == 1
        check_visible_in_full_or_not_at_all(store, shard, undisturbed)


@pytest.mark.parametrize("fault", ["before", "after", "truncated"])
def test_commit_with_retries_survives_a_fault_at_every_other_operation(
    store, fault: Fault, kind, undisturbed, monkeypatch
):
    shard = held_before(store, kind)
    with monkeypatch.context() as patched:
        broken, faults = faulty(store, lambda number: fault if number % 2 else None, patched, retry_s=60)
        record = commit(broken, shard, run_id="run-2")
    assert len(faults.operations) >= 10
    assert record.attempt == "001" and len(read_committed(store)) == len(NAMES)
    assert (visible(store), concept_digests(store)) == undisturbed[1:]


def test_retries_end_after_retry_s(store, monkeypatch):
    with monkeypatch.context() as patched:
        broken, faults = faulty(store, lambda number: "before", patched, retry_s=0.5)
        first = "write .*residuals/" if store._local else "list .*index/"
        with pytest.raises(StoreUnavailable, match=f"cannot {first}.*ConnectionResetError.*Fix: check"):
            commit(broken, shard_of(planned("a")))
    assert len(faults.operations) >= 2
    assert read_committed(store) == {}
