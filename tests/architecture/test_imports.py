"""The floors' import rules, read from the source: what each may import, and how."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FLOORS = ("core", "pipeline", "jobs")  # each may import those before it
FORBIDDEN = {
    "core": {"ray", "pyarrow", "fsspec", "typer", "rich", "click"},
    "pipeline": {"ray", "typer", "rich", "click"},
    "jobs": set(),
}
SOURCES = [path for floor in FLOORS for path in sorted((ROOT / floor).rglob("*.py"))]
MAX_LINES = 450


@pytest.fixture(params=SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def source(request) -> Path:
    return request.param


def imports(path: Path) -> Iterator[tuple[int, str, bool]]:
    """(line, module, relative?) of every import, at any depth of the file; relative ones resolved to floor.module."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, False) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if not node.level:
                yield node.lineno, node.module or "", False
                continue
            base = package[: len(package) - node.level + 1]
            if node.module:
                yield node.lineno, ".".join((*base, node.module)), True
            else:
                yield from ((node.lineno, ".".join((*base, alias.name)), True) for alias in node.names)


def test_imports_only_what_its_floor_may(source):
    floor = source.relative_to(ROOT).parts[0]
    above = set(FLOORS[FLOORS.index(floor) + 1 :])
    wrong = [
        f"{source.relative_to(ROOT)}:{line} imports {module}"
        for line, module, relative in imports(source)
        if module.split(".")[0] in (above if relative else FORBIDDEN[floor])
    ]
    assert not wrong, f"{floor}/ must not import these; move the code down or pass a value in: {wrong}"


def test_imports_floors_relatively(source):
    wrong = [
        f"{source.relative_to(ROOT)}:{line} imports {module}"
        for line, module, relative in imports(source)
        if not relative and module.split(".")[0] in {"persres", *FLOORS}
    ]
    assert not wrong, f"write `from ..core.x import y`: an absolute import hides types or makes a second copy: {wrong}"


def test_has_a_docstring_that_says_what_it_is(source):
    tree = ast.parse(source.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), f"{source.relative_to(ROOT)} begins without a docstring"


def test_fits_in_a_room(source):
    count = len(source.read_text(encoding="utf-8").splitlines())
    assert count <= MAX_LINES, f"{source.relative_to(ROOT)} has {count} lines; find the second noun in it"


def test_no_file_is_named_after_nothing():
    vague = {"utils", "util", "helpers", "helper", "common", "misc", "manager", "base"}
    assert not [path for path in SOURCES if path.stem in vague]
