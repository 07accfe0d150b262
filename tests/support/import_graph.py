"""The imports between the files and folders of core/, pipeline/ and jobs/, read from the sources."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[2]
FLOORS = ("core", "pipeline", "jobs")
"""From the bottom up."""


@dataclass(frozen=True, slots=True)
class Import:
    """An import statement, at any depth of a file.

    Attributes:
        source: the file that imports, such as "pipeline/run/log.py".
        module: what it imports, such as "pipeline.catalog.store" or "torch".
        relative: whether it is written with leading dots.
    """

    source: str
    line: int
    module: str
    relative: bool

    def __str__(self) -> str:
        return f"{self.source}:{self.line} imports {self.module}"


def sources(root: Path = ROOT) -> list[str]:
    """All Python files of the floors."""
    return [path.relative_to(root).as_posix() for floor in FLOORS for path in sorted((root / floor).rglob("*.py"))]


def imports(source: str, root: Path = ROOT) -> Iterator[Import]:
    """All imports of a file, also those in functions and under TYPE_CHECKING."""
    package = source.split("/")[:-1]
    for node in ast.walk(ast.parse((root / source).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (Import(source, node.lineno, alias.name, False) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            parent = ".".join((*base, *([node.module] if node.module else [])))
            names = (f"{parent}.{alias.name}" for alias in node.names)
            for module in dict.fromkeys(name if node.level and _file(name, root) else parent for name in names):
                yield Import(source, node.lineno, module, node.level > 0)


def imported_file(one: Import, root: Path = ROOT) -> str | None:
    """The file of the floors that an import loads; None: it is of a library."""
    return _file(one.module, root) if one.relative else None


def file_graph(root: Path = ROOT) -> dict[str, set[str]]:
    """Each file to the files that it loads. A module's package counts too, unless it is the file's own."""
    graph: dict[str, set[str]] = {}
    for source in sources(root):
        graph[source] = set()
        for one in imports(source, root):
            if target := imported_file(one, root):
                graph[source] |= {target, *_packages(target)} - {*_packages(source)}
    return graph


def folder(file: str) -> str:
    """The folder of a file. A file directly in pipeline/ or jobs/ counts as a folder of its own: some of these stand
    on all other folders, and some below all of them."""
    parent = file.rpartition("/")[0]
    return file if parent in FLOORS[1:] and not file.endswith("/__init__.py") else parent


def find_circle(graph: Mapping[str, set[str]]) -> list[str]:
    """A circle in a graph, from a node back to it, each importing the next; empty if there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1][::-1]
    return []


def _file(module: str, root: Path) -> str | None:
    path = module.replace(".", "/")
    return next((file for file in (f"{path}.py", f"{path}/__init__.py") if (root / file).is_file()), None)


def _packages(file: str) -> Iterator[str]:
    """The __init__.py of every package that a file is in."""
    parts = file.split("/")[:-1]
    yield from ("/".join((*parts[:depth], "__init__.py")) for depth in range(1, len(parts) + 1))
