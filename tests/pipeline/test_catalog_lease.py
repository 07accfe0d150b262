from __future__ import annotations

import dataclasses
import threading
import time

import pytest

from persres.core.errors import CatalogHeld, StoreError
from persres.pipeline.catalog_lease import LeaseState, hold_lease, lease_holder
from persres.pipeline.catalog_store import CatalogStore

from .catalog_samples import memory_store


@pytest.fixture(params=["disk", "memory"])
def store(request, tmp_path):
    return CatalogStore(str(tmp_path / "catalog")) if request.param == "disk" else memory_store()


def leave_behind(store: CatalogStore, *, age_s: float, ttl_s: float = 60.0, generation: int = 3) -> LeaseState:
    """The lease of a run that was killed `age_s` seconds after its last renewal."""
    then = time.time() - age_s
    state = LeaseState("run-dead", "ana@gpu-7", "token", acquired_at=then, renewed_at=then, ttl_s=ttl_s)
    store.write(store.lease_file(generation), state.to_json())
    return state


def test_one_run_at_a_time(store):
    assert lease_holder(store) is None
    with hold_lease(store, "run-1", "ana@gpu-7") as lease:
        lease.check()
        holder = lease_holder(store)
        assert holder is not None
        assert (holder.run_id, holder.owner) == ("run-1", "ana@gpu-7")
        with pytest.raises(CatalogHeld, match=r"held by run run-1 of ana@gpu-7 since 20.*Fix: wait"):
            hold_lease(store, "run-2", "bob@gpu-8").__enter__()
        lease.check()
    assert lease_holder(store) is None
    with hold_lease(store, "run-2", "bob@gpu-8"):
        pass
    assert len(store.list(store.LEASES)) == 1


def test_a_run_that_raises_lets_go(store):
    with pytest.raises(RuntimeError), hold_lease(store, "run-1", "ana"):
        raise RuntimeError
    with hold_lease(store, "run-2", "bob"):
        pass


def test_a_live_lease_is_renewed():
    store = memory_store()
    with hold_lease(store, "run-1", "ana", ttl_s=1.5):
        time.sleep(2)
        with pytest.raises(CatalogHeld):
            hold_lease(store, "run-2", "bob", ttl_s=1.0).__enter__()


def test_a_dead_runs_lease_is_taken_over_once_it_has_expired(store):
    leave_behind(store, age_s=30, ttl_s=60)
    with pytest.raises(CatalogHeld, match="a dead run's lease expires 60 s after"):
        hold_lease(store, "run-2", "bob").__enter__()
    leave_behind(store, age_s=2, ttl_s=0.2)
    with hold_lease(store, "run-2", "bob"):
        assert store.list(store.LEASES) == [store.lease_file(4)]


@pytest.mark.parametrize("hours", [-5, 5])
def test_a_clock_that_is_off_by_hours_does_not_cost_a_live_run_its_lease(hours):
    store = memory_store()
    state = leave_behind(store, age_s=hours * 3600, ttl_s=2.0)

    def renew() -> None:
        time.sleep(0.1)
        store.write(store.lease_file(3), dataclasses.replace(state, renewed_at=state.renewed_at + 0.25).to_json())

    renewal = threading.Thread(target=renew)
    renewal.start()
    with pytest.raises(CatalogHeld):
        hold_lease(store, "run-2", "bob").__enter__()
    renewal.join()


def test_of_many_runs_that_find_an_expired_lease_one_goes_on(tmp_path):
    store = CatalogStore(str(tmp_path))
    leave_behind(store, age_s=2, ttl_s=0.2)
    holders, refused = [], []
    ready, done = threading.Barrier(6), threading.Event()

    def take(number: int) -> None:
        ready.wait()
        try:
            with hold_lease(store, f"run-{number}", "ana"):
                holders.append(number)
                done.wait(20)
        except CatalogHeld:
            refused.append(number)

    threads = [threading.Thread(target=take, args=(number,)) for number in range(6)]
    [thread.start() for thread in threads]
    deadline = time.monotonic() + 20
    while len(holders) + len(refused) < 6 and time.monotonic() < deadline:
        time.sleep(0.01)
    done.set()
    [thread.join() for thread in threads]
    assert (len(holders), len(refused)) == (1, 5)


def test_a_run_that_slept_through_its_lease_stops(store):
    with hold_lease(store, "run-1", "ana", ttl_s=2.0) as lease:
        leave_behind(store, age_s=0, generation=9)
        with pytest.raises(CatalogHeld, match=r"lost its lease .* to run run-dead of ana@gpu-7"):
            for _ in range(200):
                lease.check()
                time.sleep(0.05)
    holder = lease_holder(store)
    assert holder is not None and holder.run_id == "run-dead"


def test_a_run_that_cannot_renew_stops_when_its_time_is_over(monkeypatch):
    store = memory_store()
    with hold_lease(store, "run-1", "ana", ttl_s=1.0) as lease:

        def offline(*_args: object) -> None:
            raise StoreError("offline")

        monkeypatch.setattr(store, "write", offline)
        lease.check()
        time.sleep(1.3)
        with pytest.raises(CatalogHeld, match="could not be renewed"):
            lease.check()


def test_a_damaged_lease_is_named(store):
    store.write(store.lease_file(1), b"{")
    with pytest.raises(StoreError, match=r"00000001\.json is damaged"):
        hold_lease(store, "run-1", "ana").__enter__()
