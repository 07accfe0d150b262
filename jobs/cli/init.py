"""The command `init`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ...core.errors import InvalidInput
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

    if path.exists() and not force:
        raise InvalidInput(f"{path} already exists", fix="choose another name, or replace it with --force")
    path.write_text(RunSpec().to_yaml(comments=True), encoding="utf-8")
    print(f"wrote {path}: every setting with its default and a description")
    print(f"next: persres-batch validate MANIFEST --spec {path}")
