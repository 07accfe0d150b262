"""Manifests, run specs and submits of runs that take seconds, on a tiny base model."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image
from rich.console import Console

from persres.jobs.submit import FinishedRun, Placement, submit_local
from persres.pipeline.catalog.store import CatalogStore
from persres.pipeline.spec.run_spec import RunSpec

from .tiny_models import write_tiny_pipeline

PROMPTS = ("a photo of a {concept} on grass",)


def write_manifest(
    folder: Path, concept_ids: list[str], prompts: list[str] | None = None, broken: str | None = None
) -> str:
    """Write `manifest.parquet` and one image for each concept; returns the manifest's path.

    Args:
        prompts: of every concept; `PROMPTS` by default.
        broken: the concept whose image cannot be decoded.
    """
    rows = []
    for concept_id in concept_ids:
        path = folder / f"{concept_id}.png"
        pixels = np.random.default_rng(sum(concept_id.encode())).integers(0, 255, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        if concept_id == broken:
            path.write_bytes(b"\x89PNG and then nothing")
        row = {"concept_id": concept_id, "macro_class": "mug", "reference_images": [path.name]}
        rows.append(row | {"prompts": list(PROMPTS if prompts is None else prompts)})
    pq.write_table(pa.Table.from_pylist(rows), folder / "manifest.parquet")
    return str(folder / "manifest.parquet")


def write_run_spec(folder: Path, iterations: int = 60, **settings: Any) -> str:
    """Write `run.yaml` and a tiny base model, for shards of one concept; returns the run spec's path.

    Args:
        iterations: of training; 60 take about a second.
        settings: top-level keys to add or replace.
    """
    values = {
        "base_model": str(write_tiny_pipeline(folder / "model", "sd2")),
        "shard_size": 1,
        "training": {"iterations": iterations, "batch_size": 1, "pack_size": 1},
        "sampling": {"steps": 2, "batch_size": 1},
        "references": {"min_side": 8},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(values | settings))
    return str(folder / "run.yaml")


@dataclass
class LocalSubmit:
    """Submits in this process, all with one spec and into one catalog.

    Attributes:
        shown: what they have printed.
    """

    spec: RunSpec
    store: CatalogStore
    shown: io.StringIO = field(default_factory=io.StringIO)

    def __call__(self, manifest: str, workers: int = 1, **options: Any) -> FinishedRun:
        console, placement = Console(file=self.shown, width=200), Placement(workers)
        return submit_local(manifest, self.spec, self.store.uri, placement=placement, console=console, **options)
