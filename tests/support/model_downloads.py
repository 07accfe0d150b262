"""Models to download, and processes that download them: several, since a file lock excludes processes only."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec
import numpy as np
import pytest
from huggingface_hub import constants
from s3fs import S3FileSystem
from safetensors.numpy import save_file

from persres.pipeline.models.folder import files_of_folder

from .s3_server import BUCKET, S3Server

ROOT = Path(__file__).parents[2]
_DOWNLOAD = """
import json, sys
from persres.pipeline.models.resolve import resolve_model
options = json.loads(sys.argv[1])
model = resolve_model(options.pop("name"), **options)
print(json.dumps([model.path, model.revision, model.has_weights]))
"""


def pipeline_folder(path: Path, *, weights: str = "diffusion_pytorch_model.safetensors", value: float = 0.0) -> Path:
    """Write the files of a diffusers pipeline with two components, which cannot be loaded."""
    index = {
        "_class_name": "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "safety_checker": [None, None],
    }
    for folder in ("unet", "tokenizer"):
        (path / folder).mkdir(parents=True)
    (path / "model_index.json").write_text(json.dumps(index))
    (path / "unet" / "config.json").write_text("{}")
    (path / "tokenizer" / "vocab.json").write_text('{"a": 0}')
    save_file({"weight": np.full(5000, value, np.float32)}, path / "unet" / weights)
    return path


def scorer_folder(path: Path) -> Path:
    """Write the files of a CLIP scorer, which cannot be loaded."""
    path.mkdir(parents=True)
    (path / "config.json").write_text('{"model_type": "clip"}')
    save_file({"weight": np.zeros(2, np.float32)}, path / "model.safetensors")
    return path


def checksum_list(folder: Path) -> str:
    """The folder's SHA256SUMS, as sha256sum prints it."""
    names = [name for name in files_of_folder(folder) if name != "SHA256SUMS"]
    return "".join(f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  ./{name}\n" for name in names)


def s3_file_system(server: S3Server) -> fsspec.AbstractFileSystem:
    """A client of the store apart from the one under test."""
    return fsspec.filesystem(
        "s3",
        key=server.environment["AWS_ACCESS_KEY_ID"],
        secret=server.environment["AWS_SECRET_ACCESS_KEY"],
        endpoint_url=server.endpoint,
        use_listings_cache=False,
        skip_instance_cache=True,
    )


@contextmanager
def client_environment(server: S3Server, monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[S3Server]:
    """Let this process download from the server into `cache`."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name, value in {**server.environment, "PERSRES_CACHE": str(cache)}.items():
        monkeypatch.setenv(name, value)
    S3FileSystem.clear_instance_cache()  # it takes a client of another server for one of this
    yield server
    S3FileSystem.clear_instance_cache()


def upload(server: S3Server, folder: Path, name: str = "model") -> str:
    """Write a folder's files to the bucket; returns the folder's URI."""
    fs = s3_file_system(server)
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            fs.pipe_file(f"{BUCKET}/{name}/{file.relative_to(folder).as_posix()}", file.read_bytes())
    return f"s3://{BUCKET}/{name}"


def object_downloads(server: S3Server) -> Counter[str]:
    """How often each object was downloaded, by its path in the bucket; listings and HEAD requests do not count."""
    requests = [request for request in server.faults.requests if request.method == "GET" and not request.query]
    return Counter(request.path.removeprefix(f"/{BUCKET}/") for request in requests if request.path.count("/") > 1)


def start_download(name: str, environment: dict[str, str], **options: object) -> subprocess.Popen[str]:
    """Start a process that resolves a model."""
    command = [sys.executable, "-c", _DOWNLOAD, json.dumps({"name": name, **options})]
    variables = os.environ | {"HF_HUB_OFFLINE": "0", **environment}
    return subprocess.Popen(command, env=variables, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def download_results(processes: Iterable[subprocess.Popen[str]]) -> list[tuple[str, str, bool]]:
    """What each process has resolved: (path, revision, has weights)."""
    ended = [(process, *process.communicate(timeout=120)) for process in processes]
    for process, _, errors in ended:
        assert process.returncode == 0, errors
    return [tuple(json.loads(out)) for _, out, _ in ended]
