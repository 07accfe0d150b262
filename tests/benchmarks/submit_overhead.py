"""How much longer a whole run takes than its training and rendering alone: Ray, models, images, commits, report.

    python tests/benchmarks/submit_overhead.py --json submit_overhead.json

draws a demo catalog into a temporary folder and runs `persres-batch submit` on it in a process of its own, with two
workers on the CPU. The ratio is wall time, from the start of that process to its end, to the seconds that the workers
spent in training and in rendering, summed and divided by the number of workers. Figures mean something on a quiet
machine only.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from persres.pipeline.benchmark.bench import device_name
from persres.pipeline.spriteworld.demo_catalog import write_demo


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there too")
    parser.add_argument("--concepts", type=int, default=48, metavar="N")
    parser.add_argument("--workers", type=int, default=2, metavar="N")
    parser.add_argument("--spec", type=Path, metavar="RUN.YAML", help="in place of the demo's run spec")
    arguments = parser.parse_args()
    with TemporaryDirectory() as folder:
        row = measure(Path(folder), arguments.concepts, arguments.workers, arguments.spec)
    text = json.dumps({"machine": machine(arguments.workers), "rows": [row]}, indent=1)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")


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


def machine(workers: int) -> dict[str, Any]:
    """Where it was measured."""
    cores = len(os.sched_getaffinity(0))
    return {"device": device_name(torch.device("cpu")), "cores": cores, "workers": workers, "torch": torch.__version__}


if __name__ == "__main__":
    main()
