"""The command `fetch`."""

from __future__ import annotations

from typing import Annotated

import typer

from ...core.plural import plural
from ..format import format_size
from ..terminal.output import echo, echo_document
from .options import JsonOption
from .printing import json_text

app = typer.Typer()


@app.command()
def fetch(
    spec: Annotated[str, typer.Option("--spec", metavar="RUN.YAML", help="The run spec.")],
    prune: Annotated[
        bool,
        typer.Option(
            "--prune", help="Then remove other models that were fetched from URIs, and remains of failed downloads."
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Fetch the models of a run spec into this machine's cache, for container images and nodes without a network.

    Models from URIs are kept under PERSRES_CACHE, models from the Hub under
    HF_HOME. A model that is there already is not fetched again.

    Example: [bold]persres-batch fetch --spec run.yaml[/bold]
    """
    from ...pipeline.models.cache import ModelCache, Pruned
    from ...pipeline.spec.run_spec import RunSpec
    from ..observe.model_progress import fetch_models
    from ..terminal.consoles import error_console

    found = fetch_models(RunSpec.load(spec), error_console())
    removed = ModelCache().prune({one.model.revision for one in found}) if prune else Pruned(0, 0)
    if as_json:
        models = [
            {"role": one.role, "name": one.name, "revision": one.model.revision, "path": one.model.path}
            for one in found
        ]
        echo_document(json_text({"models": models, "removed_bytes": removed.size}))
        return
    for one in found:
        echo(f"{one.role} {one.name}: revision {one.model.revision}, in {one.model.path}")
    if prune:
        echo(f"removed {plural(removed.folders, 'folder')}, {format_size(removed.size)}")
