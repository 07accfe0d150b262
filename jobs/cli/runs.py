"""The commands about runs by their id: `list`, `logs` and `stop`, and `status RUN`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...core.errors import InvalidInput, PersresError
from ...core.timing import STOP_MARGIN_S, STOP_POLL_S, STOP_TIMEOUT_S
from ...pipeline.run.states import OVER, RunState
from ..format import format_cost
from ..terminal.output import echo, echo_document
from .options import JobServerOption, JsonOption
from .printing import failure_lines, json_text, state_text

if TYPE_CHECKING:
    from ...pipeline.run.run_status import RunStatus
    from ..cluster.find_run import FoundRun, RunLocations
    from ..cluster.list_runs import ListedRun
    from ..cluster.run_jobs import RunJob

app = typer.Typer()

RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="The run's id.")]
RunCatalogOption = Annotated[
    str | None, typer.Option("--catalog", metavar="URI", help="The catalog that the run writes to: a folder or URI.")
]


@app.command("list")
def list_command(
    catalog: RunCatalogOption = None,
    address: JobServerOption = None,
    limit: Annotated[int, typer.Option(min=1, help="Show this many.")] = 20,
    as_json: JsonOption = False,
) -> None:
    """List the runs of a catalog, of a cluster, or of both, newest first.

    Example: [bold]persres-batch list --catalog s3://bucket/mugs[/bold]
    """
    from ..cluster.list_runs import list_runs

    places = _places(catalog, address)
    runs = list_runs(places, limit)
    _warn(*(warning for run in runs for warning in run.warnings))
    if as_json:
        echo_document(json_text(runs))
    else:
        echo(*_list_lines(runs, with_catalog=places.store is None))


@app.command()
def logs(
    run: RunArgument,
    catalog: RunCatalogOption = None,
    address: JobServerOption = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Print until the run has ended.")] = False,
) -> None:
    """Print a run's log: from its cluster, or from its catalog when the cluster is gone.

    With --follow, print until the run has ended, and exit with its exit code.

    Example: [bold]persres-batch logs 20261122T190501Z-3fa9c1 --follow --address http://127.0.0.1:8265[/bold]
    """
    from ..cluster.find_run import find_run
    from ..cluster.job_log import follow_job
    from ..cluster.job_server import JobServerError
    from ..cluster.submit_job import exit_code_of

    found = find_run(run, _places(catalog, address), _notify)
    server, job = found.server, found.job.job if found.job else None
    if server is not None and job is not None:
        if follow:
            raise typer.Exit(exit_code_of(follow_job(server, job, partial(echo, flush=True)), _notify))
        try:
            echo(*server.log(job).splitlines())
            return
        except JobServerError as error:
            _notify(f"{error.message}; the catalog's copy of the log:")
    elif follow:
        raise InvalidInput(
            f"the log of run {found.run_id} cannot be followed: only a cluster's job can",
            fix="give its cluster's --address, or leave out --follow",
        )
    _print_stored_log(found)


@app.command()
def stop(
    run: RunArgument,
    catalog: RunCatalogOption = None,
    address: JobServerOption = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Do not wait until the run has stopped.")] = False,
) -> None:
    """Stop a run: it commits the work in flight, and submitting again continues from there.

    On a cluster, its job is stopped. With --catalog alone, a stop request is
    written to the catalog; any run obeys it within seconds, on any machine.

    Example: [bold]persres-batch stop 20261122T190501Z-3fa9c1 --catalog s3://bucket/mugs[/bold]
    """
    from ..cluster.find_run import find_run

    found = find_run(run, _places(catalog, address), _notify)
    state, _ = _state(found)
    if state in OVER:
        echo(f"run {found.run_id} is over already: {state}")
        return
    _request_stop(found)
    if no_wait:
        echo(f"run {found.run_id} was asked to stop")
        return
    _notify(f"run {found.run_id} was asked to stop; it commits the work in flight first")
    _wait_until_over(found)


def names_a_run(subject: str, catalog: str | None, address: str | None) -> bool:
    """Whether the argument of `status` names a run rather than a catalog."""
    from ...pipeline.run.run_id import RUN_ID

    return catalog is not None or address is not None or RUN_ID.fullmatch(subject) is not None


def show_run(run: str, catalog: str | None, address: str | None, *, as_json: bool) -> None:
    """Print the status of one run."""
    from ..cluster.find_run import find_run

    found = find_run(run, _places(catalog, address), _notify)
    state, status = _state(found)
    _warn(*(status.warnings if status else ()))
    if not as_json:
        echo(*_run_lines(found, state, status))
        return
    values: dict[str, Any] = {"run_id": found.run_id, "catalog": found.store.uri if found.store else None}
    values |= asdict(status) if status else {}
    job = {"address": found.server.address, **asdict(found.job)} if found.job and found.server else None
    echo_document(json_text(values | {"state": state, "on_cluster": job}))


def _places(catalog: str | None, address: str | None) -> RunLocations:
    from ..cluster.find_run import open_locations
    from ..cluster.job_server import job_server_address

    return open_locations(catalog, job_server_address(address), _notify)


def _state(found: FoundRun) -> tuple[RunState, RunStatus | None]:
    """A run's state, and its status in the catalog, if the catalog has one."""
    from ...core.errors import StoreError
    from ..cluster.find_run import combined_state

    try:
        status = found.catalog_status()
    except StoreError as error:
        if found.job is None:
            raise
        _notify(f"the run's catalog cannot be read: {error.message}")
        status = None
    return combined_state(found.job, status), status


