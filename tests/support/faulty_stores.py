"""Stores whose n-th operation fails, as with a lost connection, a full disk or a broken proxy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pytest

from persres.pipeline.catalog.store import CatalogStore
from persres.pipeline.storage import object_store

Fault = Literal["before", "after", "truncated", "shortened"]
"""before: the operation is not executed. after: it is executed, and its response is lost. truncated: half of the data
is written, and the connection breaks. shortened: half of the data is written, and the store reports success."""

_OPERATIONS = ("cat_file", "cat_ranges", "info", "find", "rm_file", "pipe_file")


class Faults:
    """Counts the operations of a store's file system, and makes those fail that `plan` names a fault for."""

    def __init__(self, plan: Callable[[int], Fault | None]) -> None:
        self.plan = plan
        self.operations: list[str] = []

    def wrap(self, name: str, operation: Callable[..., Any]) -> Callable[..., Any]:
        def tried(path: Any, *args: Any, **options: Any) -> Any:
            self.operations.append(name)
            fault = self.plan(len(self.operations))
            if fault in ("truncated", "shortened") and args:
                args = (args[0][: len(args[0]) // 2], *args[1:])
            done = None if fault == "before" else operation(path, *args, **options)
            if fault and not (fault == "shortened" and args):
                raise ConnectionResetError(104, "Connection reset by peer")
            return done

        return tried


class FaultyFileSystem:
    """Another file system with faults."""

    def __init__(self, fs: Any, faults: Faults) -> None:
        self._fs = fs
        for name in _OPERATIONS:
            setattr(self, name, faults.wrap(name, getattr(fs, name)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._fs, name)


def faulty(
    store: CatalogStore, plan: Callable[[int], Fault | None], patched: pytest.MonkeyPatch, *, retry_s: float = 0.0
) -> tuple[CatalogStore, Faults]:
    """The same catalog with faults. `patched` patches the functions that write local files."""
    faults = Faults(plan)
    broken = store.with_retry(retry_s)
    broken._fs = FaultyFileSystem(store._fs, faults)
    if store._local:
        for name in ("replace_file", "create_file"):
            patched.setattr(object_store, name, faults.wrap(name, getattr(object_store, name)))
    return broken, faults
