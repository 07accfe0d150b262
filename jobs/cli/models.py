"""The command that puts models into this machine's cache: fetch. `cli` makes it its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

app = typer.Typer()

FETCH = """Put the models of a run spec into this machine's cache, as a worker would: for images and for nodes without
a network.

A URI's models are kept under PERSRES_CACHE, the Hub's under HF_HOME. What is there already is not fetched again.

Example: [bold]persres-batch fetch --spec run.yaml[/bold]"""
PRUNE = "Then remove what else was fetched from URIs, and what broken downloads left."


@app.command(help=FETCH)
def fetch(
    spec: Annotated[Path, typer.Option("--spec", metavar="RUN.YAML", help="The run spec.")],
    prune: Annotated[bool, typer.Option("--prune", help=PRUNE)] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")] = False,
) -> None:
    from ...pipeline.models.cache import ModelCache, Pruned
    from ...pipeline.spec.run_spec import RunSpec
    from ..observe.model_progress import fetch_models

    found = fetch_models(RunSpec.load(spec), Console(stderr=True))
    removed = ModelCache().prune({one.model.revision for one in found}) if prune else Pruned(0, 0)
    if as_json:
        models = [
            {"role": one.role, "name": one.name, "revision": one.model.revision, "path": one.model.path}
            for one in found
        ]
        print(json.dumps({"models": models, "removed_bytes": removed.size}, indent=1, sort_keys=True))
        return
    for one in found:
        print(f"{one.role} {one.name}: revision {one.model.revision}, in {one.model.path}")
    if prune:
        print(f"removed {removed.folders} folders of {removed.size / 1e9:.2f} GB")
