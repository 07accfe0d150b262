"""The commands about runs by their id: list, logs, stop, and `status RUN`. `cli` makes them its own."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...pipeline.timing import STOP_MARGIN_S, STOP_POLL_S, STOP_TIMEOUT_S
from . import run_text

if TYPE_CHECKING:
    from ...pipeline.run.state import State
    from ..cluster.find_run import FoundRun, Places

app = typer.Typer()


RunArgument = Annotated[str, typer.Argument(metavar="RUN", help=run_text.RUN)]
CatalogOption = Annotated[str | None, typer.Option("--catalog", metavar="URI", help=run_text.CATALOG)]
AddressOption = Annotated[str | None, typer.Option("--address", metavar="ADDR", help=run_text.ADDRESS)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]


@app.command("list", help=run_text.LIST)
def list_command(
    catalog: CatalogOption = None,
    address: AddressOption = None,
    limit: Annotated[int, typer.Option(min=1, help=run_text.LIMIT)] = 20,
    as_json: JsonOption = False,
) -> None:
    from ..cluster.list_runs import list_runs

    places = _places(catalog, address)
    runs = list_runs(places, limit)
    if as_json:
        print(json.dumps([asdict(run) for run in runs], indent=1, sort_keys=True))
    else:
        print("\n".join(run_text.list_lines(runs, with_catalog=places.store is None)))


@app.command(help=run_text.LOGS)
def logs(
    run: RunArgument,
    catalog: CatalogOption = None,
    address: AddressOption = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help=run_text.FOLLOW_LOG)] = False,
) -> None:
    from ...core.errors import InvalidInput
    from ..cluster.find_run import find_run
    from ..cluster.job_log import follow_job
    from ..cluster.job_server import JobRefused
    from ..cluster.submit_job import exit_code_of

    found = find_run(run, _places(catalog, address), _say)
    server, job = found.server, found.job.job if found.job else None
    if server is not None and job is not None:
        if follow:
            raise typer.Exit(exit_code_of(follow_job(server, job, partial(print, flush=True)), _say))
        try:
            print(server.log(job), end="")
            return
        except JobRefused as error:
            _say(f"{error.message}; what the catalog kept of the log:")
    elif follow:
        raise InvalidInput(
            f"the log of run {found.run_id} cannot be followed: only a cluster's job can",
            fix="give its cluster's --address, or leave out --follow",
        )
    _print_kept_log(found)


@app.command(help=run_text.STOP)
def stop(
    run: RunArgument,
    catalog: CatalogOption = None,
    address: AddressOption = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help=run_text.NO_WAIT)] = False,
) -> None:
    from ...pipeline.run.state import OVER
    from ..cluster.find_run import find_run

    found = find_run(run, _places(catalog, address), _say)
    state, _ = _state(found)
    if state in OVER:
        print(f"run {found.run_id} is over already: {state}")
        return
    _ask_to_stop(found)
    if no_wait:
        print(f"run {found.run_id} was asked to stop")
        return
    _say(f"run {found.run_id} was asked to stop; what is in flight is committed first")
    _wait_until_over(found)


def names_a_run(what: str, catalog: str | None, address: str | None) -> bool:
    """Whether `status` was asked about a run, rather than about a catalog."""
    from ...pipeline.run.run_id import RUN_ID

    return catalog is not None or address is not None or RUN_ID.fullmatch(what) is not None


def show_run(run: str, catalog: str | None, address: str | None, *, as_json: bool) -> None:
    """`status RUN`."""
    from ..cluster.find_run import find_run

    found = find_run(run, _places(catalog, address), _say)
    state, status = _state(found)
    if not as_json:
        print("\n".join(run_text.run_lines(found, state, status)))
        return
    values: dict[str, Any] = {"run_id": found.run_id, "catalog": found.store.uri if found.store else None}
    values |= asdict(status) if status else {}
    job = {"address": found.server.address, **asdict(found.job)} if found.job and found.server else None
    print(json.dumps(values | {"state": state, "on_cluster": job}, indent=1, sort_keys=True))


def _places(catalog: str | None, address: str | None) -> Places:
    from ..cluster.find_run import open_places
    from ..cluster.job_server import job_server_address

    return open_places(catalog, job_server_address(address), _say)


def _state(found: FoundRun) -> tuple[State, Any]:
    """A run's state, and what its catalog says of it, if anything."""
    from ...core.errors import StoreError
    from ..cluster.find_run import state_of

    try:
        status = found.catalog_status()
    except StoreError as error:
        if found.job is None:
            raise
        _say(f"the run's catalog cannot be read: {error.message}")
        status = None
    return state_of(found.job, status), status


def _ask_to_stop(found: FoundRun) -> None:
    from ...core.errors import InvalidInput
    from ...pipeline.catalog.lease import owner_here
    from ...pipeline.run.stop_file import ask_to_stop

    if found.server is not None and found.job is not None and found.job.job is not None:
        found.server.stop(found.job.job)
    elif found.store is not None and found.has_begun:
        ask_to_stop(found.store, found.run_id, owner_here())
    else:
        raise InvalidInput(
            f"run {found.run_id} has not begun, and is no job of a cluster that could be told",
            fix="stop it where it was started, or once it has begun",
        )


def _wait_until_over(found: FoundRun) -> None:
    from ...core.errors import PersresError
    from ...pipeline.run.state import OVER

    deadline = time.monotonic() + _stops_within(found)
    while time.monotonic() < deadline:
        time.sleep(STOP_POLL_S)
        found = found.refreshed()
        state, status = _state(found)
        if state in OVER and (found.job is None or found.job.state in OVER):
            print("\n".join(run_text.run_lines(found, state, status)))
            return
    raise PersresError(
        f"run {found.run_id} was asked to stop, and has not within {_stops_within(found):.0f} s",
        fix="look at its log with `persres-batch logs`; if its machine is gone, its lease expires by itself",
    )


def _stops_within(found: FoundRun) -> float:
    """How long a run may take to stop: what its spec grants it, and some more."""
    from ...core.errors import PersresError
    from ...pipeline.spec.run_spec import RunSpec

    if found.store is None or not found.has_begun:
        return STOP_TIMEOUT_S
    path = found.store.run_file(found.run_id, "spec.yaml")
    try:
        spec = RunSpec.from_yaml(found.store.read(path), name=path)
    except PersresError:  # another version's, or forgotten
        return STOP_TIMEOUT_S
    return spec.recovery.grace_seconds + STOP_MARGIN_S


def _print_kept_log(found: FoundRun) -> None:
    from ...core.errors import InvalidInput

    if found.store is None or not found.store.exists(found.store.run_file(found.run_id, "log.jsonl")):
        raise InvalidInput(
            f"run {found.run_id} has left no log in its catalog",
            fix="give the --address of the cluster that carries it out, or look where it was started",
        )
    from ...pipeline.run.log import line_of, read_run_log

    for event in read_run_log(found.store, found.run_id):
        print(line_of(event))


def _say(text: str) -> None:
    print(text, file=sys.stderr)
