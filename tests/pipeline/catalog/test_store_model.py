"""Any sequence of operations on a store with transient errors, against a dictionary as its model."""

from __future__ import annotations

import shutil
import tempfile

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from tenacity import wait_none

from persres.core.errors import StoreError
from persres.pipeline.catalog.store import CatalogStore
from persres.pipeline.storage import retry

from ...support.catalog_factories import memory_store
from ...support.faulty_stores import faulty

PATHS = st.sampled_from(["commits/a.json", "commits/deep/b.json", "residuals/c.parquet", "residuals-of-another/d"])
PREFIXES = st.sampled_from(["", "commits/", "commits", "commits/deep/", "residuals/", "nothing/"])


class Store(RuleBasedStateMachine):
    """Operations fail where Hypothesis chooses; retries succeed."""

    def __init__(self) -> None:
        super().__init__()
        self.model: dict[str, bytes] = {}
        self.patched = pytest.MonkeyPatch()
        self.patched.setattr(retry, "_BACKOFF", wait_none())
        self.folder = tempfile.mkdtemp()

    @initialize(on_disk=st.booleans(), faults=st.lists(st.sampled_from([None, None, "before", "after"]), max_size=40))
    def open(self, on_disk: bool, faults: list) -> None:
        self.faultless = CatalogStore(self.folder) if on_disk else memory_store()
        plan = dict(enumerate(faults))
        self.store, _ = faulty(self.faultless, plan.get, self.patched, retry_s=3600)

    @rule(path=PATHS, data=st.binary(max_size=8))
    def write(self, path: str, data: bytes) -> None:
        self.store.write(path, data)
        self.model[path] = data

    @rule(path=PATHS, data=st.binary(max_size=8))
    def create(self, path: str, data: bytes) -> None:
        created = self.store.create(path, data)
        assert created == (self.model.setdefault(path, data) == data)

    @rule(path=PATHS)
    def delete(self, path: str) -> None:
        self.store.delete(path)
        self.model.pop(path, None)

    @rule(path=PATHS)
    def read(self, path: str) -> None:
        assert self.store.exists(path) == (path in self.model)
        assert self.store.size(path) == (len(self.model[path]) if path in self.model else None)
        if path in self.model:
            assert self.store.read(path) == self.model[path]
        else:
            with pytest.raises(StoreError, match="FileNotFoundError"):
                self.store.read(path)

    @rule(path=PATHS, start=st.integers(0, 9), size=st.integers(0, 9))
    def read_a_part(self, path: str, start: int, size: int) -> None:
        if path in self.model:
            with self.store.open_input(path) as file:
                file.seek(start)
                assert file.read(size) == self.model[path][start : start + size]

    @rule(prefix=PREFIXES)
    def list_and_read_all(self, prefix: str) -> None:
        folder = f"{prefix.rstrip('/')}/" if prefix else ""
        expected = {path: data for path, data in sorted(self.model.items()) if path.startswith(folder)}
        assert self.store.list(prefix) == list(expected)
        assert self.store.read_many(expected) == expected

    @invariant()
    def store_holds_exactly_the_model(self) -> None:
        if hasattr(self, "faultless"):
            sizes = {path: state.size for path, state in self.faultless.stat_all(hidden=True).items()}
            assert sizes == {path: len(data) for path, data in self.model.items()}

    def teardown(self) -> None:
        self.patched.undo()
        shutil.rmtree(self.folder)


TestStore = Store.TestCase
TestStore.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
