from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants, hf_hub_download
from safetensors.numpy import save_file

from persres.core.base_model import check_parts, check_weights
from persres.core.errors import InvalidInput, StoreError
from persres.pipeline import spriteworld
from persres.pipeline.models.folder import ResolvedModel
from persres.pipeline.models.resolve import model_on_this_machine, pinned_revision, resolve_model
from persres.pipeline.planning.run_models import resolve_base_model, resolve_scorer
from persres.pipeline.spec.run_spec import RunSpec

from ...support.hub_server import Hub, hub_server
from ...support.model_downloads import download_results, pipeline_folder, scorer_folder, start_download
from ...support.tiny_models import write_tiny_pipeline


def test_revision_of_a_folder_is_its_content_wherever_it_lies(tmp_path):
    here = resolve_model(str(pipeline_folder(tmp_path / "here")))
    shutil.copytree(tmp_path / "here", tmp_path / "deep" / "there")
    os.utime(tmp_path / "deep" / "there" / "model_index.json", (1, 1))

    there = resolve_model(str(tmp_path / "deep" / "there"))

    assert here.revision == there.revision and here.revision.startswith("sha256:")
    assert there.path == str(tmp_path / "deep" / "there")


def test_revision_depends_on_every_file_that_is_read_and_no_other(tmp_path):
    folder = pipeline_folder(tmp_path / "m")
    before = resolve_model(str(folder)).revision

    others = ("README.md", ".git/config", "unet/.DS_Store", "v1-5.ckpt", "SHA256SUMS")
    weights = ("bin", "fp16.safetensors", "non_ema.safetensors", "fp16-00001-of-00002.safetensors")
    for ignored in (*others, *(f"unet/diffusion_pytorch_model.{suffix}" for suffix in weights)):
        (folder / ignored).parent.mkdir(exist_ok=True)
        (folder / ignored).write_bytes(b"other")
    assert resolve_model(str(folder)).revision == before

    save_file({"weight": np.ones(2, np.float32)}, folder / "unet" / "diffusion_pytorch_model.safetensors")
    changed = resolve_model(str(folder)).revision
    (folder / "unet" / "config.json").rename(folder / "unet" / "konfig.json")
    assert len({before, changed, resolve_model(str(folder)).revision}) == 3


def test_relative_folder_starts_at_the_working_directory(tmp_path, monkeypatch):
    pipeline_folder(tmp_path / "models" / "m")
    monkeypatch.chdir(tmp_path)

    assert resolve_model("models/m").revision == resolve_model(str(tmp_path / "models" / "m")).revision


@pytest.mark.parametrize("weights", ["diffusion_pytorch_model.bin", "model.ckpt", "model.pt", "model.pkl"])
def test_pickled_weights_are_refused(tmp_path, weights):
    folder = pipeline_folder(tmp_path / "m", weights=weights)

    with pytest.raises(InvalidInput, match=f"pickle: unet/{weights}") as caught:
        resolve_model(str(folder))
    assert "safe_serialization" in str(caught.value)

    (scorer := tmp_path / "s").mkdir()
    (scorer / "config.json").write_text("{}")
    (scorer / weights).write_bytes(b"x")
    with pytest.raises(InvalidInput, match="pickle"):
        resolve_model(str(scorer), role="scorer")


def test_incomplete_folder_names_what_is_missing(tmp_path):
    folder = pipeline_folder(tmp_path / "m")

    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(InvalidInput, match="no weights"):
        resolve_model(str(folder))
    shutil.rmtree(folder / "unet")
    with pytest.raises(InvalidInput, match="lacks the folder 'unet'"):
        resolve_model(str(folder))
    (folder / "model_index.json").write_text("{")
    with pytest.raises(InvalidInput, match="damaged"):
        resolve_model(str(folder))
    (folder / "model_index.json").unlink()
    with pytest.raises(InvalidInput, match="not a diffusers pipeline: it has no model_index"):
        resolve_model(str(folder))


@pytest.mark.parametrize("name", ["spritworld", "/no/such/folder", "./models/m", "file:///no/such/folder", "a/b/c"])
def test_name_that_is_neither_folder_nor_hub_id_is_refused(name):
    with pytest.raises(InvalidInput, match="no folder here and no Hub id") as caught:
        resolve_model(name)

    assert ("did you mean 'spriteworld'" in str(caught.value)) == (name == "spritworld")


def test_revision_is_refused_where_it_would_be_ignored(tmp_path):
    for name in ("spriteworld", str(pipeline_folder(tmp_path / "m"))):
        with pytest.raises(InvalidInput, match="has no revisions"):
            resolve_model(name, "main")


