from __future__ import annotations

import dataclasses
import itertools
import threading
import time

import pytest

from persres.core.errors import CatalogHeld, StoreError
from persres.pipeline.catalog import layout
from persres.pipeline.catalog import lease as catalog_lease
from persres.pipeline.catalog.lease import LeaseState, hold_lease, lease_holder, owner_here
from persres.pipeline.catalog.store import CatalogStore

from ...support.catalog_factories import memory_store
from ...support.processes import wait_until


def write_dead_lease(store: CatalogStore, *, age_s: float, ttl_s: float = 60.0, generation: int = 3) -> LeaseState:
    """Write the lease of a killed run, last renewed `age_s` seconds ago."""
    then = time.time() - age_s
    state = LeaseState("run-dead", "ana@gpu-7", "token", acquired_at=then, renewed_at=then, ttl_s=ttl_s)
    store.write(layout.lease_file(generation), state.to_json())
    return state


def test_lease_admits_one_run_at_a_time(store):
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
    assert len(store.list(layout.LEASES)) == 1


def test_lease_is_released_when_the_run_raises(store):
    with pytest.raises(RuntimeError), hold_lease(store, "run-1", "ana"):
        raise RuntimeError
    with hold_lease(store, "run-2", "bob"):
        pass


def test_lease_is_renewed_while_it_is_held():
    store = memory_store()
    with hold_lease(store, "run-1", "ana", ttl_s=1.5):
        time.sleep(2)
        with pytest.raises(CatalogHeld):
            hold_lease(store, "run-2", "bob", ttl_s=1.0).__enter__()


def test_expired_lease_of_a_dead_run_is_taken_over(store):
    write_dead_lease(store, age_s=30, ttl_s=60)
    with pytest.raises(CatalogHeld, match="a lost run's lease expires 60 s after"):
        hold_lease(store, "run-2", "bob").__enter__()
    write_dead_lease(store, age_s=2, ttl_s=0.2)
    with hold_lease(store, "run-2", "bob"):
        assert store.list(layout.LEASES) == [layout.lease_file(4)]


@pytest.mark.parametrize("hours", [-5, 5])
def test_lease_survives_a_clock_that_is_off_by_hours(hours):
    store = memory_store()
    state = write_dead_lease(store, age_s=hours * 3600, ttl_s=2.0)

    def renew() -> None:
        time.sleep(0.1)
        store.write(layout.lease_file(3), dataclasses.replace(state, renewed_at=state.renewed_at + 0.25).to_json())

    renewal = threading.Thread(target=renew)
    renewal.start()
    with pytest.raises(CatalogHeld):
        hold_lease(store, "run-2", "bob").__enter__()
    renewal.join()


def test_expired_lease_has_one_winner_among_many_runs(tmp_path):
    store = CatalogStore(str(tmp_path))
    write_dead_lease(store, age_s=2, ttl_s=0.2)
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
    wait_until(lambda: len(holders) + len(refused) == 6, timeout_s=20)
    done.set()
    [thread.join() for thread in threads]
    assert (len(holders), len(refused)) == (1, 5)


def test_lease_check_raises_after_a_takeover(store):
    with hold_lease(store, "run-1", "ana", ttl_s=2.0) as lease:
        write_dead_lease(store, age_s=0, generation=9)
        with pytest.raises(CatalogHeld, match=r"lost its lease .* to run run-dead of ana@gpu-7"):
            for _ in range(200):
                lease.check()
                time.sleep(0.05)
    holder = lease_holder(store)
    assert holder is not None and holder.run_id == "run-dead"


def test_lease_is_uncertain_while_it_cannot_be_renewed(s3, s3_store):
    with hold_lease(s3_store, "run-1", "ana", ttl_s=1.0) as lease:
        assert lease.is_certain()
        s3.faults.rule = lambda request: "reset"
        wait_until(lambda: not lease.is_certain(), timeout_s=30)
        lease.check()
        s3.faults.rule = lambda request: None
        wait_until(lease.is_certain, timeout_s=30)
        lease.check()
    assert lease_holder(s3_store) is None


