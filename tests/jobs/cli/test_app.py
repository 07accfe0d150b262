"""The command line as a whole: versions, completion, and how errors are printed."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version

import pytest

from persres.core.exit_codes import ExitCode
from persres.jobs.cli.app import main
from persres.pipeline.catalog.store import CatalogStore


def test_version_lists_the_package_and_its_libraries(command):
    code, out, _ = command("--version")
    assert code == 0
    assert out.splitlines() == [f"{name} {version(name)}" for name in ("persres-batch", "torch", "ray", "diffusers")]


def test_help_lists_every_exit_code_with_its_meaning(command):
    shown = " ".join(command("--help")[1].split())
    for code in ExitCode:
        assert f"{code.value} {code.meaning}" in shown


def test_completion_offers_commands():
    environment = {
        **os.environ,
        "_PERSRES_BATCH_COMPLETE": "complete_bash",
        "COMP_WORDS": "persres-batch su",
        "COMP_CWORD": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "persres.jobs.cli"], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split() == ["submit"], done.stderr


def test_unforeseen_error_is_one_line_and_a_hint(command, tmp_path, monkeypatch):
    def broken(store):
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("persres.pipeline.run.catalog_status.catalog_status", broken)
    CatalogStore(str(tmp_path)).write("lease/00000001.json", b"{}")
    code, _, err = command("status", tmp_path)
    assert code == 1
    assert err.splitlines()[0] == "persres-batch: ZeroDivisionError: division by zero" and "--debug" in err
    with pytest.raises(ZeroDivisionError):
        main(["--debug", "status", str(tmp_path)])


def test_unknown_option_is_invalid_input(command):
    code, _, err = command("status", "x", "--jsno")
    assert code == 2 and "--jsno" in err