def test_spriteworld_comes_with_the_package():
    spec = RunSpec()

    assert resolve_base_model(spec).path == str(spriteworld.base_model_path())
    scorer = resolve_scorer(spec)
    assert scorer is not None and scorer.path == str(spriteworld.scorer_path())
    assert scorer.revision == resolve_base_model(spec).revision == spriteworld.REVISION


def test_resolve_base_model_and_scorer_of_a_spec(tmp_path):
    base, scorer = write_tiny_pipeline(tmp_path / "m", "sd1"), scorer_folder(tmp_path / "s")

    assert resolve_base_model(RunSpec(base_model=str(base))) == resolve_model(str(base))
    assert resolve_scorer(RunSpec(base_model=str(base))) is None
    assert resolve_scorer(RunSpec(scorer=str(scorer))) == resolve_model(str(scorer), role="scorer")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A server of the Hub's protocol; this process uses it and a cache of its own."""
    with hub_server() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        template = f"{server.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield server


def environment_of(hub: Hub, tmp_path: Path) -> dict[str, str]:
    return {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}


def names_in(folder: str) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file()}


def test_revision_of_a_hub_model_is_its_commit(hub, tmp_path):
    folder = pipeline_folder(tmp_path / "m")
    for ignored in ("v1-5.ckpt", "unet/diffusion_pytorch_model.fp16.safetensors", "unet/pytorch_model.bin"):
        (folder / ignored).write_bytes(b"not read")
    commit = hub.push("team/drawings", folder)

    for revision in (None, "main", commit):
        found = resolve_model("team/drawings", revision)
        assert (Path(found.path).name, found.revision, found.has_weights) == (commit, commit, True)
    assert names_in(found.path) == {
        "model_index.json", "tokenizer/vocab.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors"
    }  # fmt: skip
    assert set(hub.files_sent().values()) == {1}


def test_planning_fetches_small_hub_files_and_workers_the_weights_of_that_commit(hub, tmp_path):
    planned_commit = hub.push("team/drawings", pipeline_folder(tmp_path / "m"))
    planned = resolve_model("team/drawings", weights=False)
    assert (planned.revision, planned.has_weights) == (planned_commit, False)
    assert not [name for name in names_in(planned.path) if name.endswith(".safetensors")]

    hub.push("team/drawings", pipeline_folder(tmp_path / "moved", value=1.0))
    found = model_on_this_machine(planned, "team/drawings", "base_model")

    assert (found.revision, found.has_weights) == (planned_commit, True)
    assert hub.files_sent()["unet/diffusion_pytorch_model.safetensors"] == 1
    assert resolve_model("team/drawings", weights=False).revision != planned_commit


def test_concurrent_processes_fetch_each_hub_file_once(hub, tmp_path):
    commit = hub.push("team/drawings", pipeline_folder(tmp_path / "m"))

    environment = environment_of(hub, tmp_path)
    found = download_results([start_download("team/drawings", environment, revision=commit) for _ in range(3)])

    assert len(set(found)) == 1 and found[0][1] == commit
    assert set(hub.files_sent().values()) == {1}


def test_killed_hub_fetch_is_resumed(hub, tmp_path):
    folder = pipeline_folder(tmp_path / "m")
    commit = hub.push("team/drawings", folder)
    started, resume = threading.Event(), threading.Event()

    def hold(name: str) -> None:
        if name.endswith(".safetensors") and not started.is_set():
            started.set()
            resume.wait(60)

    hub.before_file = hold
    victim = start_download("team/drawings", environment_of(hub, tmp_path))
    assert started.wait(60)
    victim.kill()
    victim.communicate()
    resume.set()

    found = resolve_model("team/drawings", commit)
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert Path(found.path, weights).read_bytes() == (folder / weights).read_bytes()


def test_offline_uses_a_cached_commit_without_a_request(hub, tmp_path, monkeypatch):
    commit = hub.push("team/drawings", pipeline_folder(tmp_path / "m"))
    online = resolve_model("team/drawings")
    hub.push("team/other", pipeline_folder(tmp_path / "other"))
    resolve_model("team/other", weights=False)
    hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    assert resolve_model("team/drawings") == resolve_model("team/drawings", commit) == online
    assert not resolve_model("team/other", weights=False).has_weights
    for name in ("team/nothing", "team/other"):
        with pytest.raises(
            StoreError, match=rf"'{name}' is not in the local cache, or incomplete.*`persres-batch fetch"
        ):
            resolve_model(name)
    assert not hub.requests


