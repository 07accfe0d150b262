"""Models from a real S3 server, fetched by several processes."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from huggingface_hub import constants
from moto.core import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends

from persres.core.errors import InvalidInput, StoreError, StoreRefused
from persres.pipeline.models import remote_folder
from persres.pipeline.models.cache import ModelCache, checksums_in
from persres.pipeline.models.folder import files_of_folder
from persres.pipeline.models.resolve import resolve_model

from ...support.model_downloads import (
    checksum_list,
    client_environment,
    download_results,
    object_downloads,
    pipeline_folder,
    s3_file_system,
    scorer_folder,
    start_download,
    upload,
)
from ...support.s3_server import BUCKET, Request, S3Server, s3_server

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server() as started:
        yield started


@pytest.fixture
def s3(server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """The server, empty and without faults; this process may access it and has a cache of its own."""
    server.faults.rule = lambda request: None
    fs = s3_file_system(server)
    for path in fs.find(BUCKET):
        fs.rm_file(path)
    server.faults.requests.clear()
    monkeypatch.setattr(remote_folder.RemoteFolder.__init__, "__kwdefaults__", {"retry_s": 2.0})
    with client_environment(server, monkeypatch, tmp_path / "cache"):
        yield server


def contents(folder: str | Path) -> dict[str, bytes]:
    return {name: Path(folder, name).read_bytes() for name in files_of_folder(Path(folder)) if name != "SHA256SUMS"}


def replace_object(key: str, data: bytes | None) -> None:
    """Replace an object, or delete it with None, while the server handles a request."""
    backend = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
    if data is None:
        backend.delete_object(BUCKET, key)
    else:
        backend.put_object(BUCKET, key, data)


def test_model_has_one_revision_wherever_it_lies(s3, tmp_path):
    folder = pipeline_folder(tmp_path / "here")
    (folder / "README.md").write_text("not read")
    (folder / "v1-5.ckpt").write_bytes(b"not read either")
    (folder / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"nor this")

    local, remote = resolve_model(str(folder)), resolve_model(upload(s3, folder))
    again = resolve_model(upload(s3, folder, "elsewhere/copy") + "/")

    assert remote.revision == local.revision == again.revision
    assert remote.path == again.path and Path(remote.path).parent == tmp_path / "cache" / "models"
    read = {name for name in contents(folder) if "fp16" not in name} - {"README.md", "v1-5.ckpt"}
    assert contents(remote.path) == {name: contents(folder)[name] for name in read}
    assert resolve_model(remote.path).revision == local.revision, "SHA256SUMS is not among its files"
    assert {name for name in object_downloads(s3) if "fp16" in name or "ckpt" in name} == set()


def test_scorer_is_fetched_too(s3, tmp_path):
    folder = scorer_folder(tmp_path / "here")

    found = resolve_model(upload(s3, folder), role="scorer")

    assert found.revision == resolve_model(str(folder), role="scorer").revision
    assert contents(found.path) == contents(folder)


def test_fetched_model_is_found_by_its_listing(s3, tmp_path):
    uri = upload(s3, pipeline_folder(tmp_path / "here"))
    first = resolve_model(uri)
    before = object_downloads(s3)

    assert resolve_model(uri) == first
    assert object_downloads(s3) == before
    assert max(before.values()) == 1

    s3.faults.requests.clear()
    assert resolve_model(uri, first.revision) == first
    assert not s3.faults.requests, "a cached revision needs no request"


def test_changed_object_is_another_revision(s3, tmp_path):
    uri = upload(s3, pipeline_folder(tmp_path / "here"))
    first = resolve_model(uri)
    upload(s3, pipeline_folder(tmp_path / "changed", value=1.0))

    second = resolve_model(uri)

    assert second.revision == resolve_model(str(tmp_path / "changed")).revision != first.revision
    assert contents(first.path) == contents(tmp_path / "here")
    with pytest.raises(InvalidInput, match=rf"holds revision {second.revision} now, not sha256:0+"):
        resolve_model(uri, "sha256:" + "0" * 32)
    assert resolve_model(uri, first.revision) == first, "a cached revision is still found"


def test_model_that_changes_during_the_fetch_is_fetched_again(s3, tmp_path):
    uri = upload(s3, pipeline_folder(tmp_path / "here"))
    changed = pipeline_folder(tmp_path / "changed", value=1.0)
    changes = iter([True])

    def change(request: Request) -> None:
        if request.method == "GET" and request.path.endswith(".safetensors") and next(changes, False):
            replace_object(f"model/{WEIGHTS}", (changed / WEIGHTS).read_bytes())

    s3.faults.rule = change
    found = resolve_model(uri)

    assert contents(found.path) == contents(changed)
    assert found.revision == resolve_model(str(changed)).revision


def test_concurrent_processes_fetch_each_object_once(s3, tmp_path):
    folder = pipeline_folder(tmp_path / "here")
    uri = upload(s3, folder)

    found = download_results([start_download(uri, {}) for _ in range(4)])

    assert len(set(found)) == 1 and contents(found[0][0]) == contents(folder)
    assert object_downloads(s3) == {f"model/{name}": 1 for name in contents(folder)}


def test_killed_fetch_leaves_no_partial_model_and_is_resumed(s3, tmp_path):
    folder = pipeline_folder(tmp_path / "here")
    uri = upload(s3, folder)
    started, resume = threading.Event(), threading.Event()

    def hold(request: Request) -> None:
        if request.path.endswith(".safetensors") and request.method == "GET" and not started.is_set():
            started.set()
            resume.wait(60)

    s3.faults.rule = hold
    victim = start_download(uri, {})
    assert started.wait(60)
    waiting = start_download(uri, {})
    victim.kill()
    victim.communicate()
    resume.set()
    assert not list((tmp_path / "cache" / "models").glob("sha256-*"))
    (found,) = download_results([waiting])

    assert contents(found[0]) == contents(folder)
    downloads = object_downloads(s3)
    assert downloads.pop(f"model/{WEIGHTS}") == 2
    assert set(downloads.values()) == {1}, "complete files were kept"
    assert not list((tmp_path / "cache" / "models" / "fetching").glob("*/*"))


def test_planning_needs_no_weights_beside_a_checksum_file(s3, tmp_path):
    folder = pipeline_folder(tmp_path / "here")
    (folder / "SHA256SUMS").write_text(checksum_list(folder))
    uri = upload(s3, folder)

    planned = resolve_model(uri, weights=False)

    assert not planned.has_weights and planned.revision == resolve_model(str(folder)).revision
    assert contents(planned.path).keys() == {"model_index.json", "unet/config.json", "tokenizer/vocab.json"}
    assert f"model/{WEIGHTS}" not in object_downloads(s3)

    whole = resolve_model(uri, planned.revision)
    assert whole.has_weights and whole.revision == planned.revision
    assert contents(whole.path) == contents(folder)
    assert max(object_downloads(s3).values()) == 1
    assert resolve_model(uri, weights=False) == whole


def test_planning_fetches_everything_without_a_checksum_file(s3, tmp_path, caplog):
    folder = pipeline_folder(tmp_path / "here")
    uri = upload(s3, folder)

    planned = resolve_model(uri, weights=False)

    assert planned.has_weights and planned.revision == resolve_model(str(folder)).revision
    assert "SHA256SUMS" in caplog.text


def test_wrong_checksum_file_is_refused(s3, tmp_path):
    folder = pipeline_folder(tmp_path / "here")
    (folder / "SHA256SUMS").write_text(checksum_list(pipeline_folder(tmp_path / "other", value=1.0)))
    uri = upload(s3, folder)

    with pytest.raises(InvalidInput, match=rf"{WEIGHTS} does not match its digest in SHA256SUMS"):
        resolve_model(uri)
    assert not list((tmp_path / "cache" / "models").glob("sha256-*"))


def test_checksums_in_parses_sha256sum_output():
    digest = "0" * 64
    text = f"{digest}  ./unet/a.json\n{digest} *b c.json\r\nno digest  c\n"
    assert checksums_in(text) == {"unet/a.json": digest, "b c.json": digest}


def test_pickles_are_refused_before_weights_are_fetched(s3, tmp_path):
    uri = upload(s3, pipeline_folder(tmp_path / "here", weights="model.bin"))

    for weights in (True, False):
        with pytest.raises(InvalidInput, match=r"only as a pickle: unet/model\.bin"):
            resolve_model(uri, weights=weights)
    assert not [name for name in object_downloads(s3) if name.endswith(".bin")]


def test_folder_that_is_no_model_is_named(s3, tmp_path):
    with pytest.raises(InvalidInput, match=r"there is no s3://catalogs/nothing/model_index\.json"):
        resolve_model(f"s3://{BUCKET}/nothing")
    folder = pipeline_folder(tmp_path / "here")
    (folder / WEIGHTS).unlink()
    with pytest.raises(InvalidInput, match="no weights"):
        resolve_model(upload(s3, folder))


def test_object_that_is_listed_but_missing_is_named(s3, tmp_path):
    uri = upload(s3, pipeline_folder(tmp_path / "here"))

    def lose(request: Request) -> None:
        if request.method == "GET" and request.path.endswith("config.json"):
            replace_object("model/unet/config.json", None)

    s3.faults.rule = lose
    with pytest.raises(InvalidInput, match=r"incomplete: unet/config\.json is listed but missing"):
        resolve_model(uri)


def test_keys_outside_the_folder_are_ignored(s3, tmp_path):
    folder = pipeline_folder(tmp_path / "here")
    uri = upload(s3, folder)
    for key in ("model/unet/../../../escaped.json", "model//absolute/escaped.json", "model/unet/.hidden.json"):
        s3_file_system(s3).pipe_file(f"{BUCKET}/{key}", b"{}")

    found = resolve_model(uri)

    assert contents(found.path) == contents(folder)
    assert not list(tmp_path.rglob("*escaped*"))


def test_transient_error_during_a_fetch_is_retried(s3, tmp_path):
    folder = pipeline_folder(tmp_path / "here")
    uri = upload(s3, folder)
    faults = iter(["503", "reset", "503", "reset"])
    s3.faults.rule = lambda request: next(faults, None) if request.path.endswith(".safetensors") else None

    assert contents(resolve_model(uri).path) == contents(folder)


def test_unreachable_or_refusing_store_is_named(s3, tmp_path):
    uri = upload(s3, pipeline_folder(tmp_path / "here"))

    s3.faults.rule = lambda request: "403"
    with pytest.raises(StoreRefused, match="AWS_PROFILE") as refused:
        resolve_model(uri)
    s3.faults.rule = lambda request: "503"
    with pytest.raises(StoreError, match="can be reached") as away:
        resolve_model(uri)
    for caught in (refused, away):
        assert s3.environment["AWS_SECRET_ACCESS_KEY"] not in str(caught.value)


def test_full_disk_is_named_before_the_fetch(s3, tmp_path, monkeypatch):
    uri = upload(s3, pipeline_folder(tmp_path / "here"))
    monkeypatch.setattr(remote_folder, "_MARGIN_BYTES", 1 << 60)

    with pytest.raises(StoreRefused, match=r"no room for base_model 's3://catalogs/model'.*PERSRES_CACHE"):
        resolve_model(uri)
    assert not object_downloads(s3)


def test_unwritable_cache_is_named(s3, tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("PERSRES_CACHE", str(tmp_path / "file" / "cache"))

    with pytest.raises(StoreRefused, match=r"cannot write to the model cache .*PERSRES_CACHE"):
        resolve_model(upload(s3, pipeline_folder(tmp_path / "here")))


@pytest.mark.parametrize("damage", ["cut", "missing"])
def test_damaged_copy_is_fetched_again(s3, tmp_path, damage):
    folder = pipeline_folder(tmp_path / "here")
    uri = upload(s3, folder)
    weights = Path(resolve_model(uri).path, WEIGHTS)
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-1])
    else:
        weights.unlink()

    assert contents(resolve_model(uri).path) == contents(folder)


def test_offline_makes_no_request(s3, tmp_path, monkeypatch):
    uri = upload(s3, pipeline_folder(tmp_path / "here"))
    online = resolve_model(uri)
    s3.faults.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    assert resolve_model(uri) == resolve_model(uri, online.revision) == online
    for name, revision in ((uri, "sha256:" + "0" * 32), (f"{uri}-other", None)):
        with pytest.raises(StoreError, match=r"`persres-batch fetch --spec RUN\.YAML`"):
            resolve_model(name, revision)
    assert not s3.faults.requests


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("s3://key:secret@bucket/model", "credentials"),
        ("s3://AKIASECRET@bucket/model", "credentials"),
        ("https://host/model?sig=secret", "query"),
        ("https://host/model", "cannot be listed"),
        ("zip://x::s3://bucket/model.zip", "chain of addresses"),
        ("hf://owner/name", "Hub id alone"),
        ("nosuch://bucket/model", "fsspec package"),
    ],
)
def test_refused_addresses_show_no_secret(s3, uri, message):
    with pytest.raises(InvalidInput, match=message) as caught:
        resolve_model(uri)
    assert "secret" not in str(caught.value).lower()
    assert not s3.faults.requests


def test_revision_of_a_folder_is_a_digest(s3):
    with pytest.raises(InvalidInput, match="no revision 'main'"):
        resolve_model(f"s3://{BUCKET}/model", "main")


def test_prune_keeps_named_models_and_running_downloads(s3, tmp_path):
    first = resolve_model(upload(s3, pipeline_folder(tmp_path / "a"), "a"))
    second = resolve_model(upload(s3, pipeline_folder(tmp_path / "b", value=1.0), "b"))
    abandoned, running = (tmp_path / "cache" / "models" / "fetching" / name for name in ("0" * 32, "1" * 32))
    for folder in (abandoned, running):
        (folder / "listing").mkdir(parents=True)
        (folder / "listing" / "x.part").write_bytes(b"1234")

    with FileLock(f"{running}.lock"):
        pruned = ModelCache().prune({first.revision})

    assert Path(first.path).is_dir() and not Path(second.path).exists()
    assert running.exists() and not abandoned.exists()
    assert pruned.folders == 2 and pruned.size > 20_000
    assert resolve_model(f"s3://{BUCKET}/b") == second, "a pruned model is fetched again"
    shutil.rmtree(tmp_path / "cache")
    assert ModelCache().prune(()).folders == 0


def test_variant_is_fetched_where_there_is_no_other(s3, tmp_path):
    folder = pipeline_folder(tmp_path / "m", weights="diffusion_pytorch_model.fp16.safetensors")
    uri = upload(s3, folder)

    found = resolve_model(uri)

    assert contents(found.path) == contents(folder)
    assert found.revision == resolve_model(str(folder)).revision and resolve_model(uri.replace("s3:", "S3:")) == found
