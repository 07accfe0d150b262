"""Project files: links and paths in documents exist, nothing names a machine, lists of packages are complete."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from persres.core.exit_codes import ExitCode

from ..programs.draw_architecture import PATH, PICTURE, drawing
from ..support.import_graph import FLOORS, ROOT, sources

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
SOURCE = re.compile(r"`((?:core|pipeline|jobs|tests)/[\w./*-]+)(?:: ([\w.]+))?`")
GENERATED = ROOT / "docs" / "bad-inputs.md"
# Addresses of one machine or network have no place in a repository that others clone. Images have users of their own.
PERSONAL = re.compile(
    r"(?<![\w.])/(?:home|Users)/(?!(?:ubuntu|ray)/)\w+/|(?<![\w./])/(?:root|work|opt)/\w|--(?:extra-)?index-url|find-links"
)
TEXT = {".py", ".md", ".toml", ".txt", ".yaml", ".yml", ".j2", ".json", ".html", ".cfg", ".sh", ""}


def tracked() -> list[Path]:
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listing.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listing.stdout.split("\0") if name and (ROOT / name).is_file()]


def documents() -> list[Path]:
    return [path for path in tracked() if path.suffix == ".md" and "weights" not in path.parts]


def prose(path: Path) -> list[tuple[int, str]]:
    """(number, line) of the lines that are no code and in no table."""
    lines, fenced = [], False
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        fenced ^= line.startswith("```")
        if not fenced and not line.startswith(("|", "    ", "```", "![")):
            lines.append((number, line))
    return lines


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives to a document's headings."""
    titles = [line.lstrip("# ") for _, line in prose(path) if line.startswith("#")]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_links_in_documents_lead_somewhere():
    dead = []
    for path in documents():
        for target in LINK.findall(path.read_text(encoding="utf-8")):
            if "://" in target or target.startswith("mailto:"):
                continue
            file, _, anchor = target.partition("#")
            there = path.parent / file if file else path
            if not there.exists() or (anchor and anchor not in anchors(there)):
                dead.append(f"{path.relative_to(ROOT)}: {target}")
    assert not dead


def test_sources_named_in_documents_exist():
    missing = [
        f"{path.relative_to(ROOT)}:{number}: {file} {name}"
        for path in documents()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        for file, name in SOURCE.findall(line)
        if not list(ROOT.glob(file)) or (name and name not in definitions(ROOT / file))
    ]
    assert not missing


def definitions(source: Path) -> set[str]:
    """Functions and classes of a file, and a class's own as Class.name."""
    names = set()
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            parts = [part.name for part in node.body if isinstance(part, ast.FunctionDef)]
            names |= {node.name, *(f"{node.name}.{part}" for part in parts)}
    return names


def test_prose_is_wrapped():
    long = [
        f"{path.relative_to(ROOT)}:{number}: {len(line)} columns"
        for path in documents()
        if path != GENERATED
        for number, line in prose(path)
        if len(line) > 100
    ]
    assert not long, "wrap prose at 100 columns"


def test_front_page_fits_a_screen():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 80
    assert not [line for line in lines if len(line) >= 100]


def test_architecture_picture_is_drawn_from_the_sources():
    assert PICTURE.read_text(encoding="utf-8") == drawing(), (
        "folders or their imports have changed; draw it again: .venv/bin/python -m tests.programs.draw_architecture"
    )


def test_architecture_page_lists_every_folder():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `([\w/]+)` \|", page, re.MULTILINE))
    assert packages() - set(FLOORS) <= listed


def test_architecture_page_has_the_path_of_the_picture():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    steps = re.findall(r"^\| \d+ \| `([\w/.]+): [\w.]+` \|", page, re.MULTILINE)
    assert steps == [file for file, _ in PATH]


def test_commands_page_lists_every_exit_code():
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| (\d+) \| (.+) \|$", page, re.MULTILINE)
    assert listed == [(str(int(code)), code.meaning) for code in ExitCode]


def test_troubleshooting_quotes_messages_of_the_code():
    """A heading is a message with … for what varies; each part of it is in a source."""
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    texts = [(ROOT / source).read_text(encoding="utf-8") for source in sources()]
    unknown = [
        message
        for message in re.findall(r"^### `(.+)`$", page, re.MULTILINE)
        for part in message.split("…")
        if part.strip(" :") and not any(part.strip() in text for text in texts)
    ]
    assert not unknown


def packages() -> set[str]:
    """Every folder of the three floors that is a package: {"core", "core/training", …}."""
    return {source.removesuffix("/__init__.py") for source in sources() if source.endswith("/__init__.py")}


def test_files_name_no_machine_and_no_package_index():
    found = [
        f"{path.relative_to(ROOT)}:{number}: {match.group()}"
        for path in tracked()
        if path.suffix in TEXT and path != Path(__file__)
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1)
        if (match := PERSONAL.search(line))
    ]
    assert not found


def test_dependencies_are_pinned_in_the_constraints():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(name for group in project["optional-dependencies"].values() for name in group),
    ]
    names = {re.split(r"[\[<>=~! ]", requirement)[0].lower() for requirement in wanted}
    pinned = {line.split("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    assert names <= pinned, f"not in constraints.txt: {sorted(names - pinned)}"


def test_packages_listed_are_the_packages_there_are():
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert set(setuptools["packages"]) == {"persres." + folder.replace("/", ".") for folder in packages()}
    assert setuptools["package-dir"] == {f"persres.{floor}": floor for floor in FLOORS}


def test_cluster_installs_what_the_project_needs():
    cluster = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    installed = " ".join(cluster["setup_commands"])
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = [re.split(r"[\[<>=~! ]", requirement)[0] for requirement in dependencies]
    assert not [name for name in names if not re.search(rf'[\s"]{re.escape(name)}[\s"\[]', installed + " ")]
