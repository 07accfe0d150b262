"""The JSON that the benchmark scripts print: the machine, and a row for each measurement."""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any


def argument_parser(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser with the option --json and the first line of a script's docstring as its description."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result to this file")
    return parser


def print_rows(rows: Sequence[dict[str, Any]], path: Path | None, *versions_of: ModuleType, **machine: Any) -> None:
    """Print `rows` and the machine as JSON, with the versions of some packages, and write it to `path` if given."""
    import torch  # takes seconds, which the processes of plan_a_million.py must not spend

    from persres.pipeline.benchmark.bench import device_name

    versions = {module.__name__: module.__version__ for module in versions_of}
    machine = {
        "device": device_name(torch.device("cpu")),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        **versions,
        **machine,
    }
    print_json({"machine": machine, "rows": list(rows)}, path)


def print_json(result: dict[str, Any], path: Path | None) -> None:
    """Print a result as JSON, and write it to `path` if given."""
    text = json.dumps(result, indent=1)
    print(text)
    if path:
        path.write_text(text + "\n")
