"""Submitting a run to a Ray cluster as a job.

Our code travels with the job, so that the cluster needs only its dependencies. The run gets its id before it is sent,
so that it can be looked up even if the connection breaks.
"""

from __future__ import annotations

import json
import math
import secrets
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from ...core.errors import InvalidInput
from ...core.exit_codes import ExitCode
from ...core.timing import JOB_SUBMIT_PAUSE_S, STOP_MARGIN_S
from ...pipeline.run.run_id import later_run_id
from ...pipeline.storage.uri import has_credentials, without_credentials
from ..terminal.output import echo, echo_document
from .code import copy_floors
from .job_log import follow_job
from .job_server import ClusterUnreachable, JobServer, JobServerError
from .run_jobs import JobMetadata, RunJob, job_name, run_job

if TYPE_CHECKING:
    from ...pipeline.spec.run_spec import RunSpec

SUBMIT_ATTEMPTS = 4


@dataclass(frozen=True, slots=True)
class ClusterRun:
    """A run to submit to a cluster: the arguments of `submit` there."""

    manifest_uri: str
    catalog_uri: str
    workers: int | None = None
    device: str = "auto"
    wait: bool = False
    prune: bool = False
    log_format: str = "text"
    run_id: str = field(default_factory=lambda: later_run_id((), datetime.now(UTC), secrets.token_hex(3)))

    @property
    def job(self) -> str:
        """The submission id."""
        return job_name(self.run_id)

    def entrypoint(self) -> str:
        """The job's command: `submit` with the same arguments, on the cluster that it runs in."""
        command = ["python", "-m", "persres.jobs.cli", "submit", self.manifest_uri]
        command += ["--spec", "run.yaml", "--catalog", self.catalog_uri, "--address", "auto", "--device", self.device]
        command += ["--run-id", self.run_id]
        if self.workers is not None:
            command += ["--workers", str(self.workers)]
        command += [option for option, chosen in (("--wait", self.wait), ("--prune", self.prune)) if chosen]
        if self.log_format != "text":
            command += ["--log-format", self.log_format]
        return shlex.join(command)

    def metadata(self) -> JobMetadata:
        """The metadata of the job, which the dashboard shows."""
        return JobMetadata.here(self.run_id, self.manifest_uri, self.catalog_uri)


def submit_to_cluster(
    address: str,
    run: ClusterRun,
    spec: RunSpec,
    *,
    follow: bool = True,
    as_json: bool = False,
    show: Callable[[str], None] | None = None,
) -> int:
    """Submit a run as a Ray job and, with `follow`, print its log until it ends.

    If the cluster has a job with the same submission id and arguments, no second one is started.

    Args:
        address: the cluster's dashboard, such as "http://127.0.0.1:8265". A token in RAY_AUTH_TOKEN or at
            RAY_AUTH_TOKEN_PATH is used as Ray does.
        as_json: at the end, print the ids of run and job and the exit code on standard output, as JSON.
        show: shows everything else; by default on standard output, or on standard error with `as_json`.

    Returns:
        The exit code of `submit` on the cluster; 0 if the job is not followed.

    Raises:
        InvalidInput: no Ray dashboard answers at the address, a path is relative, which the cluster cannot resolve, or
            a URI holds credentials, which everybody who can open the dashboard could read.
        PersresError: the job was not accepted, or cannot be followed any more.
    """
    show = show or partial(echo, error=as_json, flush=True)
    for uri in (run.manifest_uri, run.catalog_uri):
        _require_public(uri)
    server = JobServer(address)
    submit_job(server, run, spec, show)
    show(f"submitted run {run.run_id} to {address}, as job {run.job}")
    code = _follow(server, run, show) if follow else None
    if not follow:
        show("\n".join(next_commands(run.run_id, address)))
    if as_json:
        values = {"run_id": run.run_id, "job": run.job, "address": address, "catalog": run.catalog_uri}
        echo_document(json.dumps(values | {"exit_code": code}, indent=1, sort_keys=True))
    return code or 0


