"""How the shards of one worker overlap: one is loaded while another is on the device and a third is being committed.

    load          fetch, decode, resize      at most one shard is loaded ahead of the device
    on the device train, render, score       one shard at a time, all of them in one thread
    commit        encode, PUT                one shard at a time

Everything that computes with torch happens in that one thread. Torch keeps inference mode, gradient mode, the CUDA
device and its math libraries' handles for each thread by itself, so a shard finds them as its predecessor left them and
not as they are in whatever thread happens to run it; and two shards never share the cores of a CPU worker.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from ...core.errors import PersresError, StoreError

Loaded = TypeVar("Loaded")
Results = TypeVar("Results")
Ended = TypeVar("Ended")


class WorkerSpoilt(PersresError):
    """The shard was not tried: another one raised an error here, after which this process cannot be trusted."""


class ShardStages:
    """The three places that a worker's shards pass through, in any number of threads, one thread a shard.

    After an error other than a StoreError no shard is loaded or worked on any more: the error may have spoilt the
    process (a CUDA context does not survive an illegal access), and a shard must not be blamed for what another did.
    What is past the device is still committed.
    """

    def __init__(self) -> None:
        self._room_ahead = threading.Semaphore(1)
        self._device = ThreadPoolExecutor(1, thread_name_prefix="device")
        self._committing = threading.Lock()
        self._spoilt = False

    def pass_through(
        self,
        load: Callable[[], Loaded],
        on_device: Callable[[Loaded], Results],
        commit: Callable[[Results], Ended],
    ) -> Ended:
        """Take one shard through all three stages, waiting before each for its turn.

        What `load` and `on_device` return is let go as soon as the next stage has ended or the shard has failed.

        Raises:
            WorkerSpoilt: another shard's error came first; nothing of this one is committed.
        """
        self._room_ahead.acquire()
        try:
            loaded = [self._unless_spoilt(load)]
        except BaseException:
            self._room_ahead.release()
            raise

        def turn() -> Results:
            self._room_ahead.release()  # the next shard may be loaded from now on
            return self._unless_spoilt(lambda: on_device(loaded.pop()))

        results = [self._device.submit(turn).result()]
        with self._committing:
            return self._watched(lambda: commit(results.pop()))

    def run_on_device(self, work: Callable[[], Results]) -> Results:
        """Do what belongs in the device's thread but is no shard's, such as loading the model."""
        return self._device.submit(work).result()

    def _unless_spoilt(self, work: Callable[[], Results]) -> Results:
        if self._spoilt:
            raise WorkerSpoilt("another shard raised an error on this worker", fix="let another worker do this shard")
        return self._watched(work)

    def _watched(self, work: Callable[[], Results]) -> Results:
        """`work()`, in the stage's own thread, so that the next shard to enter it knows what went wrong."""
        try:
            return work()
        except StoreError:
            raise
        except BaseException:
            self._spoilt = True
            raise
