"""What is true of all files: links lead somewhere, nothing names a machine, lists of packages are whole."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
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


def test_links_in_documents_lead_somewhere():
    dead = [
        f"{path.relative_to(ROOT)}: {target}"
        for path in tracked()
        if path.suffix == ".md"
        for target in LINK.findall(path.read_text(encoding="utf-8"))
        if "://" not in target and not target.startswith(("#", "mailto:"))
        if not (path.parent / target.split("#")[0]).exists()
    ]
    assert not dead


def test_files_name_no_machine_and_no_package_index():
    found = [
        f"{path.relative_to(ROOT)}:{number}: {match.group()}"
        for path in tracked()
        if path.suffix in TEXT and path != Path(__file__)
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1)
        if (match := PERSONAL.search(line))
    ]
    assert not found


def test_every_dependency_is_pinned_in_the_constraints():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(name for group in project["optional-dependencies"].values() for name in group),
    ]
    names = {re.split(r"[\[<>=~! ]", requirement)[0].lower() for requirement in wanted}
    pinned = {line.split("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    assert names <= pinned, f"not in constraints.txt: {sorted(names - pinned)}"


def test_the_packages_listed_are_the_packages_there_are():
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    there = {
        "persres." + ".".join(path.parent.relative_to(ROOT).parts)
        for floor in ("core", "pipeline", "jobs")
        for path in (ROOT / floor).rglob("__init__.py")
    }
    assert set(setuptools["packages"]) == set(setuptools["package-dir"]) == there


def test_the_cluster_installs_what_the_project_needs():
    cluster = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    installed = " ".join(cluster["setup_commands"])
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = [re.split(r"[\[<>=~! ]", requirement)[0] for requirement in dependencies]
    assert not [name for name in names if not re.search(rf'[\s"]{re.escape(name)}[\s"\[]', installed + " ")]
