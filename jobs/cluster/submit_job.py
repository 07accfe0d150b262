"""Hand a run to a Ray cluster as a job: our own code travels with it, and nothing has to be installed there but the
dependencies. The run has its name before it is sent, and can be asked for whatever becomes of the connection."""

from __future__ import annotations

import json
import math
import re
import secrets
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ...core.errors import InvalidInput
from ...pipeline.manifest.row import without_credentials
from ...pipeline.run.run_id import later_run_id
from ...pipeline.timing import JOB_SUBMIT_PAUSE_S, STOP_MARGIN_S
from .code import copy_floors
from .job_log import follow_job
from .job_server import ClusterAway, JobRefused, JobServer
from .run_jobs import JobMetadata, RunJob, job_name, run_job

if TYPE_CHECKING:
    from ...pipeline.spec.run_spec import RunSpec

TRIES = 4
_SECRET_NAMES = re.compile(r"(?i)(^|[&;_-])(sig|signature|token|secret|password|credential|key)=")


@dataclass(frozen=True, slots=True)
class ClusterRun:
    """What the job is asked to do: the arguments of `submit`, as the cluster sees them."""

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
        """Its submission id."""
        return job_name(self.run_id)

    def entrypoint(self) -> str:
        """The job's command: the same `submit`, told to use the cluster it finds itself in."""
        command = ["python", "-m", "persres.jobs.cli", "submit", self.manifest_uri]
        command += ["--spec", "run.yaml", "--catalog", self.catalog_uri, "--address", "auto", "--device", self.device]
        command += ["--run-id", self.run_id]
        if self.workers is not None:
            command += ["--workers", str(self.workers)]
        command += [option for option, asked in (("--wait", self.wait), ("--prune", self.prune)) if asked]
        if self.log_format != "text":
            command += ["--log-format", self.log_format]
        return shlex.join(command)

    def metadata(self) -> JobMetadata:
        """What the dashboard shows of it."""
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

    Submitting a run that the cluster has already, under the same name and with the same arguments, starts nothing.

    Args:
        address: the cluster's dashboard, such as "http://127.0.0.1:8265". A token in RAY_AUTH_TOKEN or at
            RAY_AUTH_TOKEN_PATH is used as Ray does.
        as_json: at the end print on standard output, as JSON, which run and job it was and how it exited.
        show: where all else is shown; by default standard output, or standard error with `as_json`.

    Returns:
        The exit code of `submit` on the cluster; 0 if the job is not followed.

    Raises:
        InvalidInput: there is no Ray dashboard at the address, a path is relative, which means nothing over there, or
            a URI holds a password, which everybody who sees the dashboard could read.
        PersresError: the job was lost sight of, or ended without an exit code, for example because it was stopped.
    """
    show = show or partial(print, file=sys.stderr if as_json else sys.stdout, flush=True)
    for uri in (run.manifest_uri, run.catalog_uri):
        _require_public(uri)
    server = JobServer(address)
    submit_job(server, run, spec, show)
    show(f"submitted run {run.run_id} to {address}, as job {run.job}")
    code = _follow(server, run, show) if follow else None
    if not follow:
        show("\n".join(how_to_go_on(run.run_id, address)))
    if as_json:
        told = {"run_id": run.run_id, "job": run.job, "address": address, "catalog": run.catalog_uri, "exit_code": code}
        print(json.dumps(told, indent=1, sort_keys=True))
    return code or 0


def _follow(server: JobServer, run: ClusterRun, show: Callable[[str], None]) -> int:
    try:
        return exit_code_of(follow_job(server, run.job, show), show)
    except KeyboardInterrupt:
        show("\n".join(["the run goes on without you:", *how_to_go_on(run.run_id, server.address)]))
        return 130


def submit_job(server: JobServer, run: ClusterRun, spec: RunSpec, show: Callable[[str], None]) -> None:
    """Hand the run over, and again if the answer was lost. There is one job, however often it is tried.

    Raises:
        ClusterAway: the cluster did not answer, nor a while later.
        InvalidInput: it has another job of that name.
        JobRefused: it does not take the job.
    """
    grace_s = math.ceil(spec.recovery.grace_seconds) + STOP_MARGIN_S
    metadata = run.metadata()
    variables = {"PERSRES_JOB": run.job, "PERSRES_VERSION": metadata.version}
    # Ray kills a job three seconds after it has asked it to stop; this is read by the process that does so.
    variables["RAY_JOB_STOP_WAIT_TIME_S"] = str(grace_s)
    with TemporaryDirectory() as folder:
        working_dir = Path(folder, "run")
        working_dir.mkdir()
        (working_dir / "run.yaml").write_text(spec.to_yaml())
        package = str(copy_floors(Path(folder)))
        environment = {"working_dir": str(working_dir), "py_modules": [package], "env_vars": variables}
        for tries_left in reversed(range(TRIES)):
            try:
                server.submit(
                    entrypoint=run.entrypoint(),
                    submission_id=run.job,
                    runtime_env=environment,
                    metadata=metadata.to_ray(),
                )
                return
            except (ClusterAway, JobRefused) as error:
                if "already exists" in error.message:
                    _require_same(server, run)
                    show(f"the cluster has job {run.job} already")
                    return
                in_passing = isinstance(error, ClusterAway) or "try again" in error.message  # a head that comes up
                if not (in_passing and tries_left):
                    raise
                show(f"{error.message}; trying again, which starts no second job")
                time.sleep(JOB_SUBMIT_PAUSE_S)


def how_to_go_on(run_id: str, address: str) -> list[str]:
    """The commands for a run that nobody looks at any more."""
    where = shlex.join(["--address", address])
    return [
        f"how it goes:   persres-batch status {run_id} {where}",
        f"what it says:  persres-batch logs {run_id} --follow {where}",
        f"stop it:       persres-batch stop {run_id} {where}",
    ]


def exit_code_of(job: RunJob, show: Callable[[str], None] = print) -> int:
    """What `submit` on the cluster exited with: 143 if Ray stopped it, 1 if it died without a word."""
    if job.exit_code is not None:
        return job.exit_code
    if job.state == "stopped":
        show(f"run {job.metadata.run_id} was stopped; submit again to go on, which does only what is missing")
        return 143
    show(f"run {job.metadata.run_id} died: {job.reason or 'Ray does not say why'}")
    show("submit again: only what is missing is done")
    return 1


def holds_credentials(uri: str) -> bool:
    """Whether a URI has a password, a key or a signature in it.

    A name alone before the @ is none on stores that put a container's name there, such as abfs://container@account.
    """
    try:
        parts = urlsplit(uri)
    except ValueError:  # not a URI after all
        return False
    is_web = parts.scheme in ("http", "https", "ftp")
    return bool(parts.password or (is_web and parts.username) or _SECRET_NAMES.search(parts.query))


def _require_public(uri: str) -> None:
    if "://" not in uri and not uri.startswith("/"):
        raise InvalidInput(
            f"{uri!r} is a relative path, which the cluster cannot find",
            fix="give a URI such as s3://bucket/manifest.parquet, or an absolute path that every node has",
        )
    if holds_credentials(uri):
        raise InvalidInput(
            f"{without_credentials(uri)} was given with a password, key or signature inside: "
            "the dashboard of the cluster would show it",
            fix="give the URI alone; workers find credentials in their environment, a profile or the node's role",
        )


def _require_same(server: JobServer, run: ClusterRun) -> None:
    """The job that has our run's name is our run's: an earlier try's, whose answer was lost."""
    details = server.job(run.job)
    found = run_job(details) if details else None
    if details is None or found is None or details.entrypoint != run.entrypoint():
        raise InvalidInput(
            f"the cluster at {server.address} has another job named {run.job}",
            fix="submit without --run-id, which makes a new name",
        )
