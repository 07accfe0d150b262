"""The lease that one run at a time holds on a catalog; a lost run's lease expires.

The lease is a series of objects, `lease/00000001.json` and up; the highest generation is in force. A run acquires the
lease by creating the next generation, which the store lets exactly one creator do. So an expired lease is never deleted
first, which two waiting runs could both take for a free catalog. A run that was suspended finds a higher generation
when it resumes, and stops. Commits are safe without a lease (see `shard.commit`); the lease avoids duplicate work.

A holder that cannot reach the store cannot renew the lease, and does not know whether another run has taken it over. It
finishes what is running, starts nothing new (`Lease.is_certain`), and checks when the store is back.
"""

from __future__ import annotations

import getpass
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace

from ...core.errors import CatalogHeld, StoreError, StoreRefused, StoreUnavailable
from ...core.terminal_text import utc_text
from ...core.timing import LEASE_POLL_S, LEASE_SETTLE_S
from . import layout
from .index_version import newest_version
from .sealed_json import seal, unseal
from .store import CatalogStore

RENEWALS_PER_TTL = 4
LEASE_VERSION = 2


@dataclass(frozen=True, slots=True)
class LeaseState:
    """The content of a lease object. Times are seconds since 1970 by the holder's clock."""

    run_id: str
    owner: str
    token: str
    acquired_at: float
    renewed_at: float
    ttl_s: float
    released: bool = False
    version: int = LEASE_VERSION

    def to_json(self) -> bytes:
        return seal(asdict(self))

    def is_expired_by_clock(self) -> bool:
        """Whether this machine's clock is outside the time to live, before or after; the holder's may be wrong."""
        return abs(time.time() - self.renewed_at) > self.ttl_s

    @classmethod
    def from_json(cls, data: bytes, *, path: str) -> LeaseState:
        try:
            content = unseal(data, sealed_since=2)
            return cls(**{name: content[name] for name in cls.__dataclass_fields__})
        except (ValueError, LookupError) as error:
            raise StoreError(
                f"the lease {path} is damaged ({error})", fix=f"if no run is using this catalog, delete {path}"
            ) from error


class Lease:
    """A held lease; created by `hold_lease`.

    Attributes:
        generation: of the lease; a later one is higher.
        warning: a message for the user if the store does not reliably exclude a second run; else None.
    """

    def __init__(self, store: CatalogStore, generation: int, state: LeaseState, *, renewed: float) -> None:
        # A renewal that fails must neither delay the next ones nor the end of the run.
        self._store = store.with_retry(min(store.retry_s, state.ttl_s / RENEWALS_PER_TTL))
        self._patient_store = store
        self.generation = generation
        self._state = state
        self._renewed = renewed
        self._lost_to: str | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew_periodically, name="catalog-lease", daemon=True)
        self.warning: str | None = None

    def check(self) -> None:
        """Check that the lease is not lost, as far as the last renewal shows. Call between pieces of work.

        Raises:
            CatalogHeld: another run has taken over the lease, or it was deleted.
        """
        if self._lost_to is not None:
            raise CatalogHeld(
                f"run {self._state.run_id} lost its lease on {self._store.uri} to {self._lost_to}",
                fix="wait for the other run to end, then submit again; what was committed is kept",
            )

    def confirm(self) -> None:
        """As `check`, but reads the store: a process that was suspended does not know yet that it has lost the lease.

        Raises:
            CatalogHeld: another run has taken over the lease, or it was deleted.
            StoreError: the store cannot be read.
        """
        if self._lost_to is None:
            self._compare(*_read_current(self._patient_store))
        self.check()

    def is_certain(self) -> bool:
        """Whether no other run can have taken over the lease. If False, the lease is lost, or could not be renewed for
        its whole time to live: start nothing new."""
        return self._lost_to is None and time.monotonic() - self._renewed <= self._state.ttl_s

    def _renew_periodically(self) -> None:
        while not self._stop.wait(self._state.ttl_s / RENEWALS_PER_TTL):
            try:
                if not self._renew():
                    return
            except StoreError:
                continue  # is_certain() becomes False if it lasts

    def _renew(self, *, released: bool = False) -> bool:
        started = time.monotonic()
        if not self._compare(*_read_current(self._store)):
            return False
        self._state = replace(self._state, renewed_at=time.time(), released=released)
        self._store.write(layout.lease_file(self.generation), self._state.to_json())
        self._renewed = started
        return True

    def _compare(self, generation: int, current: LeaseState | None) -> bool:
        """Whether the lease in force is this one; if not, record who has taken it over."""
        if current is not None and generation == self.generation and current.token == self._state.token:
            return True
        self._lost_to = f"run {current.run_id} of {current.owner}" if current else "a process that deleted it"
        return False

    def _start(self) -> None:
        self._thread.start()

    def _release(self) -> None:
        self._stop.set()
        self._thread.join()
        if self._lost_to is None:
            try:
                self._renew(released=True)
            except StoreError:
                return  # the run has ended, and its lease expires


