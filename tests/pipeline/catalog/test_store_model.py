"""Any operations in any order on a store that fails now and then, against a dictionary that says what it must hold."""

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
from persres.pipeline.storage import retry as store_patience

from ...support.catalog_samples import memory_store
from ...support.faulty_stores import faulty

PATHS = st.sampled_from(["commits/a.json", "commits/deep/b.json", "residuals/c.parquet", "residuals-of-another/d"])
PREFIXES = st.sampled_from(["", "commits/", "commits", "commits/deep/", "residuals/", "nothing/"])


class Store(RuleBasedStateMachine):
    """Operations meet faults at places that Hypothesis chooses, and patience mends all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.model: dict[str, bytes] = {}
        self.patched = pytest.MonkeyPatch()
        self.patched.setattr(store_patience, "_PAUSES", wait_none())
        self.folder = tempfile.mkdtemp()

    @initialize(on_disk=st.booleans(), faults=st.lists(st.sampled_from([None, None, "before", "after"]), max_size=40))
    def open(self, on_disk: bool, faults: list) -> None:
        self.quiet = CatalogStore(self.folder) if on_disk else memory_store()
        plan = dict(enumerate(faults))
        self.store, _ = faulty(self.quiet, plan.get, self.patched, patience_s=3600)

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
    def nothing_is_left_lying_about(self) -> None:
        if hasattr(self, "quiet"):
            sizes = {path: state.size for path, state in self.quiet.stat_all(hidden=True).items()}
            assert sizes == {path: len(data) for path, data in self.model.items()}

    def teardown(self) -> None:
        self.patched.undo()
        shutil.rmtree(self.folder)


TestStore = Store.TestCase
TestStore.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
