"""The command `demo`, and the table it ends with: does the residual help, and what does localizing it change?"""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...core.errors import InvalidInput
from ...core.exit_codes import ExitCode
from ...core.plural import plural
from ...pipeline.storage.output_file import refusing
from ..terminal.output import echo
from .options import WorkersOption
from .submit import print_summary, report_of
from .targets import SPEC_FILE, catalog_beside

if TYPE_CHECKING:
    from rich.table import Table

VARIANT_LABELS = {"base": "base model", "residual": "residual", "lag": "residual with LAG"}

app = typer.Typer()


@app.command()
def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder to write.")] = Path("persres-demo"),
    concepts: Annotated[int, typer.Option(min=1, help="The number of concepts.")] = 12,
    workers: WorkersOption = None,
) -> None:
    """Run everything once on a small drawn world that comes with the package: no download, no GPU, a few minutes.

    Example: [bold]persres-batch demo --out persres-demo[/bold]
    """
    from ...pipeline.spec.run_spec import RunSpec
    from ...pipeline.spriteworld.demo_catalog import write_demo
    from ...pipeline.storage.uri import check_address
    from ..cluster.placement import Placement
    from ..submit import submit_local
    from ..terminal.consoles import print_table

    manifest = str(out / "manifest.parquet")
    catalog = catalog_beside(manifest)
    check_address(catalog, what="catalog")
    if os.path.lexists(out) and not out.is_dir():
        raise InvalidInput(f"--out {out} is not a folder", fix="give a folder, which is created if it is not there")
    with refusing(out):
        write_demo(out, concepts=concepts)
    echo(
        f"wrote {plural(concepts, 'concept')} to {out}; from here on this is the same as:",
        f"  cd {shlex.quote(str(out))} && persres-batch submit manifest.parquet",
        error=True,
    )
    finished = submit_local(manifest, RunSpec.load(out / SPEC_FILE), catalog, placement=Placement(workers))
    if finished.summary.committed or finished.summary.current:
        print_table(demo_table(catalog, manifest))
    print_summary(finished, report_of(finished, catalog))
    raise typer.Exit(ExitCode.CONCEPTS_FAILED if finished.summary.failed else ExitCode.OK)


def demo_table(catalog_uri: str, manifest_uri: str) -> Table:
    """Score the demo's catalog against true drawings of its concepts, one row a variant."""
    from rich.table import Table
    from transformers.utils import logging

    from ...pipeline.spriteworld.training.judge_demo import judge_catalog
    from ..terminal.consoles import cells

    logging.disable_progress_bar()  # loading the scorer's few weights needs none
    table = Table(title="Means over all renderings; 1 is best", title_justify="left")
    table.add_column("")
    for name in ("identity", "prompt", "background right"):
        table.add_column(name, justify="right")
    for scores in judge_catalog(catalog_uri, manifest_uri):
        values = (scores.identity, scores.prompt, scores.background)
        label = VARIANT_LABELS.get(scores.variant, scores.variant)
        table.add_row(*cells([label, *(f"{value:.3f}" for value in values)]))
    return table
