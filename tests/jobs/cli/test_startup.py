"""The modules that commands load: those that train nothing load no torch, and text needs no pictures."""

from __future__ import annotations

import subprocess
import sys

import pytest

TORCH = {"torch", "diffusers", "transformers"}
PROGRAM = """
import sys
from persres.jobs.cli.app import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    assert not end.code, end.code
print("loaded", *{name.split(".")[0] for name in sys.modules})
"""


def loaded_by(*arguments: object) -> set[str]:
    """The names of all top-level modules that a command has loaded when it ends."""
    command = [sys.executable, "-c", PROGRAM, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1].split()
    assert last[0] == "loaded"
    return set(last)


@pytest.mark.parametrize(
    "arguments", [("init", "new.yaml"), ("status", "manifest.parquet"), ("gc", "manifest-catalog")]
)
def test_command_that_prints_text_loads_no_torch_and_no_pictures(arguments, demo_folder, monkeypatch):
    monkeypatch.chdir(demo_folder)
    assert not loaded_by(*arguments) & (TORCH | {"ray", "jinja2", "PIL"})


@pytest.mark.parametrize(
    "arguments",
    [("plan", "manifest.parquet"), ("submit", "manifest.parquet"), ("list", "--catalog", "manifest-catalog")],
)
def test_command_that_trains_nothing_loads_no_torch(arguments, demo_folder, monkeypatch):
    monkeypatch.chdir(demo_folder)
    assert not loaded_by(*arguments) & (TORCH | {"ray"})
