"""The run spec and the catalog that a command derives from its manifest."""

from __future__ import annotations

from pathlib import Path

import pytest

from persres.core.errors import InvalidInput
from persres.jobs.cli.targets import (
    ChosenCatalog,
    ChosenSpec,
    catalog_beside,
    catalog_of_manifest,
    choose_catalog,
    choose_spec,
    is_manifest,
)
from persres.pipeline.spec.run_spec import RunSpec

from ...support.model_downloads import client_environment, upload
from ...support.s3_server import s3_server


def write_spec(folder: Path, text: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "run.yaml").write_text(text or "{}")
    return folder / "run.yaml"


@pytest.fixture(autouse=True)
def current_folder(tmp_path, monkeypatch) -> Path:
    """An empty current folder, and `data/` in it for manifests."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    return tmp_path


# -- the run spec ------------------------------------------------------------------------------------------------------


def test_spec_given_wins_over_all_others(tmp_path):
    write_spec(tmp_path / "data", "seed: 1")
    write_spec(tmp_path, "seed: 2")
    other = tmp_path / "other.yaml"
    other.write_text("seed: 3")
    chosen = choose_spec("data/mugs.parquet", str(other))
    assert (chosen.spec.seed, chosen.path, chosen.line) == (3, str(other), None)


def test_spec_beside_the_manifest_wins_over_the_current_folder(tmp_path):
    write_spec(tmp_path / "data", "seed: 1")
    write_spec(tmp_path, "seed: 2")
    chosen = choose_spec("data/mugs.parquet", None)
    assert (chosen.spec.seed, chosen.line) == (1, "run spec: data/run.yaml (beside the manifest)")
    assert choose_spec("mugs.parquet", None).line == "run spec: run.yaml (beside the manifest)"


def test_spec_in_the_current_folder_is_used(tmp_path):
    write_spec(tmp_path, "seed: 2")
    chosen = choose_spec("data/mugs.parquet", None)
    assert (chosen.spec.seed, chosen.line) == (2, "run spec: run.yaml (in the current folder)")


def test_spec_defaults_are_named_with_the_places_searched():
    chosen = choose_spec("data/mugs.parquet", None)
    assert (chosen.spec, chosen.path) == (RunSpec(), None)
    assert chosen.line == "run spec: the default settings (not found: data/run.yaml, run.yaml)"
    assert choose_spec("gone/mugs.parquet", None).path is None


@pytest.mark.parametrize("manifest", ["file://{}/data/mugs.parquet", "{}/data/mugs.parquet", "{}/data/mugs.parquet/"])
def test_spec_beside_an_absolute_manifest_is_found(manifest, tmp_path):
    path = write_spec(tmp_path / "data", "seed: 1")
    chosen = choose_spec(manifest.format(tmp_path), None)
    assert chosen.spec.seed == 1 and chosen.path is not None and chosen.path.endswith(str(path))


@pytest.mark.parametrize("manifest", ["https://x.example.com/m.parquet?sig=hunter2", "s3://key:hunter2@b/m.parquet"])
def test_spec_is_not_looked_for_on_web_servers_or_with_credentials(manifest):
    line = choose_spec(manifest, None).line
    assert line == "run spec: the default settings (not found: run.yaml)"


def test_spec_beside_a_manifest_in_an_object_store_is_found():
    import fsspec

    files = fsspec.filesystem("memory")
    files.pipe("/bucket/run.yaml", b"seed: 5")
    try:
        chosen = choose_spec("memory://bucket/mugs.parquet", None)
        assert (chosen.spec.seed, chosen.path) == (5, "memory://bucket/run.yaml")
        assert choose_spec("memory://bucket/mugs/mugs.parquet", None).path is None
    finally:
        files.rm("/bucket", recursive=True)


def test_spec_of_an_unknown_store_is_left_to_the_manifests_error():
    assert choose_spec("nosuch://bucket/mugs.parquet", None).path is None


def test_spec_that_is_a_folder_is_refused(tmp_path):
    (tmp_path / "run.yaml").mkdir()
    with pytest.raises(InvalidInput, match=r"run spec run\.yaml: cannot be read"):
        choose_spec("data/mugs.parquet", None)


def test_spec_with_a_fault_is_refused_rather_than_skipped(tmp_path):
    write_spec(tmp_path / "data", "sede: 1")
    write_spec(tmp_path)
    with pytest.raises(InvalidInput, match=r"data/run\.yaml.*'sede'"):
        choose_spec("data/mugs.parquet", None)


def test_spec_that_may_not_be_looked_for_is_refused(monkeypatch):
    def forbidden(*arguments: object, **options: object) -> None:
        raise PermissionError("Forbidden")

    monkeypatch.setattr("fsspec.implementations.local.LocalFileSystem.info", forbidden)
    with pytest.raises(InvalidInput, match=r"data/run\.yaml.*Forbidden.*--spec"):
        choose_spec("data/mugs.parquet", None)


def test_spec_beside_an_impossible_manifest_is_refused_or_not_found(tmp_path):
    assert choose_spec("/mugs.parquet", None).path is None
    assert choose_spec("file:///mugs.parquet", None).path is None
    (tmp_path / "mug.png").write_bytes(b"")
    with pytest.raises(InvalidInput, match=r"Not a directory.*mug\.png"):
        choose_spec("mug.png/mugs.parquet", None)


def test_spec_in_a_bucket_is_found_or_refused(tmp_path, monkeypatch):
    with s3_server() as server, client_environment(server, monkeypatch, tmp_path):
        assert choose_spec("s3://catalogs/mugs.parquet", None).path is None
        assert choose_spec("s3://no-such-bucket/mugs.parquet", None).path is None
        write_spec(tmp_path / "conf", "seed: 7")
        upload(server, tmp_path / "conf", "conf")
        chosen = choose_spec("s3://catalogs/conf/mugs.parquet", None)
        assert (chosen.spec.seed, chosen.path) == (7, "s3://catalogs/conf/run.yaml")
        server.faults.rule = lambda request: "403"
        with pytest.raises(InvalidInput, match=r"s3://catalogs/conf/run\.yaml.*--spec"):
            choose_spec("s3://catalogs/conf/mugs.parquet", None)


# -- the catalog -------------------------------------------------------------------------------------------------------


def spec_with(catalog: str | None, path: str | None = "run.yaml") -> ChosenSpec:
    return ChosenSpec(RunSpec(catalog=catalog), path, "beside the manifest")


@pytest.mark.parametrize(
    ("manifest", "catalog"),
    [
        ("mugs.parquet", "mugs-catalog"),
        ("data/mugs.v2.parquet", "data/mugs.v2-catalog"),
        ("/data/MUGS.PARQUET", "/data/MUGS-catalog"),
        ("/mugs.jsonl", "/mugs-catalog"),
        ("data/mugs.parquet/", "data/mugs-catalog"),
        ("mugs", "mugs-catalog"),
        ("s3://bucket/mugs.parquet", "s3://bucket/mugs-catalog"),
        ("s3://bucket/a/mugs.jsonl/", "s3://bucket/a/mugs-catalog"),
        ("abfs://container@account.example.com/mugs.parquet", "abfs://container@account.example.com/mugs-catalog"),
        ("file:///data/mugs.parquet", "file:///data/mugs-catalog"),
    ],
)
def test_catalog_is_beside_the_manifest(manifest, catalog):
    assert catalog_beside(manifest) == catalog
    chosen = choose_catalog(manifest, None, spec_with(None))
    assert chosen.line == f"catalog: {catalog} (beside the manifest)"


@pytest.mark.parametrize(
    ("manifest", "reason"),
    [
        ("s3://key:hunter2@bucket/mugs.parquet", "credentials"),
        ("s3://hunter2@bucket/mugs.parquet", "credentials"),
        ("s3://bucket/mugs.parquet?signature=hunter2", "credentials or a query"),
        ("https://x.example.com/mugs.parquet", "takes no catalogs"),
        ("hf://datasets/team/mugs/mugs.parquet", "takes no catalogs"),
        ("simplecache::s3://bucket/mugs.parquet", "chain"),
        ("s3://bucket", "names no file"),
        ("/", "names no file"),
        ("..", "names no file"),
        ("", "names no file"),
    ],
)
def test_catalog_cannot_be_beside_every_address(manifest, reason):
    with pytest.raises(InvalidInput, match=reason) as caught:
        choose_catalog(manifest, None, spec_with(None))
    assert "--catalog" in str(caught.value) and "hunter2" not in str(caught.value)
    assert choose_catalog(manifest, "out", spec_with(None)) == ChosenCatalog("out")


@pytest.mark.parametrize(
    ("spec", "catalog", "chosen"),
    [
        ("run.yaml", "out", "out"),
        ("conf/run.yaml", "out", "conf/out"),
        ("conf/run.yaml", "../out", "out"),
        ("/conf/run.yaml", "./out/", "/conf/out"),
        ("conf/run.yaml", "/out", "/out"),
        ("conf/run.yaml", "s3://bucket/out", "s3://bucket/out"),
        ("s3://bucket/conf/run.yaml", "../out", "s3://bucket/out"),
        ("https://x.example.com/run.yaml", "s3://bucket/out", "s3://bucket/out"),
    ],
)
def test_catalog_of_the_spec_is_relative_to_it(spec, catalog, chosen):
    found = choose_catalog("data/mugs.parquet", None, spec_with(catalog, spec))
    assert found.line == f"catalog: {chosen} (`catalog` of {spec})"


def test_catalog_of_the_spec_may_start_in_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ubuntu")
    assert choose_catalog("m.parquet", None, spec_with("~/out", "conf/run.yaml")).uri == "/home/ubuntu/out"


@pytest.mark.parametrize(
    ("spec", "catalog"),
    [
        ("s3://bucket/run.yaml", "../other/out"),
        ("s3://key:hunter2@bucket/run.yaml", "out"),
        ("https://x.example.com/run.yaml?sig=hunter2", "out"),
    ],
)
def test_catalog_of_the_spec_keeps_to_its_bucket_and_out_of_credentials(spec, catalog):
    with pytest.raises(InvalidInput, match="--catalog") as caught:
        choose_catalog("mugs.parquet", None, spec_with(catalog, spec))
    assert "hunter2" not in str(caught.value)
    line = choose_catalog("mugs.parquet", None, spec_with("s3://bucket/out", spec)).line
    assert line is not None and "hunter2" not in line


def test_catalog_given_wins_and_must_not_be_empty():
    assert choose_catalog("mugs.parquet", "mine", spec_with("other")).line is None
    with pytest.raises(InvalidInput, match="address is empty"):
        choose_catalog("mugs.parquet", "", spec_with(None))


def test_catalog_given_needs_no_spec(tmp_path):
    write_spec(tmp_path, "sede: 1")
    assert catalog_of_manifest("mugs.parquet", None, "mine") == ChosenCatalog("mine")
    with pytest.raises(InvalidInput, match="sede"):
        catalog_of_manifest("mugs.parquet", None, None)


# -- arguments ---------------------------------------------------------------------------------------------------------


def test_manifest_is_known_by_its_suffix(tmp_path):
    for text in ("mugs.parquet", "a/mugs.JSONL", "s3://bucket/mugs.pq", "https://x.example.com/m.parquet?sig=1"):
        assert is_manifest(text)
    (tmp_path / "catalog.parquet").mkdir()
    for text in ("mugs-catalog", "20261122T190501Z-3fa9c1", "s3://bucket/mugs", "catalog.parquet", ""):
        assert not is_manifest(text)
