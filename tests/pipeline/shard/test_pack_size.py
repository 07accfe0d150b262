"""One pack size for all workers: measured once, then read."""

from __future__ import annotations

from pathlib import Path

import pytest

from persres.core.base_model import BaseModel, load_base_model
from persres.core.errors import StoreError
from persres.core.training.settings import TrainingSettings
from persres.pipeline.catalog.store import CatalogStore
from persres.pipeline.models.names import SPRITEWORLD
from persres.pipeline.models.resolve import resolve_model
from persres.pipeline.shard.pack_size import agreed_pack_size

AUTO = TrainingSettings(batch_size=1)


@pytest.fixture(scope="module")
def base() -> BaseModel:
    found = resolve_model(SPRITEWORLD, None, role="base_model")
    return load_base_model(found.path, name=SPRITEWORLD, revision=found.revision)


@pytest.fixture
def store(tmp_path: Path) -> CatalogStore:
    return CatalogStore(str(tmp_path))


def test_a_number_in_the_spec_is_the_answer(store: CatalogStore, base: BaseModel):
    assert agreed_pack_size(store, base, TrainingSettings(pack_size=7)) == 7
    assert store.list("pack_sizes/") == []


def test_the_first_worker_measures_and_the_others_read(store: CatalogStore, base: BaseModel):
    measured = agreed_pack_size(store, base, AUTO)
    (path,) = store.list("pack_sizes/")
    assert measured in (1, 2, 4, 8, 16, 32, 64, 128, 256)
    store.write(path, b'{"pack_size": 5}')
    assert agreed_pack_size(store, base, AUTO) == 5


def test_other_settings_are_measured_apart(store: CatalogStore, base: BaseModel):
    agreed_pack_size(store, base, AUTO)
    agreed_pack_size(store, base, AUTO.model_copy(update={"gradient_checkpointing": True}))
    agreed_pack_size(store, base, AUTO.model_copy(update={"learning_rate": 0.5}))  # changes neither memory nor speed
    assert len(store.list("pack_sizes/")) == 2


def test_a_damaged_record_is_named(store: CatalogStore, base: BaseModel):
    agreed_pack_size(store, base, AUTO)
    (path,) = store.list("pack_sizes/")
    store.write(path, b"{}")
    with pytest.raises(StoreError, match=r"pack_sizes/.* is damaged"):
        agreed_pack_size(store, base, AUTO)
