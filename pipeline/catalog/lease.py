"""One run at a time: a lease on a catalog that outlives no crash by more than its time to live.

The lease is a series of objects, `lease/00000001.json` and up; the highest generation counts. Acquiring is creating
the next one, which a store grants to exactly one creator, so that there is no moment at which an expired lease is
deleted and two waiting runs each think the place is free. A run that was only asleep finds a higher generation when
it wakes, and stops. Commits are safe even without a lease (see shard_commit); it saves doing work twice.

Who cannot reach the store cannot renew, and cannot tell whether anybody took over. It goes on with what it has begun,
begins nothing new (`Lease.is_certain`), and finds out when the store is back.
"""

from __future__ import annotations

import getpass
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime

from ...core.errors import CatalogHeld, StoreError
from ..timing import LEASE_POLL_S, LEASE_SETTLE_S
from .store import CatalogStore

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

    def looks_expired(self) -> bool:
        """Whether its time to live is over, or still to come, by this machine's clock."""
        return abs(time.time() - self.renewed_at) > self.ttl_s

    @classmethod
    def from_json(cls, data: bytes, *, path: str) -> LeaseState:
        try:
            return cls(**json.loads(data))
        except (ValueError, TypeError) as error:
            raise StoreError(
                f"the lease {path} is damaged ({error})", fix=f"if no run is using this catalog, delete {path}"
            ) from error


class Lease:
    """A held lease; made by `hold_lease`.

    Attributes:
        warning: what is to be said to whoever relies on it, such as that the store does not exclude a second run; None
            where all is well.
    """

    def __init__(self, store: CatalogStore, generation: int, state: LeaseState, *, renewed: float) -> None:
        # One renewal must not take so long that the next ones are missed, nor keep the end of a run waiting for long.
        self._store = store.with_patience(min(store.patience_s, state.ttl_s / RENEWALS_PER_TTL))
        self._generation = generation
        self._state = state
        self._renewed = renewed
        self._lost_to: str | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="catalog-lease", daemon=True)
        self.warning: str | None = None

    def check(self) -> None:
        """Call between pieces of work.

        Raises:
            CatalogHeld: another run has taken the catalog over, or somebody has deleted the lease.
        """
        if self._lost_to is not None:
            raise CatalogHeld(
                f"run {self._state.run_id} lost its lease on {self._store.uri} to {self._lost_to}",
                fix="wait for the other run to end, then submit again; what was committed is kept",
            )

    def is_certain(self) -> bool:
        """Whether nobody can have taken the catalog over. If not, begin nothing new: the store has not been reached
        for the whole time to live, so somebody else may have found the lease expired."""
        return self._lost_to is None and time.monotonic() - self._renewed <= self._state.ttl_s

    def _keep(self) -> None:
        while not self._stop.wait(self._state.ttl_s / RENEWALS_PER_TTL):
            try:
                if not self._renew():
                    return
            except StoreError:
                continue  # is_certain() says so if it lasts

    def _renew(self, *, released: bool = False) -> bool:
        began = time.monotonic()
        generation, current = _current(self._store)
        if current is None or generation != self._generation or current.token != self._state.token:
            self._lost_to = f"run {current.run_id} of {current.owner}" if current else "whoever deleted it"
            return False
        self._state = replace(self._state, renewed_at=time.time(), released=released)
        self._store.write(self._store.lease_file(self._generation), self._state.to_json())
        self._renewed = began
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
def hold_lease(
    store: CatalogStore,
    run_id: str,
    owner: str,
    ttl_s: float = 60.0,
    *,
    wait: Callable[[LeaseState], None] | None = None,
) -> Iterator[Lease]:
    """Hold a catalog for one run, renewing in a background thread until the block ends.

    Args:
        owner: who and where, for the message another run gets to see, such as `owner_here()`.
        ttl_s: how long after its last renewal a dead run's lease still counts, in seconds.
        wait: rather than be refused, wait until nobody holds the catalog; called every few seconds with who does.

    Raises:
        CatalogHeld: another run holds it; the message says which, since when, and when to try again.
        StoreError: the store cannot be read or written.
    """
    lease = _acquire(store, run_id, owner, ttl_s, wait)
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


def owner_here() -> str:
    """This user on this machine, such as "ana@gpu-7"."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def _acquire(
    store: CatalogStore, run_id: str, owner: str, ttl_s: float, wait: Callable[[LeaseState], None] | None
) -> Lease:
    watch = _Watch()
    while True:
        generation, current = _current(store)
        if current is None or watch.is_over(generation, current):
            lease, current = _claim(store, generation, run_id, owner, ttl_s)
            if lease is not None:
                return lease
            if wait is None:
                raise _held(store, current)
        elif wait is not None:
            wait(current)
        elif watch.is_alive or not current.looks_expired():
            raise _held(store, current)
        time.sleep(min(LEASE_POLL_S, current.ttl_s / RENEWALS_PER_TTL))


def _claim(store: CatalogStore, newest: int, run_id: str, owner: str, ttl_s: float) -> tuple[Lease | None, LeaseState]:
    """Try to become the holder after generation `newest`; if somebody else did, who that is."""
    exclusive = store.honours_create()
    began, now = time.monotonic(), time.time()
    state = LeaseState(run_id, owner, secrets.token_hex(8), acquired_at=now, renewed_at=now, ttl_s=ttl_s)
    path = store.lease_file(newest + 1)
    store.create(path, state.to_json())
    if not exclusive:
        time.sleep(LEASE_SETTLE_S)
    # What is there now decides, not create's answer: a retried request can be refused because its first try succeeded,
    # and a store that ignores conditions grants every creator, and keeps the last one's bytes.
    generation, current = _current(store)
    if generation != newest + 1 or current is None or current.token != state.token:
        return None, current or state
    for older in store.list(store.LEASES):
        if older < path:
            store.delete(older)
    lease = Lease(store, generation, state, renewed=began)
    if not exclusive:
        lease.warning = (
            f"{store.uri} ignores conditional writes, so that two runs that begin within {LEASE_SETTLE_S:.0f} s may not "
            "see each other; do not start two at once"
        )
    return lease, state


class _Watch:
    """Tells a dead holder from one whose clock is off, by looking at the lease for a while."""

    def __init__(self) -> None:
        self._seen: tuple[int, LeaseState] | None = None
        self._since = 0.0
        self.is_alive = False  # it has been seen to renew

    def is_over(self, generation: int, state: LeaseState) -> bool:
        """Whether the lease was released or its holder is dead.

        Dead is who looks expired and lets the time for a renewal pass, or who lets the whole time to live pass.
        """
        if self._seen != (generation, state):
            self.is_alive = self._seen is not None
            self._seen, self._since = (generation, state), time.monotonic()
        silent_s = time.monotonic() - self._since
        enough_s = 1.5 * state.ttl_s / RENEWALS_PER_TTL if state.looks_expired() else state.ttl_s
        return state.released or silent_s > enough_s


def _current(store: CatalogStore) -> tuple[int, LeaseState | None]:
    """The highest generation and what it says; (0, None) where there never was a lease."""
    while True:
        names = (path.rsplit("/", 1)[-1].removesuffix(".json") for path in store.list(store.LEASES))
        generations = [int(name) for name in names if name.isdigit()]
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
        fix="wait for that run to end, or submit with --wait, which does; a dead run's lease expires "
        f"{state.ttl_s:.0f} s after its last sign of life",
    )
