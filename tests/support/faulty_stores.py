"""Stores whose n-th operation goes wrong, as a lost connection, a full disk or a careless proxy makes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pytest

from persres.pipeline.catalog import store as catalog_store
from persres.pipeline.catalog.store import CatalogStore

Fault = Literal["before", "after", "truncated", "shortened"]
"""Nothing happened; it happened, and only the answer is lost; half of what was sent is there, and the connection is
gone; half of what was sent is there, and the store says that all is well."""

_OPERATIONS = ("cat_file", "cat", "info", "find", "rm_file", "pipe_file")


class Faults:
    """Counts the operations of one store's file system and says what goes wrong with each."""

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
    """A file system that does what another one does, apart from `faults`."""

    def __init__(self, fs: Any, faults: Faults) -> None:
        self._fs = fs
        for name in _OPERATIONS:
            setattr(self, name, faults.wrap(name, getattr(fs, name)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._fs, name)


def faulty(
    store: CatalogStore, plan: Callable[[int], Fault | None], patched: pytest.MonkeyPatch, *, patience_s: float = 0.0
) -> tuple[CatalogStore, Faults]:
    """The same catalog through faults. `patched` carries those of local disks, which are no file system object's."""
    faults = Faults(plan)
    broken = store.with_patience(patience_s)
    broken._fs = FaultyFileSystem(store._fs, faults)
    if store._local:
        for name in ("replace_file", "create_file"):
            patched.setattr(catalog_store, name, faults.wrap(name, getattr(catalog_store, name)))
    return broken, faults
