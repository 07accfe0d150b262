"""The pack size of a catalog: measured once, then read by all workers."""

from __future__ import annotations

from pathlib import Path

import pytest

from persres.core.base_model import BaseModel, load_base_model
from persres.core.errors import StoreError
from persres.core.training.settings import TrainingSettings
from persres.pipeline.catalog import layout
from persres.pipeline.catalog.store import CatalogStore
from persres.pipeline.models.names import SPRITEWORLD
from persres.pipeline.models.resolve import resolve_model
from persres.pipeline.planning.fingerprint import digest_of
from persres.pipeline.shard.pack_size import device_kind, resolve_pack_size

AUTO = TrainingSettings(batch_size=1)


@pytest.fixture(scope="module")
def base() -> BaseModel:
    found = resolve_model(SPRITEWORLD, None, role="base_model")
    return load_base_model(found.path, name=SPRITEWORLD, revision=found.revision)


@pytest.fixture
def store(tmp_path: Path) -> CatalogStore:
    return CatalogStore(str(tmp_path))


def test_pack_size_of_the_spec_is_used(store: CatalogStore, base: BaseModel):
    assert resolve_pack_size(store, base, TrainingSettings(pack_size=7)) == 7
    assert store.list("pack_sizes/") == []


def test_first_worker_measures_and_others_read(store: CatalogStore, base: BaseModel):
    measured = resolve_pack_size(store, base, AUTO)
    (path,) = store.list("pack_sizes/")
    assert measured in (1, 2, 4, 8, 16, 32, 64, 128, 256)
    store.write(path, b'{"pack_size": 5}')
    assert resolve_pack_size(store, base, AUTO) == 5


def test_pack_is_not_larger_than_a_shard(store: CatalogStore, base: BaseModel):
    assert resolve_pack_size(store, base, AUTO, shard_size=2) in (1, 2)
    assert resolve_pack_size(store, base, AUTO, shard_size=1) == 1
    assert len(store.list("pack_sizes/")) == 2


def test_pack_size_that_an_earlier_version_measured_is_used(store: CatalogStore, base: BaseModel):
    """Its file is named after the same digest, without a size of shards."""
    training = {"batch_size": 1, "rank_fraction": 0.05, "train_identifier": False, "gradient_checkpointing": False}
    found = {"device": device_kind(base), "base": base.revision, "dtype": "torch.float32", "training": training}
    store.write(layout.pack_size_file(digest_of(found)), b'{"pack_size": 16}')
    assert resolve_pack_size(store, base, AUTO, shard_size=32) == 16
    assert resolve_pack_size(store, base, AUTO, shard_size=6) == 6


def test_settings_that_affect_memory_are_measured_separately(store: CatalogStore, base: BaseModel):
    resolve_pack_size(store, base, AUTO)
    resolve_pack_size(store, base, AUTO.model_copy(update={"gradient_checkpointing": True}))
    resolve_pack_size(store, base, AUTO.model_copy(update={"learning_rate": 0.5}))  # changes neither memory nor speed
    assert len(store.list("pack_sizes/")) == 2


def test_damaged_file_is_named(store: CatalogStore, base: BaseModel):
    resolve_pack_size(store, base, AUTO)
    (path,) = store.list("pack_sizes/")
    store.write(path, b"{}")
    with pytest.raises(StoreError, match=r"pack_sizes/.* is damaged"):
        resolve_pack_size(store, base, AUTO)
