"""A folder with everything that a valid run needs, into which bad inputs are written, and the command line."""

from __future__ import annotations

import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

from persres.jobs.cli.app import main

from ..support.s3_server import BUCKET, CREDENTIALS, S3Server, s3_server
from ..support.tiny_models import write_tiny_pipeline

GOOD_ROW = {"concept_id": "mug-1", "macro_class": "mug", "reference_images": ["mug.png"]}


@dataclass(frozen=True, slots=True)
class CommandResult:
    """The exit code and the output of a command."""

    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        return self.out + self.err


@dataclass
class Sandbox:
    """The folder of one case: an image, and paths for the manifest, the run spec and the catalog.

    Attributes:
        model: a tiny base model that all cases share; `own_model` copies it.
        environment: variables added to `os.environ` while a command runs.
    """

    folder: Path
    model: Path
    catalog: str = ""
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.catalog = self.catalog or str(self.folder / "catalog")
        pixels = np.random.default_rng(1).integers(0, 255, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(self.folder / "mug.png")

    def path(self, name: str) -> Path:
        return self.folder / name

    def file(self, name: str, content: bytes | str) -> Path:
        path = self.folder / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def manifest(self, *rows: Mapping[str, Any], schema: pa.Schema | None = None) -> Path:
        """Write a Parquet manifest; without rows, one valid row."""
        path = self.folder / "manifest.parquet"
        pq.write_table(pa.Table.from_pylist([dict(row) for row in rows or (GOOD_ROW,)], schema), path)
        return path

    def json_lines(self, *rows: Mapping[str, Any]) -> Path:
        return self.file("manifest.jsonl", "\n".join(json.dumps(row) for row in rows or (GOOD_ROW,)))

    def spec(self, **changes: Any) -> Path:
        """Write a run spec that is valid except for `changes`."""
        values = {
            "base_model": str(self.model),
            "scorer": None,
            "prompts": ["a photo of a {concept}"],
            "workers": 1,
            "training": {"iterations": 2, "batch_size": 1, "pack_size": 4},
            "sampling": {"steps": 2, "batch_size": 4},
            "references": {"min_side": 8, "max_pixels": 4_000_000, "max_bytes": 1 << 20},
            "recovery": {"store_patience_seconds": 0},
        }
        return self.file("run.yaml", yaml.safe_dump(values | changes))

    def own_model(self) -> Path:
        """A copy of the base model, which may be damaged."""
        return Path(shutil.copytree(self.model, self.folder / "model"))

    def submit(self, manifest: Path | str | None = None, spec: Path | str | None = None, *options: str) -> list[str]:
        """The command line of a submit; what is not given is valid."""
        where = ["--spec", str(spec or self.spec()), "--catalog", self.catalog]
        return ["submit", str(manifest or self.manifest()), *where, *options]

    def validate(self, manifest: Path | str) -> list[str]:
        return ["validate", str(manifest), "--spec", str(self.spec())]

    def run(self, arguments: Sequence[str]) -> CommandResult:
        """Run a command in this process, with the sandbox's environment."""
        with _environment(self.environment):
            return run_command(arguments)

    def commits(self) -> list[str]:
        """The commit records and snapshots of the catalog, if it is local."""
        root = Path(self.catalog)
        if "://" in self.catalog or not root.is_dir():
            return []
        return sorted(
            str(path.relative_to(root)) for path in root.rglob("*") if path.parent.name in ("commits", "index")
        )


def run_command(arguments: Sequence[str]) -> CommandResult:
    """Run a command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            main([str(argument) for argument in arguments])
            code: Any = 0
        except SystemExit as end:
            code = end.code
    return CommandResult(code if isinstance(code, int) else 0, out.getvalue(), err.getvalue())


@contextmanager
def _environment(changes: Mapping[str, str]) -> Iterator[None]:
    """Set variables in `os.environ`, and unset the credentials of other stores."""
    absent = ("PERSRES_DEBUG", "AWS_ENDPOINT_URL", "AWS_PROFILE", *CREDENTIALS)
    before = {name: os.environ.get(name) for name in (*absent, *changes)}
    for name in absent:
        os.environ.pop(name, None)
    os.environ.update({"COLUMNS": "200", **changes})
    _clear_client_cache()
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        _clear_client_cache()


def _clear_client_cache() -> None:
    """fsspec caches clients, which keep their endpoint and credentials."""
    from s3fs import S3FileSystem

    S3FileSystem.clear_instance_cache()


@dataclass(frozen=True)
class Sandboxes:
    """Makes sandboxes, which share a base model and an S3 server."""

    root: Path
    model: Path
    server: S3Server

    def make(self, name: str, *, on_s3: bool = False) -> Sandbox:
        catalog = f"s3://{BUCKET}/{name}" if on_s3 else ""
        return Sandbox(self.root / name, self.model, catalog, self.server.environment if on_s3 else {})


@contextmanager
def make_sandboxes() -> Iterator[Sandboxes]:
    """Sandboxes that other users may read, because some cases run as a user without permissions."""
    with tempfile.TemporaryDirectory(prefix="persres-corpus-") as folder, s3_server() as server:
        root = Path(folder)
        model = write_tiny_pipeline(root / "model", "sd1")
        for path in (root, model, *model.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        yield Sandboxes(root, model, server)
