"""What planning costs when the manifest and the catalog hold a million concepts: seconds and memory.

    python tests/benchmarks/plan_a_million.py --json plan_a_million.json

writes a manifest, its images and a catalog into a temporary folder (about 1 GB for a million rows), and plans in
processes of their own, from starting Python to having the shards, as `persres-batch plan` does:

    plan_loose       all concepts are current; the catalog has commit records of 16 concepts each, not compacted
    compact          compacts these records to one snapshot
    plan             all concepts are current; the catalog has that snapshot
    plan_to_render   a sampling setting has changed: every concept has to be rendered again
    plan_to_train    the catalog is empty: every concept has to be trained

The images are 64 small files that rows share, so reading images costs nothing; every tenth row has prompts of its own.
`peak_bytes` is resident memory, as Linux counts it. Figures are valid only on an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from benchmark_json import argument_parser, print_rows
from PIL import Image

SHARD_SIZE = 16
IMAGES = 64
CLASSES = 40
RUN_ID = "20260101T000000Z-000000"
ROWS_AT_A_TIME = 50_000
STEPS = ("plan_loose", "compact", "plan", "plan_to_render", "plan_to_train")

MANIFEST = pa.schema(
    {
        "concept_id": pa.string(),
        "macro_class": pa.string(),
        "reference_images": pa.list_(pa.string()),
        "prompts": pa.list_(pa.string()),
        "metadata": pa.map_(pa.string(), pa.string()),
    }
)


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, metavar="N")
    parser.add_argument("--step", help=argparse.SUPPRESS)  # one measurement, in a process of its own
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        do_step(arguments.step, arguments.folder, arguments.rows)
        return
    with TemporaryDirectory() as folder:
        write_manifest(Path(folder), arguments.rows)
        in_a_process("generate", Path(folder), arguments.rows)
        rows = [in_a_process(step, Path(folder), arguments.rows) for step in STEPS]
    print_rows(rows, arguments.json, pa)


def in_a_process(step: str, folder: Path, rows: int) -> dict[str, Any]:
    """One step as a row of the result; `seconds` from before its process starts until after its end."""
    command = [sys.executable, __file__, "--step", step, "--folder", str(folder), "--rows", str(rows)]
    started = time.perf_counter()
    ended = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    seconds = round(time.perf_counter() - started, 1)
    row = {"name": step, "concepts": rows, "seconds": seconds, **json.loads(ended.stdout)}
    print(row, file=sys.stderr)
    return row


def do_step(step: str, folder: Path, rows: int) -> None:
    from persres.pipeline.catalog.store import CatalogStore

    store = CatalogStore(str(folder / "catalog"))
    found: dict[str, Any] = {}
    if step == "generate":
        write_records(folder)
    elif step == "compact":
        from persres.pipeline.catalog.index import compact

        found["records"] = compact(store)
        found["snapshot_bytes"] = sum(path.stat().st_size for path in (folder / "catalog" / "index").iterdir())
    else:
        found |= plan(step, folder, store, rows)
    print(json.dumps({"cpu_seconds": round(time.process_time(), 1), "peak_bytes": peak_bytes(), **found}))


def plan(step: str, folder: Path, store: Any, rows: int) -> dict[str, Any]:
    """The work of `persres-batch plan`; holds it against what should come out."""
    from persres.pipeline.catalog.index import read_committed
    from persres.pipeline.catalog.store import CatalogStore
    from persres.pipeline.planning.plan import make_shards
    from persres.pipeline.planning.prepare import prepare_run
    from persres.pipeline.spec.run_spec import RunSpec

    spec = RunSpec()
    if step == "plan_to_render":
        spec = spec.model_copy(update={"sampling": spec.sampling.model_copy(update={"steps": spec.sampling.steps + 1})})
    elif step == "plan_to_train":
        store = CatalogStore(str(folder / "nothing"))
    committed = read_committed(store)
    run = prepare_run(str(folder / "manifest.parquet"), spec, committed).plan(committed)
    shards = make_shards(run, SHARD_SIZE, workers=8, pack_size=8)
    counts = {"train": len(run.train), "render_only": len(run.render_only), "current": len(run.current)}
    work = {"plan_to_render": "render_only", "plan_to_train": "train"}.get(step, "current")
    assert counts.pop(work) == rows and not any(counts.values()) and not run.failures and not run.removed
    return {"shards": len(shards)}


def write_manifest(folder: Path, rows: int) -> None:
    (folder / "images").mkdir()
    noise = np.random.default_rng(0)
    for number in range(IMAGES):
        Image.fromarray(noise.integers(0, 256, (64, 64, 3), np.uint8)).save(folder / image_name(number))
    with pq.ParquetWriter(folder / "manifest.parquet", MANIFEST) as writer:
        for start in range(0, rows, ROWS_AT_A_TIME):
            numbers = range(start, min(rows, start + ROWS_AT_A_TIME))
            writer.write_table(pa.Table.from_pylist([manifest_row(number) for number in numbers], MANIFEST))


def manifest_row(number: int) -> dict[str, Any]:
    own_prompts = [f"a {{concept}} on shelf {number}", f"a {{concept}} in room {number}"]
    return {
        "concept_id": f"concept-{number:07}",
        "macro_class": f"class{number % CLASSES}",
        "reference_images": [image_name(number + offset) for offset in range(3)],
        "prompts": own_prompts if number % 10 == 0 else None,
        "metadata": [("sku", str(number))],
    }


def image_name(number: int) -> str:
    return f"images/{number % IMAGES:02}.png"


def write_records(folder: Path) -> None:
    """The commit records of a run that has done every row of the manifest, without the data files they name."""
    from persres.pipeline.planning.plan import PlannedConcept
    from persres.pipeline.planning.prepare import prepare_run
    from persres.pipeline.spec.run_spec import RunSpec

    planned = prepare_run(str(folder / "manifest.parquet"), RunSpec()).planned
    (folder / "catalog" / "commits").mkdir(parents=True)
    shards: Iterator[tuple[PlannedConcept, ...]] = (
        planned[start : start + SHARD_SIZE] for start in range(0, len(planned), SHARD_SIZE)
    )
    for concepts in shards:
        name, record = commit_record(concepts)
        (folder / "catalog" / name).write_bytes(record)  # a store would sync every one of them to the disk


def commit_record(concepts: tuple[Any, ...]) -> tuple[str, bytes]:
    from persres.pipeline.catalog.commit_record import CommittedConcept, ShardCommit, VariantScores
    from persres.pipeline.catalog.layout import AttemptPaths
    from persres.pipeline.planning.plan import Shard

    shard_id, attempt = Shard.of("train", concepts).shard_id, "001"
    paths = AttemptPaths(RUN_ID, shard_id, attempt)
    files = {"residuals": paths.residuals("0" * 32), "renderings": paths.renderings("0" * 32)}
    scores = {variant: VariantScores(4, 0.3125, 0.625, 3) for variant in ("base", "residual", "lag")}
    committed = tuple(
        CommittedConcept(
            one.concept_id,
            one.row.macro_class,
            one.fingerprints.training,
            one.fingerprints.rendering,
            files["residuals"],
            number,
            files["renderings"],
            (number * 12, 12),
            scores,
        )
        for number, one in enumerate(concepts)
    )
    return paths.record, ShardCommit(RUN_ID, shard_id, attempt, "train", files, committed, (), {"train": 1.0}).to_json()


def peak_bytes() -> int:
    """The most memory that this process has had, without what its parent had before it (which `getrusage` counts)."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024


if __name__ == "__main__":
    main()
