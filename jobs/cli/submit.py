"""The command `submit`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ...core.errors import InvalidInput
from ...core.exit_codes import ExitCode
from ..terminal.output import echo
from .options import (
    CatalogOption,
    DeviceOption,
    JsonOption,
    ManifestArgument,
    PruneOption,
    SpecOption,
    WorkersOption,
)
from .plan import print_plan
from .printing import print_choices, summary_lines
from .targets import choose_catalog, choose_spec

if TYPE_CHECKING:
    from ..submit import FinishedRun

app = typer.Typer()


@app.command(
    epilog=f"Exits with {ExitCode.OK}, or {ExitCode.CONCEPTS_FAILED} if concepts failed; `persres-batch --help` lists "
    "all exit codes."
)
def submit(
    manifest: ManifestArgument,
    spec: SpecOption = None,
    catalog: CatalogOption = None,
    workers: WorkersOption = None,
    address: Annotated[
        str | None,
        typer.Option(
            metavar="ADDR",
            help="A Ray cluster's dashboard, such as http://127.0.0.1:8265, to run there as a job. Any other address, "
            "such as auto: a cluster that this machine belongs to. Default: RAY_ADDRESS, else an embedded Ray on this "
            "machine.",
        ),
    ] = None,
    device: DeviceOption = "auto",
    dashboard: Annotated[
        bool,
        typer.Option(
            "--dashboard",
            help="Serve the embedded Ray's dashboard on http://127.0.0.1:8265, and print where its token is.",
        ),
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="While another run holds the catalog, wait for it to end.")
    ] = False,
    prune: PruneOption = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print the plan, as `plan` does.")] = False,
    follow: Annotated[
        bool,
        typer.Option(
            "--follow/--no-follow",
            help="On a cluster: print the run's log until it ends, and exit with its exit code; or only submit.",
        ),
    ] = True,
    run_id: Annotated[
        str | None,
        typer.Option(hidden=True, help="The run's id, for a scheduler that submits a run again if it got no answer."),
    ] = None,
    webhook: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Post the run's end as JSON to this http(s):// address. Such an address is usually a secret: set "
            "PERSRES_WEBHOOK instead, and for a run on a cluster set it there.",
        ),
    ] = None,
    log_format: Annotated[
        Literal["text", "json"],
        typer.Option(
            envvar="PERSRES_LOG_FORMAT",
            help="Progress on standard error: lines for people, or every event as a line of JSON with run, shard and "
            "concept ids. The catalog always keeps the latter.",
        ),
    ] = "text",
    as_json: JsonOption = False,
) -> None:
    """Bring a catalog up to date with a manifest: train and render what is new or changed.

    Concepts that fail are listed with a reason; the others are finished.
    After a crash or Ctrl-C, submit again: committed concepts stay. The first
    Ctrl-C commits the work in flight, the second stops at once.

    Example: [bold]persres-batch submit mugs.parquet[/bold]

    On a cluster: [bold]persres-batch submit s3://bucket/mugs.parquet --address http://127.0.0.1:8265[/bold]
    """
    from ...pipeline.run.run_id import require_run_id
    from ..cluster.job_server import is_job_server
    from ..cluster.placement import Placement
    from ..observe.webhook import find_webhook
    from .outcome import SubmitResult, reporting

    address = address or os.environ.get("RAY_ADDRESS")
    on_cluster = address is not None and is_job_server(address)
    with reporting(SubmitResult(manifest, catalog), as_json=as_json) as result:
        result.webhook = None if dry_run else find_webhook(webhook, on_cluster=on_cluster)
        chosen_spec = choose_spec(manifest, spec)
        result.spec = chosen_spec.name
        chosen_catalog = choose_catalog(manifest, catalog, chosen_spec)
        result.catalog = catalog_uri = chosen_catalog.uri
        print_choices(chosen_spec.line, chosen_catalog.line, log_format=log_format)
        run_id = require_run_id(run_id) if run_id else None
        if dry_run:
            where = Placement(workers, device=device)
            print_plan(manifest, chosen_spec, chosen_catalog, where, prune=prune, as_json=as_json)
        elif on_cluster:
            from ..cluster.submit_job import ClusterRun, submit_to_cluster

            choices: dict[str, Any] = {"wait": wait, "prune": prune, "log_format": log_format}
            if run_id:
                choices["run_id"] = run_id
            run = ClusterRun(manifest, catalog_uri, workers, device, **choices)
            result.run_id = run.run_id
            raise typer.Exit(submit_to_cluster(address or "", run, chosen_spec.spec, follow=follow, as_json=as_json))
        elif not follow:
            fix = "give the --address of its dashboard, or leave it out"
            raise InvalidInput("--no-follow is for a run on a cluster", fix=fix)
        else:
            from ..submit import submit_local

            if address not in (None, "auto"):
                os.environ["RAY_ADDRESS"] = address  # the address that Ray joins for `auto`
            finished = submit_local(
                manifest,
                chosen_spec.spec,
                catalog_uri,
                placement=Placement(workers, device=device, join_cluster=address is not None, dashboard=dashboard),
                wait=wait,
                prune=prune,
                run_id=run_id,
                on_run=result.start,
                log_format=log_format,
            )
            result.finish(finished, report_of(finished, catalog_uri))
            if not as_json:
                print_summary(finished, result.report)
    raise typer.Exit(result.exit_code)


def report_of(finished: FinishedRun, catalog: str) -> str | None:
    """The run's report; if it wrote none, the report of the latest run that did."""
    from ...pipeline.catalog.store import CatalogStore
    from ...pipeline.run.catalog_status import latest_report

    return finished.report or latest_report(CatalogStore(catalog))


def print_summary(finished: FinishedRun, report: str | None) -> None:
    """Print how a run ended."""
    echo(*summary_lines(finished.summary, report, pruned=finished.pruned))
