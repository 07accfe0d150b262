"""`persres-batch bench` on Spriteworld, on this machine's CPU, with its JSON.

    python tests/benchmarks/bench_spriteworld.py [OPTION …]

takes every option of that command; without --json the rows go to .benchmarks/bench_spriteworld.json. Figures mean
something on a quiet machine only.
"""

from __future__ import annotations

import sys
from pathlib import Path

from persres.jobs.cli.app import main

DEFAULT = Path(__file__).parents[2] / ".benchmarks" / "bench_spriteworld.json"


def arguments(given: list[str]) -> list[str]:
    """The command line: the user's options after ours, so that theirs hold."""
    target = [] if "--json" in given else ["--json", str(DEFAULT)]
    return ["bench", "--model", "spriteworld", "--device", "cpu", *target, *given]


if __name__ == "__main__":
    DEFAULT.parent.mkdir(exist_ok=True)
    main(arguments(sys.argv[1:]))
