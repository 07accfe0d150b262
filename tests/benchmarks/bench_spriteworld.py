"""`persres-batch bench` on Spriteworld, on this machine's CPU, with its JSON.

    python tests/benchmarks/bench_spriteworld.py [OPTION …]

takes every option of that command; without --json the rows are written to .benchmarks/bench_spriteworld.json. Figures
are valid only on an otherwise idle machine.
"""

from __future__ import annotations

import sys
from pathlib import Path

from persres.jobs.cli.app import main

DEFAULT = Path(__file__).parents[2] / ".benchmarks" / "bench_spriteworld.json"


def arguments(given: list[str]) -> list[str]:
    """Return the command line, with the user's options after ours, so that they take precedence."""
    target = [] if "--json" in given else ["--json", str(DEFAULT)]
    return ["bench", "--model", "spriteworld", "--device", "cpu", *target, *given]


if __name__ == "__main__":
    DEFAULT.parent.mkdir(exist_ok=True)
    main(arguments(sys.argv[1:]))
