from __future__ import annotations

import itertools
import os
import resource
import threading
import time
import uuid
from pathlib import Path

import pytest
import s3fs
from fsspec.config import conf

from persres.core.errors import (
    ConceptError,
    InvalidInput,
    StoreError,
    StoreObjectMissing,
    StoreRefused,
    StoreUnavailable,
)
from persres.pipeline.catalog import layout
from persres.pipeline.catalog.store import CatalogStore
from persres.pipeline.storage import local_files, retry
from persres.pipeline.storage.uri import known_secrets

from ...support.catalog_factories import commit, memory_store, planned, shard_of
from ...support.s3_server import BUCKET, CREDENTIALS


def test_object_store_reads_lists_and_deletes_what_it_wrote(store):
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


@pytest.mark.parametrize("name", ["a [v1]", "a*", "a?b", "50% off", "ä ö", "[", "a{b,c}"])
def test_paths_with_glob_characters_are_names_like_any_other(tmp_path, s3, name):
    for parent in (str(tmp_path), f"s3://{BUCKET}/{uuid.uuid4().hex}"):
        other = CatalogStore(f"{parent}/{name.replace('*', 'x').replace('?', 'x')}-other")
        other.write("commits/x.json", b"another catalog's")
        store = CatalogStore(f"{parent}/{name}")
        store.write("commits/x.json", b"1")
        store.write("commits/[y]*.json", b"2")
        assert store.list("commits/") == ["commits/[y]*.json", "commits/x.json"]
        assert store.read_many(store.list("")) == {"commits/x.json": b"1", "commits/[y]*.json": b"2"}
        assert [store.read(path) for path in store.list("")] == [b"2", b"1"]
        store.delete("commits/[y]*.json")
        assert store.list("") == ["commits/x.json"]
        assert other.list("") == ["commits/x.json"]


def test_file_uri_is_a_local_path(tmp_path):
    CatalogStore(f"file://{tmp_path}/catalog/").write("commits/a.json", b"a")
    assert CatalogStore(str(tmp_path / "catalog")).list("") == ["commits/a.json"]


def test_stat_gives_size_and_age(store):
    began = time.time()
    store.write("a/one", b"123")
    store.write("b/two", b"")
    assert (store.size("a/one"), store.size("b/two"), store.size("a"), store.size("a/none")) == (3, 0, None, None)
    states = store.stat_all()
    assert {path: state.size for path, state in states.items()} == {"a/one": 3, "b/two": 0}
    assert all(began - 2 < state.modified < time.time() + 2 for state in states.values())
    assert list(store.stat_all("a/")) == list(store.stat_all("a")) == ["a/one"]


def test_open_input_reads_ranges(store):
    store.write("x/data", bytes(range(100)))
    with store.open_input("x/data") as file:
        file.seek(40)
        assert file.read(3) == bytes([40, 41, 42])
        assert file.tell() == 43
        file.seek(-2, 2)
        assert file.read() == bytes([98, 99])
        assert file.read(5) == b""


def test_create_succeeds_once(store):
    assert store.create("lease/1", b"mine")
    assert not store.create("lease/1", b"yours")
    assert store.read("lease/1") == b"mine"


def test_create_that_finds_its_own_bytes_succeeds(store):
    """As after an earlier try whose response was lost."""
    assert store.create("lease/1", b"mine")
    assert store.create("lease/1", b"mine")


@pytest.mark.parametrize("fault", ["503 after", "reset after"])
def test_create_succeeds_once_despite_lost_responses(s3, s3_store, fault):
    lost = iter([fault])
    s3.faults.rule = lambda request: next(lost, None) if request.method == "PUT" else None
    assert s3_store.create("lease/1", b"mine")
    assert not s3_store.create("lease/1", b"yours")


def test_supports_create_detects_a_store_that_ignores_conditions(store, s3):
    assert store.supports_create(layout.PROBES)
    if store.uri.startswith("s3"):
        s3.faults.ignore_conditions = True
        assert not store.supports_create(layout.PROBES)
    assert store.list("") == []


