"""The files' rules, read from the sources: what each floor may import and how, and how a file looks."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from ..support.import_graph import FLOORS, ROOT, imports, sources

FORBIDDEN = {
    "core": {"ray", "pyarrow", "fsspec", "typer", "rich", "click"},
    "pipeline": {"ray", "typer", "rich", "click"},
    "jobs": set(),
}
MAX_LINES = 400


@pytest.fixture(params=sources())
def source(request: pytest.FixtureRequest) -> str:
    return request.param


def test_file_imports_only_what_its_floor_may(source):
    floor = source.split("/")[0]
    above = set(FLOORS[FLOORS.index(floor) + 1 :])
    wrong = [
        str(one) for one in imports(source) if one.module.split(".")[0] in (above if one.relative else FORBIDDEN[floor])
    ]
    assert not wrong, f"{floor}/ must not import these; move the code down or pass a value in: {wrong}"


def test_file_imports_floors_relatively(source):
    ours = {"persres", *FLOORS}
    wrong = [str(one) for one in imports(source) if not one.relative and one.module.split(".")[0] in ours]
    assert not wrong, f"write `from ..core.x import y`: an absolute import hides types or makes a second copy: {wrong}"


def test_file_has_a_docstring(source):
    tree = ast.parse((ROOT / source).read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), f"{source} begins without a docstring"


def test_file_is_not_too_long(source):
    count = len((ROOT / source).read_text(encoding="utf-8").splitlines())
    assert count <= MAX_LINES, f"{source} has {count} lines, more than {MAX_LINES}; find the second noun in it"


def test_file_names_say_what_is_in_them():
    vague = {"utils", "util", "helpers", "helper", "common", "misc", "manager", "base"}
    assert not [source for source in sources() if Path(source).stem in vague]
