"""The stages of a worker: one shard is loaded while another is on the device and a third is being committed.

    load        fetch, decode, resize    at most one shard is loaded ahead of the device
    on_device   train, render, score     one shard at a time, all shards in the same thread
    commit      encode, PUT              one shard at a time

All computation with torch happens in the device thread. Torch keeps inference mode, gradient mode, the current CUDA
device and the handles of its math libraries per thread, so with one thread they are the same for every shard. And on a
CPU worker, two shards never compete for its cores.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from ...core.errors import PersresError, StoreError

Loaded = TypeVar("Loaded")
Results = TypeVar("Results")
Committed = TypeVar("Committed")


class WorkerCorrupted(PersresError):
    """The shard was not executed, because another shard's error may have corrupted this worker's process."""


class ShardStages:
    """The three stages of a worker, shared by its shards, each of which has a thread of its own.

    After an error other than a StoreError, no further shard is loaded or computed: the error may have corrupted the
    process (a CUDA context does not survive an illegal access), and no shard must fail because of another one's error.
    Shards that have left the device are still committed.
    """

    def __init__(self) -> None:
        self._load_ahead = threading.Semaphore(1)
        self._device = ThreadPoolExecutor(1, thread_name_prefix="device")
        self._commit = threading.Lock()
        self._corrupted = False

    def run_shard(
        self,
        load: Callable[[], Loaded],
        on_device: Callable[[Loaded], Results],
        commit: Callable[[Results], Committed],
    ) -> Committed:
        """Execute one shard's three stages, waiting before each until it is free.

        The results of `load` and `on_device` are released as soon as the next stage has ended or the shard has failed.

        Raises:
            WorkerCorrupted: another shard raised an error before this one had left the device.
        """
        self._load_ahead.acquire()
        try:
            loaded = [self._run_unless_corrupted(load)]
        except BaseException:
            self._load_ahead.release()
            raise

        def device_stage() -> Results:
            self._load_ahead.release()  # from now on the next shard may be loaded
            return self._run_unless_corrupted(lambda: on_device(loaded.pop()))

        results = [self._device.submit(device_stage).result()]
        with self._commit:
            return self._run(lambda: commit(results.pop()))

    def run_on_device(self, work: Callable[[], Results]) -> Results:
        """Execute work that belongs to no shard, such as loading the model, in the device thread."""
        return self._device.submit(work).result()

    def _run_unless_corrupted(self, work: Callable[[], Results]) -> Results:
        if self._corrupted:
            raise WorkerCorrupted("another shard raised an error on this worker", fix="retry on another worker")
        return self._run(work)

    def _run(self, work: Callable[[], Results]) -> Results:
        """Execute a stage, and record an error before the next shard can enter the stage."""
        try:
            return work()
        except StoreError:
            raise
        except BaseException:
            self._corrupted = True
            raise