def _follow(server: JobServer, run: ClusterRun, show: Callable[[str], None]) -> int:
    try:
        return exit_code_of(follow_job(server, run.job, show), show)
    except KeyboardInterrupt:
        show("\n".join(["the run continues on the cluster:", *next_commands(run.run_id, server.address)]))
        return ExitCode.INTERRUPTED


def submit_job(server: JobServer, run: ClusterRun, spec: RunSpec, show: Callable[[str], None]) -> None:
    """Submit the run's job, and retry if the cluster does not answer. Retries do not start a second job.

    Raises:
        ClusterUnreachable: the cluster does not answer, after retries either.
        InvalidInput: the cluster has a different job with the same submission id.
        JobServerError: the cluster does not accept the job.
    """
    grace_s = math.ceil(spec.recovery.grace_seconds) + STOP_MARGIN_S
    metadata = run.metadata()
    variables = {"PERSRES_JOB": run.job, "PERSRES_VERSION": metadata.version}
    # By default Ray kills a job three seconds after its SIGTERM; the process that does so reads this variable.
    variables["RAY_JOB_STOP_WAIT_TIME_S"] = str(grace_s)
    with TemporaryDirectory() as folder:
        working_dir = Path(folder, "run")
        working_dir.mkdir()
        (working_dir / "run.yaml").write_text(spec.to_yaml())
        package = str(copy_floors(Path(folder)))
        environment = {"working_dir": str(working_dir), "py_modules": [package], "env_vars": variables}
        for attempts_left in reversed(range(SUBMIT_ATTEMPTS)):
            try:
                server.submit(
                    entrypoint=run.entrypoint(),
                    submission_id=run.job,
                    runtime_env=environment,
                    metadata=metadata.to_ray(),
                )
                return
            except (ClusterUnreachable, JobServerError) as error:
                if "already exists" in error.message:
                    _require_same(server, run)
                    show(f"the cluster has job {run.job} already")
                    return
                # A head that is starting up says "try again".
                is_transient = isinstance(error, ClusterUnreachable) or "try again" in error.message
                if not (is_transient and attempts_left):
                    raise
                show(f"{error.message}; retrying, which starts no second job")
                time.sleep(JOB_SUBMIT_PAUSE_S)


def next_commands(run_id: str, address: str) -> list[str]:
    """The commands for a run that is not followed any more."""
    where = shlex.join(["--address", address])
    return [
        f"its state:  persres-batch status {run_id} {where}",
        f"its log:    persres-batch logs {run_id} --follow {where}",
        f"stop it:    persres-batch stop {run_id} {where}",
    ]


def exit_code_of(job: RunJob, show: Callable[[str], None] = echo) -> int:
    """The exit code of `submit` on the cluster: TERMINATED if Ray stopped it, FAILED if its driver was lost."""
    if job.exit_code is not None:
        return job.exit_code
    if job.state == "stopped":
        show(f"run {job.metadata.run_id} was stopped; submit again to continue, which does only what is missing")
        return ExitCode.TERMINATED
    show(f"run {job.metadata.run_id} was lost: {job.reason or 'Ray gives no reason'}")
    show("submit again to continue, which does only what is missing")
    return ExitCode.FAILED


def _require_public(uri: str) -> None:
    if "://" not in uri and not uri.startswith("/"):
        raise InvalidInput(
            f"{uri!r} is a relative path, which the cluster cannot resolve",
            fix="give a URI such as s3://bucket/manifest.parquet, or an absolute path that every node has",
        )
    if has_credentials(uri):
        raise InvalidInput(
            f"{without_credentials(uri)} was given with a password, key or signature in it: "
            "the dashboard of the cluster would show it",
            fix="give the URI alone; workers find credentials in their environment, a profile or the node's role",
        )


def _require_same(server: JobServer, run: ClusterRun) -> None:
    """Check that the job with this submission id is that of an earlier attempt, whose answer was lost."""
    details = server.job(run.job)
    found = run_job(details) if details else None
    if details is None or found is None or details.entrypoint != run.entrypoint():
        raise InvalidInput(
            f"the cluster at {server.address} has another job named {run.job}",
            fix="submit without --run-id, which makes a new id",
        )
