"""Export of a committed concept: which files are written. Their content is tested in tests/core/test_lora_export.py."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file

from persres.core.base_model import TargetLayer, load_base_model, load_target_layers
from persres.core.errors import InvalidInput
from persres.core.lora_export import DIFFUSERS_FILE, TEXTUAL_INVERSION_FILE
from persres.core.residual import initialize_residual
from persres.pipeline.catalog.index import read_committed
from persres.pipeline.export import export_concept
from persres.pipeline.shard.commit import commit_shard

from ..support.catalog_factories import memory_store, planned, rendering_rows_of, residual_row, shard_of
from ..support.tiny_models import write_tiny_pipeline


def committed_with(base_model: str, blob: bytes):
    store, concept = memory_store(), planned("mug-1")
    commit_shard(
        store,
        run_id="20260101T000000Z-aaaaaa",
        shard=shard_of(concept),
        attempt="001",
        residuals=[residual_row(concept, residual=blob, base_model=base_model)],
        renderings=rendering_rows_of(concept),
        failures=[],
        seconds={},
    )
    return store, read_committed(store)["mug-1"]


def test_exported_concept_is_three_files(tmp_path: Path):
    base_folder = write_tiny_pipeline(tmp_path / "base", "sd1")
    layers = load_target_layers(base_folder)
    base = load_base_model(base_folder, name="tiny", revision="")
    assert layers == base.target_layers
    identifier = base.text_encoder.get_input_embeddings().weight[3].clone()
    residual = initialize_residual(layers, rank_fraction=0.1, a_std=0.1, seed=0)
    residual = dataclasses.replace(residual, identifier=identifier)
    files = export_concept(*committed_with(str(base_folder), residual.to_bytes()), tmp_path / "out")
    assert [file.relative_to(tmp_path / "out").as_posix() for file in files] == [
        f"mug-1/{DIFFUSERS_FILE}",
        "mug-1/mug-1.kohya.safetensors",
        f"mug-1/{TEXTUAL_INVERSION_FILE}",
    ]
    assert len(load_file(files[0])) == 2 * len(layers) and list(load_file(files[2])) == ["<mug-1>"]
    with safe_open(files[1], "pt") as kohya:
        assert kohya.metadata()["modelspec.title"] == "mug-1"


def test_export_without_the_base_model_is_refused(tmp_path: Path):
    layers = (TargetLayer("mid.proj_out", 8, "conv"),)
    residual = initialize_residual(layers, rank_fraction=0.1, a_std=0.1, seed=0)
    store, committed = committed_with(str(tmp_path / "gone"), residual.to_bytes())
    with pytest.raises(InvalidInput, match="gone"):
        export_concept(store, committed, tmp_path / "out")


@pytest.fixture
def exportable(tmp_path: Path):
    """A store, its one concept, and the folder to export to."""
    base_folder = write_tiny_pipeline(tmp_path / "base", "sd1")
    residual = initialize_residual(load_target_layers(base_folder), rank_fraction=0.1, a_std=0.1, seed=0)
    return *committed_with(str(base_folder), residual.to_bytes()), tmp_path / "out"


def test_export_replaces_files_only_with_force(exportable):
    store, committed, out = exportable
    (first, *_) = export_concept(store, committed, out)
    exported = first.read_bytes()
    first.write_bytes(b"edited")
    with pytest.raises(InvalidInput, match=r"already exists.*--force"):
        export_concept(store, committed, out)
    assert first.read_bytes() == b"edited"
    export_concept(store, committed, out, force=True)
    assert first.read_bytes() == exported


@pytest.mark.parametrize("dangling", [False, True])
def test_export_writes_no_links_target(exportable, tmp_path: Path, dangling):
    store, committed, out = exportable
    target, link = tmp_path / "target", out / "mug-1" / DIFFUSERS_FILE
    link.parent.mkdir(parents=True)
    link.symlink_to(target)
    if not dangling:
        target.write_bytes(b"precious")
    with pytest.raises(InvalidInput, match="already exists"):
        export_concept(store, committed, out)
    export_concept(store, committed, out, force=True)
    assert not link.is_symlink() and load_file(link)
    assert not target.exists() if dangling else target.read_bytes() == b"precious"


@pytest.mark.parametrize("concept_id", ["..", "../elsewhere", "a/b", ""])
def test_export_stays_in_its_folder(exportable, concept_id):
    store, committed, out = exportable
    with pytest.raises(InvalidInput, match="no folder's name"):
        export_concept(store, dataclasses.replace(committed, concept_id=concept_id), out, force=True)
    assert not out.exists()


def test_export_into_a_linked_folder_is_refused(exportable, tmp_path: Path):
    store, committed, out = exportable
    (tmp_path / "elsewhere").mkdir()
    out.mkdir()
    (out / "mug-1").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InvalidInput, match="is a link"):
        export_concept(store, committed, out, force=True)
    assert not list((tmp_path / "elsewhere").iterdir())