@contextmanager
def hold_lease(
    store: CatalogStore,
    run_id: str,
    owner: str,
    ttl_s: float = 60.0,
    *,
    wait: Callable[[LeaseState], None] | None = None,
) -> Iterator[Lease]:
    """Hold the catalog's lease for one run; a background thread renews it until the block ends.

    Args:
        owner: user and machine, for the messages of other runs, such as `owner_here()`.
        ttl_s: seconds after the last renewal until the lease expires.
        wait: if given, wait for another holder instead of raising; called every few seconds with the holder's state.

    Raises:
        CatalogHeld: another run holds the lease; the message names it.
        StoreError: the store cannot be read or written.
    """
    lease = _acquire(store, run_id, owner, ttl_s, wait)
    lease._start()
    try:
        yield lease
    finally:
        lease._release()


def lease_holder(store: CatalogStore) -> LeaseState | None:
    """The state of the lease unless it was released; None without one. It may have expired: see `renewed_at`.

    Raises:
        StoreError: the store cannot be read.
    """
    _, state = _read_current(store)
    return None if state is None or state.released else state


def owner_here() -> str:
    """The current user and machine, such as "ana@gpu-7"."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # in a container the user may have no name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def _acquire(
    store: CatalogStore, run_id: str, owner: str, ttl_s: float, wait: Callable[[LeaseState], None] | None
) -> Lease:
    observer = _RenewalObserver()
    while True:
        generation, current = _read_current(store)
        if current is None:
            generation = _fence(store)
        if current is None or observer.is_free(generation, current):
            lease, current = _claim(store, generation, run_id, owner, ttl_s)
            if lease is not None:
                return lease
            if wait is None:
                raise _catalog_held(store, current)
        elif wait is not None:
            wait(current)
        elif observer.has_renewed or not current.is_expired_by_clock():
            raise _catalog_held(store, current)
        time.sleep(min(LEASE_POLL_S, current.ttl_s / RENEWALS_PER_TTL))


def _claim(store: CatalogStore, newest: int, run_id: str, owner: str, ttl_s: float) -> tuple[Lease | None, LeaseState]:
    """Try to create the generation after `newest`; returns the lease, or None and the holder's state."""
    exclusive = store.supports_create(layout.PROBES)
    started, now = time.monotonic(), time.time()
    state = LeaseState(run_id, owner, secrets.token_hex(8), acquired_at=now, renewed_at=now, ttl_s=ttl_s)
    path = layout.lease_file(newest + 1)
    store.create(path, state.to_json())
    if not exclusive:
        time.sleep(LEASE_SETTLE_S)
    # The stored object decides, not the result of `create`: a retried request is refused if its first try succeeded,
    # and a store that ignores conditions accepts every creator and keeps the last one's bytes.
    generation, current = _read_current(store)
    if generation != newest + 1 or current is None or current.token != state.token:
        return None, current or state
    for older in store.list(layout.LEASES):
        if older < path:
            store.delete(older)
    lease = Lease(store, generation, state, renewed=started)
    if not exclusive:
        lease.warning = (
            f"{store.uri} ignores conditional writes: two runs that start within {LEASE_SETTLE_S:.0f} s may "
            "not notice each other; do not start two at once"
        )
    return lease, state


class _RenewalObserver:
    """Observes another run's renewals, to distinguish a dead holder from one whose clock is wrong."""

    def __init__(self) -> None:
        self._last_seen: tuple[int, LeaseState] | None = None
        self._changed_at = 0.0
        self.has_renewed = False

    def is_free(self, generation: int, state: LeaseState) -> bool:
        """Whether the lease was released or its holder is dead.

        A holder is dead if its lease has expired by the clock and it misses one more renewal, or if it does not renew
        for the whole time to live.
        """
        if self._last_seen != (generation, state):
            self.has_renewed = self._last_seen is not None
            self._last_seen, self._changed_at = (generation, state), time.monotonic()
        elapsed_s = time.monotonic() - self._changed_at
        timeout_s = 1.5 * state.ttl_s / RENEWALS_PER_TTL if state.is_expired_by_clock() else state.ttl_s
        return state.released or elapsed_s > timeout_s


def _read_current(store: CatalogStore) -> tuple[int, LeaseState | None]:
    """The highest generation and its state; (0, None) if there is none."""
    while True:
        found = map(layout.lease_generation, store.list(layout.LEASES))
        generations = [generation for generation in found if generation is not None]
        if not generations:
            return 0, None
        path = layout.lease_file(max(generations))
        try:
            return max(generations), LeaseState.from_json(store.read(path), path=store.url(path))
        except StoreError:
            if store.exists(path):
                raise
            # The holder of a later generation has just deleted it: list again.


def _fence(store: CatalogStore) -> int:
    """The generation below which commits are refused, for a lease whose own objects are gone.

    0 if the index is damaged: `repair`, which needs the lease, gives it another fence, and nothing else can commit.
    """
    try:
        return newest_version(store).fence
    except (StoreRefused, StoreUnavailable):
        raise
    except StoreError:
        return 0


def _catalog_held(store: CatalogStore, state: LeaseState) -> CatalogHeld:
    since = utc_text(state.acquired_at)
    return CatalogHeld(
        f"catalog {store.uri} is held by run {state.run_id} of {state.owner} since {since}",
        fix="wait for that run to end, or submit with --wait, which does; a lost run's lease expires "
        f"{state.ttl_s:.0f} s after its last renewal",
    )