def test_hub_model_with_pickles_is_refused_before_a_run(hub, tmp_path):
    hub.push("team/old", pipeline_folder(tmp_path / "m", weights="diffusion_pytorch_model.bin"))

    with pytest.raises(InvalidInput, match=r"only as a pickle: unet/diffusion_pytorch_model\.bin"):
        resolve_model("team/old", weights=False)
    assert not [name for name in hub.files_sent() if name.endswith(".bin")]


def test_variant_of_a_hub_model_is_read_where_the_repository_has_no_other(hub, tmp_path, monkeypatch):
    folder = pipeline_folder(tmp_path / "m", weights="diffusion_pytorch_model.fp16.safetensors")
    commit = hub.push("team/half", folder)
    online = resolve_model("team/half")
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in names_in(online.path)

    pipeline_folder(tmp_path / "both")
    shutil.copy(folder / "unet" / "diffusion_pytorch_model.fp16.safetensors", tmp_path / "both" / "unet")
    hub.push("team/both", tmp_path / "both")
    hf_hub_download("team/both", "unet/diffusion_pytorch_model.fp16.safetensors")
    planned = resolve_model("team/both", weights=False)
    hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    assert resolve_model("team/half", commit) == online
    with pytest.raises(StoreError, match="incomplete"):  # the repository has others, which a run online would read
        resolve_model("team/both", planned.revision)
    assert not hub.requests


def test_hub_refusals_are_named(hub, tmp_path):
    hub.push("team/gated", pipeline_folder(tmp_path / "m"))
    hub.gated.add("team/gated")

    with pytest.raises(InvalidInput, match=r"'team/gated' is gated.*hf auth login"):
        resolve_model("team/gated")
    with pytest.raises(InvalidInput, match="has no revision 'v2'"):
        resolve_model("team/gated", "v2")
    for name in ("team/nothing", "team/--"):
        for weights in (True, False):
            with pytest.raises(InvalidInput, match="not on the Hub"):
                resolve_model(name, weights=weights)


def test_unreachable_hub_is_a_store_error(hub, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")

    for weights in (True, False):
        with pytest.raises(StoreError, match="cannot be reached"):
            resolve_model("team/nothing", weights=weights)


def test_worker_accepts_only_the_planned_revision(tmp_path):
    folder = pipeline_folder(tmp_path / "m")
    planned = resolve_model(str(folder))
    assert model_on_this_machine(planned, "m", "base_model") == planned, "the name starts at another working directory"
    assert model_on_this_machine(ResolvedModel("/elsewhere", spriteworld.REVISION), "spriteworld", "scorer").path

    save_file({"weight": np.ones(2, np.float32)}, folder / "unet" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(InvalidInput, match=rf"on this worker, but {planned.revision} where the run started"):
        model_on_this_machine(planned, "m", "base_model")


def test_pinned_revision_finds_the_model_again():
    commit, digest = "0123456789abcdef0123456789abcdef01234567", "sha256:" + "0" * 32
    assert pinned_revision("team/drawings", commit) == commit
    assert pinned_revision("s3://bucket/model", digest) == digest
    assert pinned_revision("models/here", digest) is pinned_revision("spriteworld", "spriteworld-1") is None


def test_check_without_weights_reads_no_weights(tmp_path):
    folder = write_tiny_pipeline(tmp_path / "m", "sd1")
    for file in folder.rglob("*.safetensors"):
        file.unlink()

    with pytest.raises(InvalidInput, match="no weights"):
        check_weights(folder, "m")
    assert check_parts(folder, "m") == 2


def test_weights_cut_off_by_one_byte_are_refused(tmp_path):
    weights = pipeline_folder(tmp_path / "m") / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])

    with pytest.raises(InvalidInput, match=r"unet/diffusion_pytorch_model\.safetensors is damaged or cut off"):
        resolve_model(str(tmp_path / "m"))


def test_sharded_weights_must_be_complete(tmp_path):
    unet = pipeline_folder(tmp_path / "m", weights="part-1.safetensors") / "unet"
    index = {"weight_map": {"a": "part-1.safetensors", "b": "part-2.safetensors"}}
    (unet / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))

    with pytest.raises(InvalidInput, match=r"names 'part-2.safetensors', which is not there"):
        resolve_model(str(tmp_path / "m"))
    save_file({"weight": np.zeros(2, np.float32)}, unet / "part-2.safetensors")
    assert resolve_model(str(tmp_path / "m")).revision
