from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from persres.core.errors import ConceptError, InvalidInput, StoreError
from persres.pipeline import catalog_store
from persres.pipeline.catalog_store import CatalogStore

from .catalog_samples import memory_store


@pytest.fixture(params=["disk", "file-uri", "memory"])
def store(request, tmp_path):
    match request.param:
        case "disk":
            return CatalogStore(str(tmp_path / "catalog"))
        case "file-uri":
            return CatalogStore(f"file://{tmp_path}/catalog/")
        case _:
            return memory_store()


def test_objects_are_read_back_listed_and_deleted(store):
    assert store.list("commits/") == []
    assert not store.exists("commits/a.json")
    store.write("commits/b.json", b"old")
    store.write("commits/b.json", b"new")
    store.write("commits/deep/a.json", b"a")
    store.write("commits-of-another/c.json", b"c")
    assert store.read("commits/b.json") == b"new"
    assert store.list("commits/") == ["commits/b.json", "commits/deep/a.json"]
    assert store.read_many(store.list("commits/")) == {"commits/b.json": b"new", "commits/deep/a.json": b"a"}
    assert store.read_many([]) == {}
    assert store.exists("commits/b.json")
    store.delete("commits/b.json")
    store.delete("commits/b.json")
    assert store.list("commits") == ["commits/deep/a.json"]


def test_a_range_of_an_object_can_be_read(store):
    store.write("x/data", bytes(range(100)))
    with store.open_input("x/data") as file:
        file.seek(40)
        assert file.read(3) == bytes([40, 41, 42])


def test_an_object_can_be_created_once(store):
    assert store.create("lease/1", b"mine")
    assert not store.create("lease/1", b"yours")
    assert store.read("lease/1") == b"mine"


def test_of_many_creators_one_wins(tmp_path):
    store = CatalogStore(str(tmp_path))
    for turn in range(10):
        winners, start = [], threading.Barrier(8)

        def create(number: int, turn: int = turn, winners: list = winners, start: threading.Barrier = start) -> None:
            start.wait()
            if store.create(f"lease/{turn}", str(number).encode()):
                winners.append(number)

        threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert [store.read(f"lease/{turn}")] == [str(winner).encode() for winner in winners]


@pytest.mark.parametrize("step", ["open", "fsync", "replace"])
def test_a_write_that_breaks_leaves_what_was_there_and_no_debris(tmp_path, monkeypatch, step):
    store = CatalogStore(str(tmp_path))
    store.write("a/object", b"before")

    def fail(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        if step == "open":
            broken.setattr(catalog_store, "open", fail, raising=False)
        else:
            broken.setattr(os, step, fail)
        with pytest.raises(StoreError, match=r"cannot write .*a/object: OSError.*No space left"):
            store.write("a/object", b"after")
    assert store.read("a/object") == b"before"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["object"]


def test_a_disk_without_hard_links_still_creates_once(tmp_path, monkeypatch):
    def no_links(*_args):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", no_links)
    store = CatalogStore(str(tmp_path))
    assert store.create("lease/1", b"mine")
    assert not store.create("lease/1", b"yours")
    assert store.read("lease/1") == b"mine"


def test_a_temporary_file_of_a_crash_is_not_an_object(tmp_path):
    store = CatalogStore(str(tmp_path))
    store.write("commits/a.json", b"{}")
    Path(tmp_path, "commits", ".b.json.0123.tmp").write_bytes(b"{")
    assert store.list("commits/") == ["commits/a.json"]


def test_what_is_missing_is_named(store):
    for read in (
        lambda: store.read("x/none"),
        lambda: store.read_many(["x/none"]),
        lambda: store.open_input("x/none").__enter__(),
    ):
        with pytest.raises(StoreError, match=r"cannot read .*: FileNotFoundError.*Fix: check"):
            read()


def test_errors_of_the_reader_are_not_taken_for_the_stores(store):
    store.write("x/data", b"1")
    with pytest.raises(ConceptError), store.open_input("x/data"):
        raise ConceptError("its own", stage="load")


def test_no_secret_is_in_a_message():
    class Broken:
        def cat_file(self, path: str) -> bytes:
            raise OSError("403 for key AKIAEXAMPLE signed with s3cr3t-key and pass:word")

    options = {"key": "AKIAEXAMPLE", "client_kwargs": {"aws_secret": "s3cr3t-key"}}
    store = CatalogStore("memory://user:pass:word@bucket/catalog", None)
    store._secrets = (*store._secrets, *catalog_store._secrets_in("s3://bucket", options))
    assert store.uri == "memory://***@bucket/catalog"
    store._fs = Broken()  # type: ignore[assignment]
    with pytest.raises(StoreError) as caught:
        store.read("commits/a.json")
    for secret in ("AKIAEXAMPLE", "s3cr3t", "pass:word"):
        assert secret not in str(caught.value)
    assert "commits/a.json" in str(caught.value)
    assert caught.value.__suppress_context__


def test_an_unknown_scheme_is_the_users_to_mend():
    with pytest.raises(InvalidInput, match=r"gopher.*Fix: give a local path"):
        CatalogStore("gopher://hole/catalog")


def test_a_home_folder_is_found(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    CatalogStore("~/catalog").write("a", b"1")
    assert (tmp_path / "catalog" / "a").read_bytes() == b"1"


@pytest.mark.parametrize("path", ["/etc/passwd", "../other", "commits/../../x"])
def test_paths_stay_inside_the_catalog(store, path):
    with pytest.raises(ValueError, match="inside a catalog"):
        store.read(path)


@pytest.mark.parametrize("name", ["", "a/b", "..", "a_b", "-x", "a b"])
def test_names_of_attempts_cannot_be_mistaken(store, name):
    with pytest.raises(ValueError, match="name"):
        store.commit_record("run", "shard", name)
    with pytest.raises(ValueError, match="name"):
        store.index_file("run", name)


def test_every_attempt_of_every_run_has_its_own_files(store):
    names = {
        path(run, shard, attempt)
        for path in (store.residual_file, store.rendering_file, store.commit_record)
        for run in ("r1", "r2")
        for shard in ("s1", "s2")
        for attempt in ("001", "002")
    }
    assert len(names) == 24
