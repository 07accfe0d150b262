"""What the commands about runs print: their help, and lines about a run's state."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ..format import cost_words

if TYPE_CHECKING:
    from ...pipeline.run.state import RunStatus, State
    from ..cluster.find_run import FoundRun
    from ..cluster.list_runs import ListedRun
    from ..cluster.run_jobs import RunJob

FAILURES_SHOWN = 10

LIST = """List runs, the newest first: of a catalog, of a cluster, or of a catalog with what its cluster knows besides.

Example: [bold]persres-batch list --catalog s3://bucket/mugs[/bold]"""

LOGS = """Print what a run has said: on its cluster while that stands, from its catalog when it is gone.

With --follow until the run has ended, and with the exit code of the run.

Example: [bold]persres-batch logs 20261122T190501Z-3fa9c1 --follow --address http://127.0.0.1:8265[/bold]"""

STOP = """Stop a run: what is in flight is committed first, and submitting again goes on from there.

A run on a cluster is stopped by that. With --catalog alone a word is left in the catalog, which any run heeds within
seconds, on whatever machine it is.

Example: [bold]persres-batch stop 20261122T190501Z-3fa9c1 --catalog s3://bucket/mugs[/bold]"""

RUN = "The run's id."
CATALOG_OR_RUN = "The catalog's folder or URI; or a run's id, together with --catalog or --address."
CATALOG = "The catalog that the run writes to: a folder or URI."
ADDRESS = "The cluster's dashboard, such as http://127.0.0.1:8265. Default: RAY_ADDRESS, if that is one."
FOLLOW_LOG = "Go on until the run has ended."
LIMIT = "Show this many."
NO_WAIT = "Do not wait until the run has stopped."
RUN_ID = "The run's name, for a scheduler that submits the same run again when it has got no answer."
FOLLOW = "On a cluster: print the run's log until it ends, and exit as it does; or only say how to ask for it."

LOG_FORMAT = (
    "What is printed while the run goes on, on standard error: lines for people, or every event as a line of JSON "
    "with run, shard and concept ids. The catalog keeps the latter either way."
)

_WORDS: dict[State, str] = {
    "waiting": "waiting",
    "under way": "under way",
    "ended": "ended",
    "stopped": "stopped: submit again to go on",
    "failed": "failed: submit again to go on",
    "died": "did not end: submit again to go on",
}


def state_words(state: State) -> str:
    """A state, and what to do about it."""
    return _WORDS[state]


def list_lines(runs: Sequence[ListedRun], *, with_catalog: bool) -> Iterator[str]:
    """A line a run; `with_catalog`: they may be of several catalogs."""
    if not runs:
        yield "no runs"
    for run in runs:
        counts = "" if run.planned is None else f"{run.done} done, {run.failed} failed of {run.planned}"
        where = f"{run.manifest} -> {run.catalog}" if with_catalog else run.manifest
        yield f"{run.run_id}  {run.state:9}  {counts:28}  {where}".rstrip()


def run_lines(found: FoundRun, state: State, status: RunStatus | None) -> Iterator[str]:
    """All about one run."""
    yield f"run {found.run_id}: {state_words(state)}"
    if status is not None:
        yield f"{status.done} done, {len(status.failed)} failed, {status.left} left of {status.planned}"
        if status.cost is not None:
            yield f"cost: {cost_words(status.cost)}"
    if state == "waiting":
        yield from _why_waiting(found.job)
    reason = (status.reason if status else "") or (found.job.reason if found.job else "")
    if reason and not reason.startswith("stopped run"):
        yield f"because: {reason}"
    if found.job is not None and found.server is not None:
        told, code = found.job.metadata, found.job.exit_code
        ended = "" if code is None else f", exit code {code}"
        yield f"job {found.job.job or '(not submitted)'} at {found.server.address}: {found.job.state}{ended}"
        yield f"submitted by {told.owner} as version {told.version} (code {told.code})"
    elif status is not None and status.job:
        yield f"it was job {status.job} of a cluster"
    manifest = status.manifest if status else found.job.metadata.manifest if found.job else ""
    yield f"manifest: {manifest}"
    catalog = found.store.uri if found.store else found.job.metadata.catalog if found.job else ""
    yield f"catalog: {catalog}"
    if status is not None:
        for failure in status.failed[:FAILURES_SHOWN]:
            yield f"  failed: {failure.concept_id} ({failure.stage}): {failure.reason}"
        if len(status.failed) > FAILURES_SHOWN:
            yield f"  … and {len(status.failed) - FAILURES_SHOWN} more"
        if status.report:
            yield f"report: {status.report}"


def _why_waiting(job: RunJob | None) -> Iterator[str]:
    if job is not None and job.state == "under way":
        yield "it reads its manifest, or another run holds the catalog: its log tells"
    elif job is not None:
        yield "the cluster has not started it yet"