def test_lease_release_does_not_wait_for_an_unreachable_store(s3, s3_store):
    with hold_lease(s3_store.with_retry(3600), "run-1", "ana", ttl_s=1.0):
        s3.faults.rule = lambda request: "reset"
    s3.faults.rule = lambda request: None
    assert lease_holder(s3_store) is not None, "it could not be released, and expires"


@pytest.mark.parametrize("fault", ["503 after", "reset after", "503", "reset"])
def test_lease_is_held_despite_lost_responses(s3, s3_store, fault):
    requests = itertools.count()
    s3.faults.rule = lambda request: fault if next(requests) % 3 == 1 else None
    with hold_lease(s3_store, "run-1", "ana") as lease:
        lease.check()
        with pytest.raises(CatalogHeld), hold_lease(s3_store, "run-2", "bob"):
            pass


def test_deleted_lease_is_lost(store):
    with hold_lease(store, "run-1", "ana", ttl_s=0.4) as lease:
        store.delete(layout.lease_file(1))
        wait_until(lambda: not lease.is_certain(), timeout_s=30)
        with pytest.raises(CatalogHeld, match="to a process that deleted it"):
            lease.check()


def test_hold_lease_with_wait_gets_its_turn(store):
    held, release, seen = threading.Event(), threading.Event(), []

    def first() -> None:
        with hold_lease(store, "run-1", "ana", ttl_s=2.0):
            held.set()
            release.wait(30)

    thread = threading.Thread(target=first)
    thread.start()
    held.wait(30)

    def waiting(holder: LeaseState) -> None:
        seen.append(holder.run_id)
        if len(seen) == 2:
            release.set()

    with hold_lease(store, "run-2", "bob", wait=waiting) as lease:
        lease.check()
        holder = lease_holder(store)
        assert holder is not None and holder.run_id == "run-2"
    thread.join()
    assert len(seen) >= 2 and set(seen) == {"run-1"}


@pytest.mark.parametrize("clock_off_s", [0, 3600, -3600, 0.3])
def test_hold_lease_with_wait_takes_over_from_a_dead_run(clock_off_s):
    store = memory_store()
    write_dead_lease(store, age_s=clock_off_s, ttl_s=0.5)
    with hold_lease(store, "run-2", "bob", wait=lambda holder: None):
        assert store.list(layout.LEASES) == [layout.lease_file(4)]


def test_lease_on_a_store_that_ignores_conditions_warns_and_has_one_holder(s3, s3_store, monkeypatch):
    monkeypatch.setattr(catalog_lease, "LEASE_SETTLE_S", 0.7)
    with hold_lease(s3_store, "run-0", "ana") as lease:
        assert lease.warning is None
    s3.faults.ignore_conditions = True
    holders, refused, ready, done = [], [], threading.Barrier(3), threading.Event()

    def take(number: int) -> None:
        ready.wait()
        try:
            with hold_lease(s3_store, f"run-{number}", "ana") as lease:
                holders.append(lease)
                done.wait(30)
        except CatalogHeld:
            refused.append(number)

    threads = [threading.Thread(target=take, args=(number,)) for number in range(3)]
    [thread.start() for thread in threads]
    wait_until(lambda: len(holders) + len(refused) == 3, timeout_s=30)
    done.set()
    [thread.join() for thread in threads]
    assert (len(holders), len(refused)) == (1, 2)
    assert s3_store.uri in holders[0].warning and "ignores conditional writes" in holders[0].warning
    assert s3_store.list(layout.PROBES) == []


def test_catalog_held_names_the_option_to_wait(store):
    write_dead_lease(store, age_s=0)
    with pytest.raises(CatalogHeld, match=r"run run-dead of ana@gpu-7 since 20.*--wait") as caught:
        hold_lease(store, "run-2", "bob").__enter__()
    assert caught.value.exit_code == 4


def test_owner_here_names_user_and_host(monkeypatch):
    def nameless() -> str:
        raise KeyError("uid not found")

    assert "@" in owner_here()
    monkeypatch.setattr("getpass.getuser", nameless)
    assert owner_here().split("@")[0].isdigit()


def test_damaged_lease_is_named(store):
    store.write(layout.lease_file(1), b"{")
    with pytest.raises(StoreError, match=r"00000001\.json is damaged"):
        hold_lease(store, "run-1", "ana").__enter__()
