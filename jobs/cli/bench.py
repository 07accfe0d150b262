"""The tables that `persres-batch bench` ends with, and what is seen while it measures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

if TYPE_CHECKING:  # importing it would import torch
    from ...pipeline.benchmark.bench_result import BenchResult, BenchRow


SPEED = {"concept": ("concepts/h", 3600.0), "image": ("images/s", 1.0)}


def bench_tables(result: BenchResult) -> Iterator[str | Table]:
    """What is printed: where it was measured, a table of training and one of rendering, and notes."""
    machine = result.machine
    threads = f"{machine['threads']} CPU thread{'' if machine['threads'] == 1 else 's'}"
    peak = machine["matmul_flops_per_second"] / 1e12
    yield f"{machine['model']} on {machine['device']}, {threads}, {machine['dtype']}; peak: {peak:.3g} TFLOP/s"
    for unit in SPEED:
        rows = [row for row in result.rows if row.unit == unit]
        if rows:
            yield _table(rows, unit)
    yield from result.notes


def _table(rows: Sequence[BenchRow], unit: str) -> Table:
    speed, per = SPEED[unit]
    table = Table()
    table.add_column("")
    for name in (f"s/{unit}", speed, "× peer", "peak MiB", "share of peak"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            row.name,
            f"{row.seconds:.3g}",
            f"{per / row.seconds:,.4g}",
            "" if row.ratio_to_peer is None else f"{row.ratio_to_peer:.2f}",
            "" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:,.0f}",
            f"{row.peak_share:.1%}",
        )
    return table


def quiet_libraries() -> None:
    """Loading models and LoRAs again and again, diffusers and transformers would fill the screen."""
    import diffusers.utils.logging
    import transformers.utils.logging

    for logging in (diffusers.utils.logging, transformers.utils.logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()


@contextmanager
def measuring(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """Yields the function to call with (what is measured now, how many are done, how many there will be)."""
    if not console.is_terminal:
        yield lambda text, done, total: console.print(f"{text} ({done} of {total} done)", highlight=False)
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("loading the model", total=None)
        yield lambda text, done, total: bar.update(task, description=text, completed=done, total=total)
