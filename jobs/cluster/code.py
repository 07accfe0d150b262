"""Our own code on its way to a cluster, and which version of it that is."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

FLOORS = ("core", "pipeline", "jobs")
_SOURCE = Path(__file__).resolve().parents[2]
_LIBRARIES = ("torch", "diffusers", "transformers", "ray")


def copy_floors(folder: Path) -> Path:
    """A copy of this package as one importable folder, `<folder>/persres`.

    A folder is uploaded under the digest of its content. A wheel would be uploaded under its name, and installed with
    all it depends on: docs/decisions/0010-code-travels-as-a-folder.md.
    """
    package = folder / "persres"
    for floor in FLOORS:
        shutil.copytree(_SOURCE / floor, package / floor, ignore=shutil.ignore_patterns("__pycache__"))
    return package


def code_digest(package: Path = _SOURCE) -> str:
    """What the Python files of the three floors say, in 16 hexadecimal digits: a checkout, an installed wheel and a
    copy on a cluster have the same one if they are the same code.

    Args:
        package: the folder with the floors in it; by default where this very code is.
    """
    digest = hashlib.sha256()
    for floor in FLOORS:
        for file in sorted((package / floor).rglob("*.py"), key=lambda file: file.as_posix()):
            digest.update(f"{file.relative_to(package).as_posix()}\0".encode())
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]


def package_version() -> str:
    """persres-batch's, where it is installed; empty where only its code is."""
    try:
        return version("persres-batch")
    except PackageNotFoundError:
        return ""


def versions_here() -> dict[str, str]:
    """What a run was computed with: Python, the libraries, persres-batch, and the digest of its code.

    Code that has travelled with a job is not installed there: the job's environment says its version.
    """
    found = {"python": platform.python_version(), "code": code_digest()}
    for name in _LIBRARIES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    if ours := os.environ.get("PERSRES_VERSION") or package_version():
        found["persres-batch"] = ours
    return found
