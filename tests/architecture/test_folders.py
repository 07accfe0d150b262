"""The folders' rules, read from the sources: how large each may be, which may import which, and no circles."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from ..support.import_graph import Import, file_graph, find_circle, folder, imported_file, imports, sources

MAX_MODULES = 18

ALLOWED = {
    "core": "core/weights",
    "core/scoring": "core/weights",
    "pipeline/catalog": "pipeline/storage",
    "pipeline/manifest": "pipeline/storage",
    "pipeline/models": "pipeline/storage pipeline/spriteworld core/weights",
    "pipeline/references": "pipeline/storage pipeline/manifest core/images",
    "pipeline/spec": (
        "pipeline/storage pipeline/manifest pipeline/models pipeline/references core/sampling core/scoring "
        "core/training"
    ),
    "pipeline/planning": (
        "pipeline/storage pipeline/catalog pipeline/manifest pipeline/models pipeline/references pipeline/spec "
        "core/scoring"
    ),
    "pipeline/shard": (
        "pipeline/storage pipeline/catalog pipeline/models pipeline/references pipeline/spec pipeline/planning "
        "core/sampling core/scoring core/training"
    ),
    "pipeline/personalize_shard.py": (
        "pipeline/catalog pipeline/spec pipeline/planning pipeline/shard core/sampling core/scoring core/training"
    ),
    "pipeline/run": (
        "pipeline/storage pipeline/catalog pipeline/manifest pipeline/spec pipeline/planning pipeline/shard core/images"
    ),
    "pipeline/maintenance": "pipeline/storage pipeline/catalog pipeline/shard core/images",
    "pipeline/export.py": "pipeline/storage pipeline/catalog pipeline/models",
    "pipeline/spriteworld/training": (
        "pipeline/spriteworld pipeline/catalog pipeline/manifest core/images core/scoring"
    ),
    "pipeline/benchmark": "pipeline/spriteworld pipeline/models pipeline/spec core/sampling core/training",
    "jobs/format.py": "pipeline/planning pipeline/run",
    "jobs/cluster": "pipeline/storage pipeline/catalog pipeline/spec pipeline/run jobs/terminal",
    "jobs/schedule": "pipeline/storage pipeline/spec jobs/cluster",
    "jobs/driver": (
        "pipeline/catalog pipeline/models pipeline/spec pipeline/planning pipeline/shard "
        "pipeline/personalize_shard.py jobs/cluster"
    ),
    "jobs/observe": (
        "pipeline/catalog pipeline/models pipeline/spec pipeline/planning pipeline/shard pipeline/run jobs/driver "
        "jobs/terminal"
    ),
    "jobs/submit.py": (
        "pipeline/storage pipeline/catalog pipeline/spec pipeline/planning pipeline/run pipeline/maintenance "
        "jobs/cluster jobs/driver jobs/observe jobs/terminal"
    ),
    "jobs/cli": (
        "pipeline/storage pipeline/catalog pipeline/manifest pipeline/models pipeline/spec pipeline/planning "
        "pipeline/run pipeline/maintenance pipeline/export.py pipeline/spriteworld "
        "pipeline/spriteworld/training pipeline/benchmark jobs/format.py jobs/cluster jobs/observe "
        "jobs/schedule jobs/submit.py jobs/terminal"
    ),
}
"""What each folder may import beside core. A file directly in pipeline/ or jobs/ counts as a folder of its own."""


def arrows() -> list[tuple[str, str, Import]]:
    """(from, to, import) of every import of another folder of ours."""
    found = [(one, imported_file(one)) for source in sources() for one in imports(source)]
    pairs = [(folder(one.source), folder(file), one) for one, file in found if file]
    return [(source, target, one) for source, target, one in pairs if source != target]


def test_files_import_each_other_in_no_circle():
    circle = find_circle(file_graph())
    assert not circle, (
        f"files import each other in a circle: {' -> '.join(circle)}. Move what two of them share to another file. "
        "Imports in functions and under TYPE_CHECKING count too."
    )


def test_folders_import_each_other_in_no_circle():
    graph: dict[str, set[str]] = {}
    for source, target, _ in arrows():
        graph.setdefault(source, set()).add(target)
    circle = find_circle(graph)
    assert not circle, f"folders import each other in a circle: {' -> '.join(circle)}. Move a file to the folder below."


def test_folders_import_only_allowed_folders():
    wrong = [
        f"{one.source}:{one.line}: {source} may not import {target}"
        for source, target, one in arrows()
        if target not in {"core", *ALLOWED.get(source, "").split()}
    ]
    assert not wrong, (
        "\n".join(wrong)
        + "\nMove the code to a folder that may import this, or pass the value in. If the folder is to "
        f"import the other one from now on, add it to ALLOWED in {Path(__file__).name}."
    )


def test_allowed_imports_are_all_in_use():
    used = {(source, target) for source, target, _ in arrows()}
    allowed = {(source, target) for source, targets in ALLOWED.items() for target in targets.split()}
    unused = [f"{source} -> {target}" for source, target in sorted(allowed - used)]
    assert not unused, f"no file imports these; remove them from ALLOWED in {Path(__file__).name}: {unused}"


def test_folders_have_at_most_18_modules():
    counts = Counter(source.rpartition("/")[0] for source in sources())
    large = {name: count for name, count in counts.items() if count > MAX_MODULES}
    assert not large, f"more than {MAX_MODULES} modules; find the folder within them: {large}"


@pytest.fixture
def small_tree(tmp_path: Path) -> Path:
    """Two folders that import each other, one of them in a function."""
    files = {
        "core/__init__.py": "",
        "pipeline/__init__.py": "",
        "pipeline/a/__init__.py": "",
        "pipeline/a/one.py": "import os\nfrom ..b import two\n",
        "pipeline/b/__init__.py": "",
        "pipeline/b/two.py": "def f():\n    from ..a.one import g\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_import_graph_has_imports_in_functions_and_of_modules(small_tree):
    graph = file_graph(small_tree)
    assert graph["pipeline/a/one.py"] == {"pipeline/b/two.py", "pipeline/b/__init__.py"}
    assert set(find_circle(graph)) == {"pipeline/a/one.py", "pipeline/b/two.py"}
    lines = [(one.line, one.module, one.relative) for one in imports("pipeline/a/one.py", small_tree)]
    assert lines == [(1, "os", False), (2, "pipeline.b.two", True)]