def test_create_by_many_threads_has_one_winner(tmp_path):
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
def test_failed_write_keeps_the_old_object_and_leaves_no_temporary_file(tmp_path, monkeypatch, step):
    store = CatalogStore(str(tmp_path))
    store.write("a/object", b"before")

    def fail(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        if step == "open":
            broken.setattr(local_files, "open", fail, raising=False)
        else:
            broken.setattr(os, step, fail)
        with pytest.raises(StoreRefused, match=r"cannot write .*a/object: OSError.*No space left.*Fix: make room"):
            store.write("a/object", b"after")
    assert store.read("a/object") == b"before"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["object"]


def test_create_succeeds_once_on_a_disk_without_hard_links(tmp_path, monkeypatch):
    def no_links(*_args):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", no_links)
    store = CatalogStore(str(tmp_path))
    assert store.create("lease/1", b"mine")
    assert not store.create("lease/1", b"yours")
    assert store.read("lease/1") == b"mine"


def test_temporary_file_of_a_crash_is_no_object(tmp_path):
    store = CatalogStore(str(tmp_path))
    store.write("commits/a.json", b"{}")
    Path(tmp_path, "commits", ".b.json.0123.tmp").write_bytes(b"{")
    assert store.list("commits/") == ["commits/a.json"]
    assert store.stat_all("commits", hidden=True)["commits/.b.json.0123.tmp"].size == 1


def test_write_too_large_for_the_disk_leaves_nothing(tmp_path):
    store = CatalogStore(str(tmp_path))
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(StoreRefused, match=r"File too large.*Fix: make room"):
            store.write("residuals/a", bytes(2000))
        store.write("residuals/b", bytes(500))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert [path.name for path in (tmp_path / "residuals").iterdir()] == ["b"]


def test_unreadable_folder_is_an_error_and_not_empty(tmp_path, monkeypatch):
    store = CatalogStore(str(tmp_path))
    store.write("commits/a.json", b"{}")

    def fail(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", fail)
    with pytest.raises(StoreRefused, match=r"cannot list .*commits.*Fix: give this user the right"):
        store.list("commits/")


def test_catalog_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    store = CatalogStore(str(tmp_path / "file" / "catalog"))
    for put in (store.write, store.create):
        with pytest.raises(StoreRefused, match="address"):
            put("a", b"1")


def test_missing_object_is_named(store):
    for read in (
        lambda: store.read("x/none"),
        lambda: store.read_many(["x/none"]),
        lambda: store.open_input("x/none").__enter__(),
    ):
        with pytest.raises(StoreError, match=r"cannot read .*: FileNotFoundError.*Fix: check") as caught:
            read()
        assert type(caught.value) is StoreObjectMissing, "neither unavailable nor refused"


def test_transient_errors_are_retried(s3, s3_store):
    requests = itertools.count()
    s3.faults.rule = lambda request: "reset" if next(requests) < 20 else None
    s3_store.write("a", b"1")
    assert s3_store.read("a") == b"1" and next(requests) > 20


def test_read_many_retries_only_what_is_still_missing(s3, s3_store):
    data = {f"many/{number:02}": bytes([number]) for number in range(20)}
    for path, content in data.items():
        s3_store.write(path, content)
    answered: list[str] = []

    def rule(request):
        if request.path.endswith("7") and "many/07" not in answered[:1]:
            answered.insert(0, "many/07")
            return "503"
        if request.method == "GET":
            answered.append(request.path)
        return None

    s3.faults.rule = rule
    assert s3_store.read_many(data) == data
    assert len(answered) <= len(data) + 2


@pytest.mark.parametrize(
    ("fault", "fix"), [("403", "Fix: give this user the right"), ("bucket", "Fix: create the bucket")]
)
def test_refused_operation_is_not_retried(s3, s3_store, fault, fix):
    store = s3_store.with_retry(3600)
    if fault == "bucket":
        store = CatalogStore("s3://no-such-bucket/catalog", retry_s=3600)
        assert store.list("") == [], "a missing folder is empty"
    s3.faults.rule = lambda request: "403" if fault == "403" else None
    before = len(s3.faults.requests)
    with pytest.raises(StoreRefused, match=fix):
        store.write("a", b"1")
    assert len(s3.faults.requests) == before + 1


def test_retry_ends_with_the_stores_own_error(s3, s3_store):
    s3_store.write("a", b"1")
    s3.faults.rule = lambda request: "503"
    with pytest.raises(StoreUnavailable, match=r"cannot list .*reduce your request rate.*Fix: check that the store"):
        s3_store.with_retry(0.2).list("commits")


def test_long_retry_is_logged(s3, s3_store, monkeypatch, caplog):
    monkeypatch.setattr(retry, "STORE_RETRY_LOG_S", 0.1)
    deadline = time.monotonic() + 30
    s3.faults.rule = lambda request: "503" if not caplog.text and time.monotonic() < deadline else None
    s3_store.write("a", b"1")
    assert "waiting for the store" in caplog.text and f"cannot write {s3_store.url('a')}" in caplog.text
    assert CREDENTIALS["AWS_SECRET_ACCESS_KEY"] not in caplog.text


def test_errors_of_the_reader_are_raised_unchanged(store):
    store.write("x/data", b"1")
    with pytest.raises(ConceptError), store.open_input("x/data"):
        raise ConceptError("its own", stage="load")


def test_messages_hold_no_secret(monkeypatch):
    class Broken:
        def cat_file(self, path: str) -> bytes:
            raise OSError("403 for key AKIAEXAMPLE signed with s3cr3t-key and pass:word")

    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "pass:word")
    monkeypatch.setitem(conf, "s3", {"key": "AKIAEXAMPLE", "client_kwargs": {"aws_secret": "s3cr3t-key"}})
    store = memory_store().with_retry(0)
    store._secrets = known_secrets()
    store._fs = Broken()
    with pytest.raises(StoreError) as caught:
        store.read("commits/a.json")
    for secret in ("AKIAEXAMPLE", "s3cr3t", "pass:word"):
        assert secret not in str(caught.value)
    assert "commits/a.json" in str(caught.value)
    assert caught.value.__suppress_context__


def test_named_profile_is_used_and_its_secret_appears_nowhere(s3, s3_store, monkeypatch, tmp_path, caplog):
    secret, key = CREDENTIALS["AWS_SECRET_ACCESS_KEY"], CREDENTIALS["AWS_ACCESS_KEY_ID"]
    (tmp_path / "credentials").write_text(f"[studio]\naws_access_key_id={key}\naws_secret_access_key={secret}\n")
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "studio")
    s3fs.S3FileSystem.clear_instance_cache()
    caplog.set_level(0)
    monkeypatch.setattr(retry, "STORE_RETRY_LOG_S", 0.0)

    store = CatalogStore(s3_store.uri, retry_s=0.3)
    record = commit(store, shard_of(planned("a")))
    s3.faults.rule = lambda request: "403" if request.method == "GET" else "503"
    messages = []
    for operation in (lambda: store.read("commits/a.json"), lambda: store.write("a", b"1")):
        with pytest.raises(StoreError) as caught:
            operation()
        messages.append(str(caught.value))
    ours = "\n".join(one.getMessage() for one in caplog.records if one.name.startswith("persres"))
    assert ours
    for text in (*messages, ours, record.to_json().decode()):
        assert secret not in text and key not in text


def test_missing_profile_is_named(s3, s3_store, monkeypatch):
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(StoreRefused, match=r"profile \(nobody\).*Fix: give credentials"):
        CatalogStore(s3_store.uri).read("a")


def test_unknown_scheme_is_invalid_input():
    with pytest.raises(InvalidInput, match=r"gopher.*Fix: give a local path"):
        CatalogStore("gopher://hole/catalog")


def test_home_folder_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    CatalogStore("~/catalog").write("a", b"1")
    assert (tmp_path / "catalog" / "a").read_bytes() == b"1"


@pytest.mark.parametrize("path", ["/etc/passwd", "../other", "commits/../../x"])
def test_path_outside_the_catalog_is_refused(store, path):
    with pytest.raises(ValueError, match="inside a catalog"):
        store.read(path)
