from __future__ import annotations

import dataclasses
import itertools
import threading
import time
from collections.abc import Callable

import pytest

from persres.core.errors import CatalogHeld, StoreError
from persres.pipeline.catalog import lease as catalog_lease
from persres.pipeline.catalog.lease import LeaseState, hold_lease, lease_holder, owner_here
from persres.pipeline.catalog.store import CatalogStore

from ...support.catalog_samples import memory_store


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


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it has not come true"
        time.sleep(0.02)


def test_a_run_that_cannot_renew_is_not_certain_any_more_and_goes_on_when_the_store_is_back(s3, s3_store):
    with hold_lease(s3_store, "run-1", "ana", ttl_s=1.0) as lease:
        assert lease.is_certain()
        s3.faults.rule = lambda request: "reset"
        until(lambda: not lease.is_certain())
        lease.check()
        s3.faults.rule = lambda request: None
        until(lease.is_certain)
        lease.check()
    assert lease_holder(s3_store) is None


def test_the_end_of_a_run_does_not_wait_for_a_store_that_is_gone(s3, s3_store):
    with hold_lease(s3_store.with_patience(3600), "run-1", "ana", ttl_s=1.0):
        s3.faults.rule = lambda request: "reset"
    s3.faults.rule = lambda request: None
    assert lease_holder(s3_store) is not None, "nobody could release it: it expires"


@pytest.mark.parametrize("fault", ["503 after", "reset after", "503", "reset"])
def test_a_lease_is_held_though_every_third_answer_is_lost(s3, s3_store, fault):
    requests = itertools.count()
    s3.faults.rule = lambda request: fault if next(requests) % 3 == 1 else None
    with hold_lease(s3_store, "run-1", "ana") as lease:
        lease.check()
        with pytest.raises(CatalogHeld), hold_lease(s3_store, "run-2", "bob"):
            pass


def test_a_lease_that_somebody_deleted_is_lost(store):
    with hold_lease(store, "run-1", "ana", ttl_s=0.4) as lease:
        store.delete(store.lease_file(1))
        until(lambda: not lease.is_certain())
        with pytest.raises(CatalogHeld, match="to whoever deleted it"):
            lease.check()


def test_a_run_may_wait_for_its_turn(store):
    held, let_go, seen = threading.Event(), threading.Event(), []

    def first() -> None:
        with hold_lease(store, "run-1", "ana", ttl_s=2.0):
            held.set()
            let_go.wait(30)

    thread = threading.Thread(target=first)
    thread.start()
    held.wait(30)

    def waiting(holder: LeaseState) -> None:
        seen.append(holder.run_id)
        if len(seen) == 2:
            let_go.set()

    with hold_lease(store, "run-2", "bob", wait=waiting) as lease:
        lease.check()
        holder = lease_holder(store)
        assert holder is not None and holder.run_id == "run-2"
    thread.join()
    assert len(seen) >= 2 and set(seen) == {"run-1"}


@pytest.mark.parametrize("clock_off_s", [0, 3600, -3600, 0.3])
def test_a_waiting_run_takes_over_from_a_dead_one_whatever_its_clock_said(clock_off_s):
    store = memory_store()
    leave_behind(store, age_s=clock_off_s, ttl_s=0.5)
    with hold_lease(store, "run-2", "bob", wait=lambda holder: None):
        assert store.list(store.LEASES) == [store.lease_file(4)]


def test_a_store_that_ignores_conditions_is_named_and_still_has_one_holder(s3, s3_store, monkeypatch):
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
    until(lambda: len(holders) + len(refused) == 3)
    done.set()
    [thread.join() for thread in threads]
    assert (len(holders), len(refused)) == (1, 2)
    assert s3_store.uri in holders[0].warning and "ignores conditional writes" in holders[0].warning
    assert s3_store.list(s3_store.PROBES) == []


def test_the_message_for_a_held_catalog_names_the_way_to_wait(store):
    leave_behind(store, age_s=0)
    with pytest.raises(CatalogHeld, match=r"run run-dead of ana@gpu-7 since 20.*--wait") as caught:
        hold_lease(store, "run-2", "bob").__enter__()
    assert caught.value.exit_code == 4


def test_this_user_on_this_machine_has_a_name(monkeypatch):
    def nameless() -> str:
        raise KeyError("uid not found")

    assert "@" in owner_here()
    monkeypatch.setattr("getpass.getuser", nameless)
    assert owner_here().split("@")[0].isdigit()


def test_a_damaged_lease_is_named(store):
    store.write(store.lease_file(1), b"{")
    with pytest.raises(StoreError, match=r"00000001\.json is damaged"):
        hold_lease(store, "run-1", "ana").__enter__()
