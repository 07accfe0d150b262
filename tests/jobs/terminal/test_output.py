"""What commands print reaches a terminal as text, and who reads it, in which encoding, changes no exit code."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from persres.pipeline.catalog.layout import RunPaths
from persres.pipeline.catalog.lease import hold_lease
from persres.pipeline.catalog.store import CatalogStore
from persres.pipeline.run.log import RunEvent

JOBS = Path(__file__).parents[3] / "jobs"
RUN = "20261122T190501Z-3fa9c1"
HOSTILE = "mug\x1b]8;;http://evil\x07\u202e\r\npersres-batch: all is well [link=http://evil]x[/link] nö-中 \x9b2J"
PRINTERS = {"print", "Console", "TextColumn", "echo_via_pager", "secho"}


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    """A catalog whose every text is hostile."""
    store = CatalogStore(str(tmp_path / "catalog [red]"))
    plan = {"manifest": HOSTILE, "train": ["a"], "render_only": [], "failed": [HOSTILE]}
    store.write(RunPaths(RUN).plan, json.dumps(plan).encode())
    store.write(RunPaths(RUN).failures, json.dumps({"ended_by": HOSTILE}).encode())
    events = [RunEvent(HOSTILE, "warning", "notice", RUN, HOSTILE), RunEvent("", "info", HOSTILE, RUN, "")]
    store.write(RunPaths(RUN).log, "\n".join(event.to_json() for event in events).encode())
    with hold_lease(store, HOSTILE, HOSTILE):
        pass
    return tmp_path / "catalog [red]"


COMMANDS = [
    ["status", "CATALOG"],
    ["list", "--catalog", "CATALOG"],
    ["logs", RUN, "--catalog", "CATALOG"],
    ["status", RUN, "--catalog", "CATALOG"],
    ["stop", RUN, "--catalog", "CATALOG"],
    ["gc", "CATALOG"],
    ["forget", "CATALOG", HOSTILE.replace("\n", " ")],
    ["export", "CATALOG", HOSTILE],
    ["status", HOSTILE],
]


def test_nothing_but_the_terminal_folder_prints():
    for path in JOBS.rglob("*.py"):
        if path.parent.name == "terminal":
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call):
                name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
                assert name not in PRINTERS or (name == "print" and isinstance(node.func, ast.Attribute)), (
                    f"{path}:{node.lineno} calls {name}: use jobs/terminal, which makes text safe"
                )
            assert not (isinstance(node, ast.Attribute) and node.attr in ("stdout", "stderr")), f"{path}:{node.lineno}"


@pytest.mark.parametrize("arguments", COMMANDS, ids=lambda arguments: " ".join(arguments)[:20].strip())
def test_command_prints_hostile_text_as_text(command, catalog, arguments):
    _, out, err = command(*(str(catalog) if one == "CATALOG" else one for one in arguments))
    for line in (out + err).splitlines():
        assert line.isprintable(), line
        assert not line.startswith("persres-batch: all is well")


def run(arguments: list[str], *, stdout: int, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "persres.jobs.cli", *arguments],
        env={**os.environ, **environment},
        stdout=stdout,
        stderr=subprocess.PIPE,
        timeout=120,
    )


@pytest.mark.parametrize(
    "environment",
    [{"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "latin-1"}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}],
    ids=str,
)
def test_encoding_of_standard_output_changes_no_exit_code(catalog, environment):
    done = run(["logs", RUN, "--catalog", str(catalog)], stdout=subprocess.PIPE, PYTHONUTF8="0", **environment)
    assert done.returncode == 0 and b"mug" in done.stdout and "中".encode() not in done.stdout, done.stderr
    assert run(["status", "nö-中"], stdout=subprocess.PIPE, PYTHONUTF8="0", **environment).returncode == 2


@pytest.mark.parametrize(("arguments", "code"), [(["status", "CATALOG"], 0), (["--help"], 0), (["gc", "no-中"], 2)])
def test_closed_pipe_changes_no_exit_code(catalog, arguments, code):
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = run([str(catalog) if one == "CATALOG" else one for one in arguments], stdout=writing)
    finally:
        os.close(writing)
    assert done.returncode == code and b"Traceback" not in done.stderr and b"BrokenPipe" not in done.stderr


def test_process_without_standard_output_works(catalog):
    command = [sys.executable, "-m", "persres.jobs.cli", "status", str(catalog)]
    program = f"import os; os.close(1); os.execv({sys.executable!r}, {command!r})"
    done = subprocess.run([sys.executable, "-c", program], stderr=subprocess.PIPE, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_output_that_is_lost_is_an_error(catalog):
    with open("/dev/full", "wb") as full:
        done = run(["status", str(catalog)], stdout=full.fileno())
    assert done.returncode == 1 and b"No space left" in done.stderr
