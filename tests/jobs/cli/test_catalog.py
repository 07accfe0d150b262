"""The commands `status` of a catalog, `report` and `export`."""

from __future__ import annotations

import json

import pytest

from persres.pipeline.catalog.lease import hold_lease
from persres.pipeline.catalog.store import CatalogStore


def test_status_of_a_run_that_has_just_started(command, tmp_path):
    with hold_lease(CatalogStore(str(tmp_path)), "run-9", "ana@here"):
        code, out, _ = command("status", tmp_path)
        assert code == 0 and "0 concepts committed, 0 runs" in out and "held by run run-9 of ana@here" in out
    assert "held by nobody" in command("status", tmp_path)[1]
    assert json.loads(command("status", tmp_path, "--json")[1])["concepts"] == 0
    assert command("status", "--catalog", tmp_path)[0] == 0


READING_COMMANDS = [
    ["status"], ["report"], ["export", "a"], ["gc"], ["gc", "--delete"], ["verify"], ["forget", "a"],
    ["forget", "a", "--dry-run"], ["list", "--catalog"], ["logs", "20261122T190501Z-3fa9c1", "--catalog"],
    ["stop", "20261122T190501Z-3fa9c1", "--catalog"], ["status", "20261122T190501Z-3fa9c1", "--catalog"],
]  # fmt: skip


@pytest.mark.parametrize("arguments", READING_COMMANDS, ids=" ".join)
def test_command_refuses_what_is_no_catalog_and_names_the_one_below(command, demo_folder, monkeypatch, arguments):
    monkeypatch.chdir(demo_folder)
    (demo_folder / "pictures").mkdir()
    (demo_folder / "pictures/a.png").write_bytes(b"no picture")

    def run(address: str) -> tuple[int, str, str]:
        at = 1 if arguments[-1] != "--catalog" else len(arguments)
        return command(*arguments[:at], address, *arguments[at:])

    for address in ("pictures", "not/there", "manifest.parquet/x", "pictures/a.png"):
        code, out, err = run(address)
        assert (code, out) == (2, "") and f"there is no catalog at {address}. Fix: check the path" in err
    for address in (".", ".."):
        code, out, err = run(address)
        assert (code, out) == (2, "") and "give the catalog below it: " in err and "manifest-catalog" in err
    code, out, err = run("manifest-catalog/commits")
    assert (code, out) == (2, "") and "give the catalog that it lies in: manifest-catalog" in err
    for address in ("", " "):
        code, out, err = run(address)
        assert (code, out) == (2, "") and "the catalog's address is empty" in err
    assert not (demo_folder / "not").exists() and sorted(path.name for path in demo_folder.iterdir()) == [
        "manifest-catalog", "manifest.parquet", "pictures", "references", "run.yaml"
    ]  # fmt: skip


def test_status_of_a_manifest_is_its_catalogs(command, demo_folder, monkeypatch):
    monkeypatch.chdir(demo_folder)
    code, out, err = command("status", "manifest.parquet")
    assert code == 0 and "manifest-catalog: 2 concepts committed" in out
    assert err == "catalog: manifest-catalog (beside the manifest)\n"
    (demo_folder / "manifest-catalog").rename(demo_folder / "elsewhere")
    code, _, err = command("status", "manifest.parquet")
    assert code == 2 and "there is no catalog at manifest-catalog (beside the manifest)" in err
    assert "2 concepts" in command("status", "manifest.parquet", "--catalog", "elsewhere")[1]
    (demo_folder / "other.yaml").write_text("catalog: elsewhere\n")
    assert "2 concepts" in command("status", "manifest.parquet", "--spec", "other.yaml")[1]


def test_status_without_an_argument_teaches(command):
    code, out, err = command("status")
    assert (code, out) == (2, "")
    assert "`status` needs a catalog, a manifest or a run's id" in err and "persres-batch status mugs.parquet" in err
    assert command("status", "--address", "http://127.0.0.1:1")[0] == 2


def test_status_refuses_options_of_another_subject(command, tmp_path):
    code, _, err = command("status", tmp_path, "--spec", "run.yaml")
    assert code == 2 and "--spec is for a manifest" in err
    code, _, err = command("status", "mugs.parquet", "--address", "http://127.0.0.1:1")
    assert code == 2 and "--address is for a run's id" in err


def test_status_reports_a_damaged_record(command, tmp_path):
    CatalogStore(str(tmp_path)).write("commits/20261122T190501Z-3fa9c1_train-1_001.json", b"{}")
    code, _, err = command("status", tmp_path)
    assert code == 1 and "damaged" in err and "Fix:" in err


def test_report_of_a_manifest_is_its_catalogs(command, demo_folder, tmp_path):
    code, out, err = command("report", demo_folder / "manifest.parquet", "--out", tmp_path / "page.html")
    assert code == 0 and out.endswith("2 concepts in the catalog\n") and "manifest-catalog (beside" in err
    page = (tmp_path / "page.html").read_text()
    assert command("report", demo_folder / "manifest-catalog", "--out", tmp_path / "page.html")[0] == 0
    assert (tmp_path / "page.html").read_text() == page


def test_report_of_no_catalog_is_invalid_input(command, tmp_path):
    for subject in (tmp_path / "nothing", tmp_path / "nothing.parquet"):
        code, _, err = command("report", subject, "--out", tmp_path / "report.html")
        assert code == 2 and "there is no catalog" in err and not (tmp_path / "report.html").exists()
    code, _, err = command("report", tmp_path, "--catalog", tmp_path)
    assert code == 2 and "--catalog is for a manifest" in err


def test_export_names_the_concepts_it_does_not_find(command, demo_folder):
    code, _, error = command("export", demo_folder / "manifest-catalog", "mug-1", "mug-2")
    assert code == 2
    assert "mug-1, mug-2" in error
