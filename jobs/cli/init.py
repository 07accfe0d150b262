"""The command `init`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from ...pipeline.storage.output_file import require_absent, write_file
from ..terminal.output import echo
from .options import ForceOption

app = typer.Typer()


@app.command()
def init(
    path: Annotated[Path, typer.Argument(metavar="RUN.YAML", help="The file to write.")] = Path("run.yaml"),
    force: ForceOption = False,
) -> None:
    """Write a run spec with every setting, its default and a description.

    Example: [bold]persres-batch init run.yaml[/bold]
    """
    from ...pipeline.spec.run_spec import RunSpec

    require_absent([path], force=force)
    write_file(path, RunSpec().to_yaml(comments=True))
    echo(
        f"wrote {path}: every setting with its default and a description",
        f"next: persres-batch validate MANIFEST --spec {shlex.quote(str(path))}",
    )
