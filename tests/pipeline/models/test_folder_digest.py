from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import platformdirs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from persres.pipeline.models import folder_digest as module
from persres.pipeline.models.folder_digest import folder_digest

YESTERDAY = 1_700_000_000


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda *_, **__: tmp_path / "cache")
    return tmp_path / "cache" / "folder-digests"


@pytest.fixture
def hashed(monkeypatch) -> list[str]:
    """The names of hashed files."""
    names: list[str] = []
    real = module._file_digest

    def counted(path: Path) -> str:
        names.append(path.name)
        return real(path)

    monkeypatch.setattr(module, "_file_digest", counted)
    return names


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Two small files, cached at once: the time of an entry's last change cannot be set back."""
    monkeypatch.setattr(module, "_MIN_CACHED_BYTES", 1)
    monkeypatch.setattr(module, "FILE_SETTLED_S", -60.0)
    folder = tmp_path / "model"
    (folder / "unet").mkdir(parents=True)
    for name in ("model_index.json", "unet/weights.safetensors"):
        (folder / name).write_bytes(name.encode())
        os.utime(folder / name, (YESTERDAY, YESTERDAY))
    return folder


def digest(folder: Path) -> str:
    return folder_digest(folder, sorted(path for path in folder.rglob("*") if path.is_file()))


def test_unchanged_folder_is_hashed_once(folder, cache, hashed):
    first = digest(folder)
    assert sorted(hashed) == ["model_index.json", "weights.safetensors"]
    hashed.clear()
    assert digest(folder) == first and not hashed


@pytest.mark.parametrize(
    "change", ["bytes", "bytes at the old time", "longer", "renamed", "added", "removed", "swapped"]
)
def test_any_change_changes_the_folder_digest(folder, cache, hashed, change):
    first, weights = digest(folder), folder / "unet" / "weights.safetensors"
    match change:
        case "bytes":
            weights.write_bytes(weights.read_bytes()[::-1])
        case "bytes at the old time":
            weights.write_bytes(weights.read_bytes()[::-1])
            os.utime(weights, (YESTERDAY, YESTERDAY))
        case "longer":
            weights.write_bytes(weights.read_bytes() + b"!")
        case "renamed":
            weights.rename(weights.with_name("other.safetensors"))
        case "added":
            (folder / "new.json").write_bytes(b"{}")
        case "removed":
            weights.unlink()
        case "swapped":
            other = folder / "model_index.json"
            other.rename(folder / "x")
            weights.rename(other)
            (folder / "x").rename(weights)
    assert digest(folder) != first


def test_small_folder_is_hashed_every_time_and_not_cached(folder, cache, hashed, monkeypatch):
    monkeypatch.setattr(module, "_MIN_CACHED_BYTES", 1000)
    assert digest(folder) == digest(folder)
    assert len(hashed) == 4 and not cache.exists()


def test_recently_changed_file_is_not_cached(folder, cache, hashed, monkeypatch):
    monkeypatch.setattr(module, "FILE_SETTLED_S", 3.0)
    digest(folder)
    hashed.clear()
    digest(folder)
    assert hashed


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"[]", b"null", b"\xff", b'{"folder": 1}', b'{"digest": "sha256:0"}', b"[" * 100_000]
)
def test_damaged_cache_entry_is_ignored_and_rewritten(folder, cache, hashed, damage):
    first = digest(folder)
    [entry] = cache.iterdir()
    entry.write_bytes(damage)
    assert digest(folder) == first
    hashed.clear()
    assert digest(folder) == first and not hashed


@given(
    st.sampled_from(["folder", "files", "digest"]), st.none() | st.integers() | st.text() | st.just({}) | st.just([])
)
def test_cache_entry_of_another_folder_is_ignored(tmp_path_factory, key, value):
    folder = tmp_path_factory.mktemp("model")
    (folder / "weights").write_bytes(b"weights")
    files = [folder / "weights"]
    states, entry = module._file_states(folder, files), folder.with_suffix(".json")
    cached = {"folder": str(folder.resolve()), "files": states, "digest": module._hash_files(folder, files)}
    entry.write_text(json.dumps(cached))
    assert module._read_entry(entry, folder, states) == cached["digest"]
    entry.write_text(json.dumps(cached | {key: value}))
    assert module._read_entry(entry, folder, states) is None


def test_folder_digest_works_without_a_cache_folder(folder, tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda *_, **__: tmp_path / "file")
    assert digest(folder) == digest(folder)


def test_concurrent_digests_agree_and_leave_one_cache_entry(folder, cache, hashed):
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(digest(folder))) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 16 and len(set(found)) == 1
    assert [path.suffix for path in cache.iterdir()] == [".json"]
    hashed.clear()
    assert digest(folder) == found[0] and not hashed
