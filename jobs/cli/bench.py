"""The command `bench`: its progress and its tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ...core.plural import plural
from ...pipeline.storage.output_file import require_writable, write_file

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from ...pipeline.benchmark.bench_result import BenchResult, BenchRow

SPEED = {"concept": ("concepts/h", 3600.0), "image": ("images/s", 1.0)}

app = typer.Typer()


@app.command()
def bench(
    model: Annotated[
        str,
        typer.Option(
            metavar="MODEL", help="spriteworld, sd1, sd2, sdxl, or any base model: a folder, a Hub id or a URI."
        ),
    ] = "spriteworld",
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="The device to measure.")] = "auto",
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads. Default: all cores that this process may use.")
    ] = None,
    iterations: Annotated[
        int, typer.Option(min=2, help="Training steps to measure; seconds are scaled to the settings' iterations.")
    ] = 10,
    rounds: Annotated[int, typer.Option(min=1, help="Measure every row this often, in turn, and keep the best.")] = 3,
    max_pack: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1024,
            help="The most concepts trained together. Default: as many as a GPU's memory holds, else 16.",
        ),
    ] = None,
    spec: Annotated[
        str | None,
        typer.Option(
            metavar="RUN.YAML",
            help="Take the training and sampling settings of this run spec. V* stays frozen. Default: the default "
            "settings.",
        ),
    ] = None,
    row: Annotated[
        list[str] | None,
        typer.Option(metavar="ROW", help="Measure only this row, beside the peer's. May be given several times."),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the rows as JSON to this file.")
    ] = None,
    profile: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write torch's profile of one packed training step and of rendering to this file, and measure no "
            "rows.",
        ),
    ] = None,
) -> None:
    """Measure the speed of training and rendering on this machine, beside diffusers' own ways of doing both.

    Training: `peer` and `peer_cached` (diffusers' DreamBooth-LoRA loop, also
    with its caching), `alone`, `packed_2`, `packed_4`, … (ours, that many
    concepts together). Rendering: `peer_render` (diffusers' pipeline, a LoRA
    at a time), `render_base` (no residual), `render`, `render_lag`.

    sd1, sd2 and sdxl are Stable Diffusion's published shapes with random
    weights: nothing is downloaded.

    Example: [bold]persres-batch bench --model sd1 --device cuda --json sd1.json[/bold]
    """
    from ...pipeline.benchmark.bench import run_bench
    from ...pipeline.benchmark.bench_plan import load_bench_model, make_bench_plan
    from ...pipeline.benchmark.step_profile import profile_steps
    from ...pipeline.spec.run_spec import RunSpec
    from ..terminal.consoles import error_console, print_table
    from ..terminal.output import echo

    _quiet_libraries()
    for path in filter(None, (json_file, profile)):
        require_writable(path)
    settings = {"device": device, "threads": threads, "max_pack": max_pack, "iterations": iterations, "rounds": rounds}
    bench_plan = make_bench_plan(RunSpec.load(spec) if spec else None, **settings, rows=row or ())
    with measuring(error_console()) as on_progress:
        base = load_bench_model(model, bench_plan.device)
        if profile is not None:
            write_file(profile, profile_steps(base, bench_plan))
            return
        result = run_bench(base, bench_plan, on_progress)
    if json_file is not None:
        write_file(json_file, result.to_json() + "\n")
    for part in bench_tables(result):
        if isinstance(part, str):
            echo(part)
        else:
            print_table(part)


def bench_tables(result: BenchResult) -> Iterator[str | Table]:
    """The machine, a table of training, a table of rendering, and notes."""
    machine = result.machine
    peak = machine["matmul_flops_per_second"] / 1e12
    yield (
        f"{machine['model']} on {machine['device']}, {plural(machine['threads'], 'CPU thread')}, {machine['dtype']}; "
        f"peak: {peak:.3g} TFLOP/s"
    )
    for unit in SPEED:
        rows = [row for row in result.rows if row.unit == unit]
        if rows:
            yield _table(rows, unit)
    yield from result.notes


@contextmanager
def measuring(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """Yield a function that shows progress: the text of this moment, how many rows are done, and of how many."""
    from ..terminal.consoles import PlainTextColumn, print_line

    if not console.is_terminal:
        yield lambda text, done, total: print_line(console, f"{text} ({done} of {total} done)")
        return
    from rich.progress import BarColumn, Progress, SpinnerColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), PlainTextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("loading the model", total=None)
        yield lambda text, done, total: bar.update(task, description=text, completed=done, total=total)


def _table(rows: Sequence[BenchRow], unit: str) -> Table:
    from rich.table import Table

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


def _quiet_libraries() -> None:
    """Silence diffusers and transformers, which would fill the screen as models and LoRAs are loaded repeatedly."""
    import diffusers.utils.logging
    import transformers.utils.logging

    for logging in (diffusers.utils.logging, transformers.utils.logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()
