"""One run at a time: a lease on a catalog that outlives no crash by more than its time to live.

The lease is a series of objects, `lease/00000001.json` and up; the highest generation counts. Acquiring is creating
the next one, which a store grants to exactly one creator, so that there is no moment at which an expired lease is
deleted and two waiting runs each think the place is free. A run that was only asleep finds a higher generation when
it wakes, and stops. Commits are safe even without a lease (see shard_commit); it saves doing work twice.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime

from ..core.errors import CatalogHeld, StoreError
from .catalog_store import CatalogStore

RENEWALS_PER_TTL = 4


@dataclass(frozen=True, slots=True)
class LeaseState:
    """What a lease object says. Times are seconds since 1970 by the holder's clock."""

    run_id: str
    owner: str
    token: str
    acquired_at: float
    renewed_at: float
    ttl_s: float
    released: bool = False
    version: int = 1

    def to_json(self) -> bytes:
        return (json.dumps(asdict(self), indent=1, sort_keys=True) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes, *, path: str) -> LeaseState:
        try:
            return cls(**json.loads(data))
        except (ValueError, TypeError) as error:
            raise StoreError(
                f"the lease {path} is damaged ({error})", fix=f"if no run is using this catalog, delete {path}"
            ) from error


class Lease:
    """A held lease; made by `hold_lease`."""

    def __init__(self, store: CatalogStore, generation: int, state: LeaseState) -> None:
        self._store = store
        self._generation = generation
        self._state = state
        self._renewed = time.monotonic()
        self._lost_to: str | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="catalog-lease", daemon=True)

    def check(self) -> None:
        """Call between pieces of work.

        Raises:
            CatalogHeld: another run has taken the catalog over, or the lease could not be renewed for its time to live.
        """
        if self._lost_to is None and time.monotonic() - self._renewed > self._state.ttl_s:
            self._lost_to = "nobody yet: the lease could not be renewed in time"
        if self._lost_to is not None:
            raise CatalogHeld(
                f"run {self._state.run_id} lost its lease on {self._store.uri} to {self._lost_to}",
                fix="wait for the other run to end, then submit again; what was committed is kept",
            )

    def _keep(self) -> None:
        while not self._stop.wait(self._state.ttl_s / RENEWALS_PER_TTL):
            try:
                if not self._renew():
                    return
            except StoreError:
                continue  # check() gives up when this lasts for the whole time to live

    def _renew(self, *, released: bool = False) -> bool:
        generation, current = _current(self._store)
        if current is None or generation != self._generation or current.token != self._state.token:
            self._lost_to = f"run {current.run_id} of {current.owner}" if current else "whoever deleted it"
            return False
        self._state = replace(self._state, renewed_at=time.time(), released=released)
        self._store.write(self._store.lease_file(self._generation), self._state.to_json())
        self._renewed = time.monotonic()
        return True

    def _start(self) -> None:
        self._thread.start()

    def _release(self) -> None:
        self._stop.set()
        self._thread.join()
        if self._lost_to is None:
            try:
                self._renew(released=True)
            except StoreError:
                return  # the work is done; an unreleased lease expires by itself


@contextmanager
def hold_lease(store: CatalogStore, run_id: str, owner: str, ttl_s: float = 60.0) -> Iterator[Lease]:
    """Hold a catalog for one run, renewing in a background thread until the block ends.

    Args:
        owner: who and where, for the message another run gets to see, such as "ana@gpu-7".
        ttl_s: how long after its last renewal a dead run's lease still counts, in seconds.

    Raises:
        CatalogHeld: another run holds it; the message says which, since when, and when to try again.
        StoreError: the store cannot be read or written.
    """
    lease = _acquire(store, run_id, owner, ttl_s)
    lease._start()
    try:
        yield lease
    finally:
        lease._release()


def lease_holder(store: CatalogStore) -> LeaseState | None:
    """Who holds the catalog, or None if nobody does. A dead holder's lease may have expired: compare `renewed_at`.

    Raises:
        StoreError: the store cannot be read.
    """
    _, state = _current(store)
    return None if state is None or state.released else state


def _acquire(store: CatalogStore, run_id: str, owner: str, ttl_s: float) -> Lease:
    newest, current = _current(store)
    if current is not None:
        _require_over(store, newest, current)
    now = time.time()
    state = LeaseState(run_id, owner, secrets.token_hex(8), acquired_at=now, renewed_at=now, ttl_s=ttl_s)
    path = store.lease_file(newest + 1)
    store.create(path, state.to_json())
    # What is there now decides, not create's answer: a retried request can be refused because its first try succeeded,
    # and a store that ignores conditions grants every creator, and keeps the last one's bytes.
    generation, current = _current(store)
    if generation != newest + 1 or current is None or current.token != state.token:
        raise _held(store, current or state)
    for older in store.list(store.LEASES):
        if older < path:
            store.delete(older)
    return Lease(store, generation, state)


def _require_over(store: CatalogStore, generation: int, state: LeaseState) -> None:
    """Raise CatalogHeld unless the lease was released or its holder is dead.

    A lease that looks expired may belong to a machine whose clock is off, so it is watched for one renewal first.
    """
    if state.released:
        return
    if abs(time.time() - state.renewed_at) > state.ttl_s:
        time.sleep(1.5 * state.ttl_s / RENEWALS_PER_TTL)
        now_generation, now_state = _current(store)
        if now_generation == generation and now_state == state:
            return
        state = now_state or state
    if not state.released:
        raise _held(store, state)


def _current(store: CatalogStore) -> tuple[int, LeaseState | None]:
    """The highest generation and what it says; (0, None) where there never was a lease."""
    while True:
        generations = [int(path.rsplit("/", 1)[-1].removesuffix(".json")) for path in store.list(store.LEASES)]
        if not generations:
            return 0, None
        path = store.lease_file(max(generations))
        try:
            return max(generations), LeaseState.from_json(store.read(path), path=store.url(path))
        except StoreError:
            if store.exists(path):
                raise
            # a later holder has just tidied it away: look again


def _held(store: CatalogStore, state: LeaseState) -> CatalogHeld:
    since = datetime.fromtimestamp(state.acquired_at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return CatalogHeld(
        f"catalog {store.uri} is held by run {state.run_id} of {state.owner} since {since}",
        fix=f"wait for that run to end; a dead run's lease expires {state.ttl_s:.0f} s after its last sign of life",
    )
