"""The overhead of a run over its training and rendering alone: Ray, models, images, commits, report.

    python tests/benchmarks/submit_overhead.py --json submit_overhead.json

writes the demo to a temporary folder and runs `persres-batch submit` on it in a process of its own, with two workers on
the CPU. The ratio is that of this process's wall time to the seconds spent in training and rendering, summed over the
workers and divided by their number. Figures are valid only on an otherwise idle machine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from benchmark_json import argument_parser, print_rows

from persres.pipeline.spriteworld.demo_catalog import write_demo


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--concepts", type=int, default=48, metavar="N")
    parser.add_argument("--workers", type=int, default=2, metavar="N")
    parser.add_argument("--spec", type=Path, metavar="RUN.YAML", help="in place of the demo's run spec")
    arguments = parser.parse_args()
    with TemporaryDirectory() as folder:
        row = measure(Path(folder), arguments.concepts, arguments.workers, arguments.spec)
    print_rows([row], arguments.json, torch, workers=arguments.workers)


def measure(folder: Path, concepts: int, workers: int, spec: Path | None) -> dict[str, Any]:
    """One run of `submit`, as a row."""
    write_demo(folder, concepts=concepts)
    command = [sys.executable, "-m", "persres.jobs.cli", "submit", str(folder / "manifest.parquet"), "--json"]
    command += ["--spec", str(spec or folder / "run.yaml"), "--catalog", str(folder / "catalog")]
    command += ["--workers", str(workers), "--device", "cpu"]
    started = time.perf_counter()
    ended = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    wall_seconds = time.perf_counter() - started
    summary = json.loads(ended.stdout)
    assert summary["committed"] == concepts, summary
    seconds = summary["seconds"]
    pure_seconds = (seconds["train"] + seconds["render"]) / workers
    return {
        "name": "submit",
        "concepts": concepts,
        "workers": workers,
        "wall_seconds": round(wall_seconds, 2),
        "pure_seconds": round(pure_seconds, 2),
        "ratio": round(wall_seconds / pure_seconds, 4),
        "device_busy_share": summary["device_busy_share"],
        "seconds": {phase: round(value, 2) for phase, value in seconds.items()},
    }


if __name__ == "__main__":
    main()
