"""Stores of every kind: a local disk, memory, and an S3 server on the loopback interface."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import s3fs

from persres.pipeline.catalog.store import CatalogStore

from ..support.catalog_samples import memory_store
from ..support.s3_server import BUCKET, S3Server, s3_server


@pytest.fixture(scope="session")
def _s3_server() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


@pytest.fixture
def s3(_s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """The server, with nothing wrong with it yet, and the way to it in the environment."""
    for name, value in _s3_server.environment.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    yield _s3_server
    _s3_server.faults.rule = lambda request: None
    _s3_server.faults.ignore_conditions = False
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def s3_store(s3: S3Server) -> CatalogStore:
    """An empty catalog on the server."""
    return CatalogStore(f"s3://{BUCKET}/{uuid.uuid4().hex}")


@pytest.fixture(params=["disk", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> CatalogStore:
    """An empty catalog on a store of each kind."""
    match request.param:
        case "disk":
            return CatalogStore(str(tmp_path / "catalog"))
        case "s3":
            return request.getfixturevalue("s3_store")
        case _:
            return memory_store()
