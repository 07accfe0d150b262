"""The modules that commands load: those that train nothing load no torch, and text needs no images."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from persres.pipeline.catalog.layout import RunPaths
from persres.pipeline.catalog.store import CatalogStore
from persres.pipeline.run.log import RunLog

RUN = "20260101T000000Z-aaaaaa"
TEXT_COMMANDS = [
    ["--help"],
    ["--version"],
    ["submit", "--help"],
    ["init", "new.yaml"],
    ["schedule", "manifest.parquet", "--cron", "0 3 * * *", "--as", "crontab", "--out", "refresh.crontab"],
    ["status", "manifest.parquet"],
    ["list", "--catalog", "manifest-catalog"],
    ["logs", RUN, "--catalog", "manifest-catalog"],
    ["gc", "manifest-catalog"],
]
IDLE_COMMANDS = [["plan", "manifest.parquet"], ["submit", "manifest.parquet"]]
TORCH = {"torch", "diffusers", "transformers", "ray"}
PROGRAM = """
import json, sys
from persres.jobs.cli.app import main
heavy, found = set(sys.argv[1].split()), {}
for line in json.loads(sys.argv[2]):
    try:
        main(line)
    except SystemExit as end:
        assert not end.code, (line, end.code)
    if loaded := sorted(heavy & sys.modules.keys()):
        found[" ".join(line)] = loaded
print(json.dumps(found))
"""


def loaded_by(commands: list[list[str]], heavy: set[str]) -> dict[str, list[str]]:
    """Run command lines one after the other in a process; returns which of `heavy` are loaded after each, if any."""
    program = [sys.executable, "-c", PROGRAM, " ".join(heavy), json.dumps(commands)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_commands_that_print_text_load_no_torch_and_no_images(demo_folder, monkeypatch):
    monkeypatch.chdir(demo_folder)
    store = CatalogStore("manifest-catalog")
    store.write(RunPaths(RUN).plan, b'{"train": [], "render_only": [], "failed": []}')
    with RunLog(store, RUN) as log:
        log.emit("run_started", "run started")
    assert loaded_by(TEXT_COMMANDS, TORCH | {"jinja2", "PIL"}) == {}


@pytest.mark.parametrize("command", IDLE_COMMANDS, ids=lambda command: command[0])
def test_command_with_nothing_to_do_loads_no_torch(command, demo_folder, monkeypatch):
    monkeypatch.chdir(demo_folder)
    assert loaded_by([command], TORCH) == {}