def _request_stop(found: FoundRun) -> None:
    from ...pipeline.catalog.lease import owner_here
    from ...pipeline.run.stop_file import write_stop_file

    if found.server is not None and found.job is not None and found.job.job is not None:
        found.server.stop(found.job.job)
    elif found.store is not None and found.has_begun:
        write_stop_file(found.store, found.run_id, owner_here())
    else:
        raise InvalidInput(
            f"run {found.run_id} has not begun, and is no cluster's job that could be stopped",
            fix="stop it where it was started, or once it has begun",
        )


def _wait_until_over(found: FoundRun) -> None:
    deadline = time.monotonic() + _stop_timeout_s(found)
    while time.monotonic() < deadline:
        time.sleep(STOP_POLL_S)
        found = found.refreshed()
        state, status = _state(found)
        if state in OVER and (found.job is None or found.job.state in OVER):
            echo(*_run_lines(found, state, status))
            return
    raise PersresError(
        f"run {found.run_id} was asked to stop, and has not within {_stop_timeout_s(found):.0f} s",
        fix="read its log with `persres-batch logs`; if its machine is gone, its lease expires by itself",
    )


def _stop_timeout_s(found: FoundRun) -> float:
    """How long a run may take to stop: the grace period of its run spec, and a margin."""
    from ...pipeline.catalog.layout import RunPaths
    from ...pipeline.spec.run_spec import RunSpec

    if found.store is None or not found.has_begun:
        return STOP_TIMEOUT_S
    path = RunPaths(found.run_id).spec
    try:
        spec = RunSpec.from_yaml(found.store.read(path), name=path)
    except (PersresError, RecursionError):  # written by another version, removed by `forget`, or damaged
        return STOP_TIMEOUT_S
    return spec.recovery.grace_seconds + STOP_MARGIN_S


def _print_stored_log(found: FoundRun) -> None:
    from ...pipeline.catalog.layout import RunPaths
    from ...pipeline.run.log import format_event, read_run_log

    if found.store is None or not found.store.exists(RunPaths(found.run_id).log):
        raise InvalidInput(
            f"run {found.run_id} has no log in its catalog",
            fix="give the --address of its cluster, or look where it was started",
        )
    for event in read_run_log(found.store, found.run_id):
        echo(format_event(event))


def _warn(*warnings: str) -> None:
    echo(*(f"warning: {warning}" for warning in warnings), error=True)


def _notify(text: str) -> None:
    echo(text, error=True)


def _list_lines(runs: Sequence[ListedRun], *, with_catalog: bool) -> Iterator[str]:
    """One line for each run; `with_catalog`: they may be of several catalogs."""
    if not runs:
        yield "no runs"
    for run in runs:
        counts = "" if run.planned is None else f"{run.done} done, {run.failed} failed of {run.planned}"
        source = f"{run.manifest} -> {run.catalog}" if with_catalog else run.manifest
        yield f"{run.run_id}  {run.state:9}  {counts:28}  {source}".rstrip()


def _run_lines(found: FoundRun, state: RunState, status: RunStatus | None) -> Iterator[str]:
    """One run for people."""
    yield f"run {found.run_id}: {state_text(state)}"
    if status is not None:
        yield f"{status.done} done, {len(status.failed)} failed, {status.left} left of {status.planned}"
        if status.cost is not None:
            yield f"cost: {format_cost(status.cost)}"
    if state == "waiting" and found.job is not None:
        if found.job.state == "running":
            yield "it reads its manifest, or waits for another run that holds the catalog: see its log"
        else:
            yield "the cluster has not started it yet"
    reason = (status.reason if status else "") or (found.job.reason if found.job else "")
    if reason and not reason.startswith("stopped run"):
        yield f"because: {reason}"
    yield from _origin_lines(found, status)
    if status is not None:
        yield from failure_lines(status.failed)
        if status.report:
            yield f"report: {status.report}"


def _origin_lines(found: FoundRun, status: RunStatus | None) -> Iterator[str]:
    """A run's job, manifest and catalog."""
    job: RunJob | None = found.job
    if job is not None and found.server is not None:
        exit_code = "" if job.exit_code is None else f", exit code {job.exit_code}"
        yield f"job {job.job or '(not submitted)'} at {found.server.address}: {job.state}{exit_code}"
        yield f"submitted by {job.metadata.owner} as version {job.metadata.version} (code {job.metadata.code})"
    elif status is not None and status.job:
        yield f"it was job {status.job} of a cluster"
    yield f"manifest: {status.manifest if status else job.metadata.manifest if job else ''}"
    yield f"catalog: {found.store.uri if found.store else job.metadata.catalog if job else ''}"
