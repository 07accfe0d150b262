"""Settings and manifests are read without torch. The commands that run without it: tests/jobs/cli/test_startup.py."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

from ..support.import_graph import ROOT, sources

HEAVY = ("torch", "diffusers", "transformers", "ray")
ENTRY_POINTS = ("pipeline/spec/run_spec.py", "pipeline/manifest/scan.py")
PROGRAM = f"""
import importlib, sys
importlib.import_module(sys.argv[1])
print(*(name for name in {HEAVY} if name in sys.modules))
"""


def defines_settings(source: str) -> bool:
    classes = (node for node in ast.walk(ast.parse((ROOT / source).read_text())) if isinstance(node, ast.ClassDef))
    return any(isinstance(base, ast.Name) and base.id == "Settings" for one in classes for base in one.bases)


@pytest.fixture(scope="module")
def loaded() -> dict[str, str]:
    """What each settings module and entry point loads of `HEAVY`, each in an interpreter of its own."""
    files = [source for source in sources() if source in ENTRY_POINTS or defines_settings(source)]
    modules = ["persres." + source.removesuffix(".py").replace("/", ".") for source in files]
    command = [sys.executable, "-c", PROGRAM]
    processes = {name: subprocess.Popen([*command, name], stdout=subprocess.PIPE, text=True) for name in modules}
    found = {name: process.communicate(timeout=120)[0].strip() for name, process in processes.items()}
    assert not [name for name, process in processes.items() if process.returncode]
    return found


def test_settings_and_manifests_load_no_torch(loaded):
    assert len(loaded) > 7
    heavy = {name: found for name, found in loaded.items() if found}
    assert not heavy, f"import these where they are used, in a function or in another module: {heavy}"
