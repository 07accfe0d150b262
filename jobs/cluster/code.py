"""The code that travels with a job to its cluster, and the versions that a run is computed with."""

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
    """Copy this package to `<folder>/persres`, which can be imported. Returns that folder.

    Ray uploads a folder under the digest of its content, but a wheel under its name, and installs all that the wheel
    depends on: docs/decisions/0010-code-travels-as-a-folder.md.
    """
    package = folder / "persres"
    for floor in FLOORS:
        shutil.copytree(_SOURCE / floor, package / floor, ignore=shutil.ignore_patterns("__pycache__"))
    return package


def code_digest(package: Path = _SOURCE) -> str:
    """Digest of the Python files of the three floors, 16 hexadecimal digits.

    A checkout, an installed wheel and a copy on a cluster have the same digest if they are the same code.

    Args:
        package: the folder that contains the floors; by default that of this code.
    """
    digest = hashlib.sha256()
    for floor in FLOORS:
        for file in sorted((package / floor).rglob("*.py"), key=lambda file: file.as_posix()):
            digest.update(f"{file.relative_to(package).as_posix()}\0".encode())
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]


def package_version() -> str:
    """The installed version of persres-batch; empty if only its code is here, as in a job."""
    try:
        return version("persres-batch")
    except PackageNotFoundError:
        return ""


def installed_versions() -> dict[str, str]:
    """The versions that a run is computed with: Python, libraries, persres-batch, and the digest of its code.

    Code that travels with a job is not installed: its version is in the job's environment.
    """
    found = {"python": platform.python_version(), "code": code_digest()}
    for name in _LIBRARIES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    if own := os.environ.get("PERSRES_VERSION") or package_version():
        found["persres-batch"] = own
    return found
