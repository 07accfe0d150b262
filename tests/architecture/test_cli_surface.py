"""The command line: its surface is a contract, and its help is instant."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from persres.jobs.cli.app import main

from .cli_surface import cli_surface

GOLDEN = Path(__file__).with_name("cli_surface.txt")
COMMANDS = [line for line in GOLDEN.read_text().splitlines() if line.isalpha()]
HEAVY = ("torch", "ray", "pyarrow", "diffusers", "transformers", "numpy", "fsspec", "pandas")


def test_surface_is_the_recorded_one():
    assert cli_surface() == GOLDEN.read_text(), (
        f"if this is meant, see the first lines of {GOLDEN.with_suffix('.py').name}"
    )


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_has_an_example(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([*command.split(), "--help"])
    assert not end.value.code
    shown = " ".join(capsys.readouterr().out.split())
    assert f"Example: persres-batch {command or 'submit'}" in shown
    assert ("Exit codes:" in shown) == (not command)


def test_help_is_instant_and_imports_nothing_heavy():
    """Counts CPU seconds, since other tests may be running on the same cores."""
    code = f"""
import sys, time
from persres.jobs.cli.app import main
for arguments in (["--help"], ["submit", "--help"]):
    try:
        main(arguments)
    except SystemExit as end:
        assert not end.code, end.code
print([name for name in {HEAVY!r} if name in sys.modules], time.process_time())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    imported, seconds = done.stdout.splitlines()[-1].rsplit(" ", 1)
    assert imported == "[]"
    assert float(seconds) < 1.5
