"""Models to fetch, and processes that fetch them: real ones, for a lock means nothing inside one process."""

from __future__ import annotations

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

from .s3_server import BUCKET, S3Server

ROOT = Path(__file__).parents[2]
_FETCH = """
import json, sys
from persres.pipeline.models.resolve import resolve_model
asked = json.loads(sys.argv[1])
found = resolve_model(asked.pop("name"), **asked)
print(json.dumps([found.path, found.revision, found.has_weights]))
"""


def pipeline_folder(path: Path, *, weights: str = "diffusion_pytorch_model.safetensors", value: float = 0.0) -> Path:
    """The files of a diffusers pipeline with two components; whether it could be used is not asked here."""
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
    path.mkdir(parents=True)
    (path / "config.json").write_text('{"model_type": "clip"}')
    save_file({"weight": np.zeros(2, np.float32)}, path / "model.safetensors")
    return path


def s3_file_system(server: S3Server) -> fsspec.AbstractFileSystem:
    """A client for putting things into the store, beside the one under test."""
    return fsspec.filesystem(
        "s3",
        key=server.environment["AWS_ACCESS_KEY_ID"],
        secret=server.environment["AWS_SECRET_ACCESS_KEY"],
        endpoint_url=server.endpoint,
        use_listings_cache=False,
        skip_instance_cache=True,
    )


@contextmanager
def asked_by_this_process(server: S3Server, monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[S3Server]:
    """This process finds the server, has leave to ask it, and keeps what it fetches in `cache`."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name, value in {**server.environment, "PERSRES_CACHE": str(cache)}.items():
        monkeypatch.setenv(name, value)
    S3FileSystem.clear_instance_cache()  # it does not know clients of one server from those of the next
    yield server
    S3FileSystem.clear_instance_cache()


def upload(server: S3Server, folder: Path, name: str = "model") -> str:
    """Put a folder's files into the bucket; returns its URI."""
    fs = s3_file_system(server)
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            fs.pipe_file(f"{BUCKET}/{name}/{file.relative_to(folder).as_posix()}", file.read_bytes())
    return f"s3://{BUCKET}/{name}"


def objects_fetched(server: S3Server) -> Counter[str]:
    """How often each object was fetched, by its path in the bucket; listings and HEAD requests are none."""
    asked = [request for request in server.faults.requests if request.method == "GET" and not request.query]
    return Counter(request.path.removeprefix(f"/{BUCKET}/") for request in asked if request.path.count("/") > 1)


def start_fetching(name: str, environment: dict[str, str], **options: object) -> subprocess.Popen[str]:
    """A process that resolves a model, and prints what it found."""
    command = [sys.executable, "-c", _FETCH, json.dumps({"name": name, **options})]
    variables = os.environ | {"HF_HUB_OFFLINE": "0", **environment}
    return subprocess.Popen(command, env=variables, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def fetched(processes: Iterable[subprocess.Popen[str]]) -> list[tuple[str, str, bool]]:
    """What each process found: (path, revision, has weights)."""
    ended = [(process, *process.communicate(timeout=120)) for process in processes]
    for process, _, errors in ended:
        assert process.returncode == 0, errors
    return [tuple(json.loads(told)) for _, told, _ in ended]
