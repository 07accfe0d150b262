"""The commands that read a catalog: `status`, `report` and `export`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...core.errors import InvalidInput
from ...core.plural import plural
from ...core.terminal_text import utc_text
from ..terminal.output import echo, echo_document
from .options import CatalogArgument, CatalogOption, ForceOption, JobServerOption, JsonOption, SpecOption
from .printing import busy_text, cost_text, failure_lines, print_choices, state_text
from .runs import RunCatalogOption, names_a_run, show_run
from .targets import ChosenCatalog, catalog_of_manifest, is_manifest

if TYPE_CHECKING:
    from ...pipeline.run.catalog_status import CatalogStatus

app = typer.Typer()


@app.command()
def status(
    subject: Annotated[
        str | None,
        typer.Argument(
            metavar="CATALOG|MANIFEST|RUN",
            help="A catalog's folder or URI; a manifest, for the catalog that `submit` would use; or a run's id, "
            "together with --catalog or --address.",
        ),
    ] = None,
    spec: SpecOption = None,
    catalog: RunCatalogOption = None,
    address: JobServerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a catalog holds, what its latest run did, failed and left, and which run holds it.

    Or show one run: waiting, running, ended, stopped, failed or lost. The
    catalog knows it also when the run's cluster is gone.

    Example: [bold]persres-batch status mugs.parquet[/bold] or
    [bold]persres-batch status 20261122T190501Z-3fa9c1 --address http://127.0.0.1:8265[/bold]
    """
    from ...pipeline.catalog.existing import open_catalog
    from ...pipeline.run.catalog_status import catalog_status

    if subject is None and address is None:
        subject, catalog = catalog, None
    if subject is None:
        raise InvalidInput(
            "`status` needs a catalog, a manifest or a run's id",
            fix="for example `persres-batch status mugs.parquet` after `persres-batch submit mugs.parquet`; "
            "`persres-batch list` lists runs",
        )
    if is_manifest(subject):
        if address is not None:
            raise InvalidInput("--address is for a run's id", fix="give a run's id, or leave --address out")
        chosen = catalog_of_manifest(subject, spec, catalog)
    else:
        _require_no_spec(spec)
        if names_a_run(subject, catalog, address):
            show_run(subject, catalog, address, as_json=as_json)
            return
        chosen = ChosenCatalog(subject)
    fix = {"fix": "submit the manifest first, or give --catalog URI"} if chosen.place else {}
    found = catalog_status(open_catalog(chosen.uri, place=chosen.place, **fix))
    print_choices(chosen.line)
    if found.latest is not None:
        echo(*(f"warning: {warning}" for warning in found.latest.warnings), error=True)
    if as_json:
        echo_document(found.to_json())
    else:
        echo(*status_lines(found))


@app.command()
def report(
    subject: Annotated[
        str,
        typer.Argument(
            metavar="CATALOG|MANIFEST",
            help="A catalog's folder or URI; or a manifest, for the catalog that `submit` would use.",
        ),
    ],
    manifest: Annotated[
        str | None,
        typer.Option(metavar="MANIFEST", help="Show only the concepts of this manifest."),
    ] = None,
    spec: SpecOption = None,
    catalog: CatalogOption = None,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The page to write.")] = Path("report.html"),
    limit: Annotated[int, typer.Option(min=1, help="Show this many concepts, lowest scores first.")] = 200,
) -> None:
    """Write a catalog's references, renderings and scores as one self-contained HTML page.

    Example: [bold]persres-batch report mugs.parquet --out mugs.html[/bold]
    """
    from ...pipeline.run.catalog_report import write_report

    if is_manifest(subject):
        chosen, manifest = catalog_of_manifest(subject, spec, catalog), manifest or subject
        print_choices(chosen.line)
    elif catalog is not None:
        raise InvalidInput("--catalog is for a manifest", fix=f"leave it out, or give a manifest instead of {subject}")
    else:
        _require_no_spec(spec)
        chosen = ChosenCatalog(subject)
    concepts = write_report(chosen.uri, out, manifest_uri=manifest, limit=limit)
    echo(f"wrote {out}: {plural(concepts, 'concept')} in the catalog")


@app.command()
def export(
    catalog: CatalogArgument,
    concept_ids: Annotated[list[str], typer.Argument(metavar="CONCEPT…", help="Ids of committed concepts.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder to write, with a folder a concept.")] = Path(
        "export"
    ),
    force: ForceOption = False,
) -> None:
    """Write committed residuals as files for diffusers, ComfyUI and A1111, and the embeddings of V*.

    Other programs apply a residual everywhere in an image; LAG needs this
    package.

    Example: [bold]persres-batch export mugs-catalog mug-1 mug-2 --out loras[/bold]
    """
    from ...pipeline.catalog.existing import open_catalog
    from ...pipeline.catalog.index import read_committed
    from ...pipeline.export import export_concept, require_exportable

    committed = read_committed(store := open_catalog(catalog))
    missing = [concept_id for concept_id in concept_ids if concept_id not in committed]
    if missing:
        raise InvalidInput(f"{catalog} holds no concept {', '.join(missing)}", fix="see `persres-batch status`")
    require_exportable(concept_ids, out, force=force)
    for concept_id in dict.fromkeys(concept_ids):
        for path in export_concept(store, committed[concept_id], out, force=force):
            echo(str(path))


def status_lines(status: CatalogStatus) -> Iterator[str]:
    """A catalog's status for people."""
    yield f"{status.uri}: {plural(status.concepts, 'concept')} committed, {plural(status.runs, 'run')}"
    latest = status.latest
    if latest is not None:
        counts = f"{latest.done} done, {len(latest.failed)} failed, {latest.left} left of {latest.planned}"
        details = f"{state_text(latest.state)}{busy_text(latest.device_busy_share)}{cost_text(latest.cost)}"
        yield f"latest run {latest.run_id}: {counts} ({details})"
        yield from failure_lines(latest.failed)
        if latest.report:
            yield f"report: {latest.report}"
    if status.holder is None:
        yield "held by nobody"
    else:
        since = utc_text(status.holder.since)
        expired = ", but the lease has expired" if status.holder.expired else ""
        yield f"held by run {status.holder.run_id} of {status.holder.owner} since {since}{expired}"


def _require_no_spec(spec: str | None) -> None:
    if spec is not None:
        raise InvalidInput("--spec is for a manifest", fix="give a manifest, or leave --spec out")
