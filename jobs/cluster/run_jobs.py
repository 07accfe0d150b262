"""The runs that a cluster's job server knows: it loses them with its head node, while the catalog keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from ...core.exit_codes import ExitCode
from ...pipeline.catalog.lease import owner_here
from ...pipeline.run.states import RunState
from ...pipeline.storage.uri import without_credentials
from .code import code_digest, package_version
from .job_server import JobServer

if TYPE_CHECKING:
    from ray.job_submission import JobDetails

JOB_PREFIX = "persres-"


@dataclass(frozen=True, slots=True)
class JobMetadata:
    """The metadata of a run's job. Everybody who can open the dashboard sees it, so it holds no secrets.

    Attributes:
        run_id: as chosen by the submitting machine.
        manifest: its URI, without credentials.
        code: the digest of the code that travels with the job.
        version: of persres-batch.
        owner: who submitted the run, and on which machine.
    """

    run_id: str
    manifest: str
    catalog: str
    code: str = ""
    version: str = ""
    owner: str = ""

    @classmethod
    def here(cls, run_id: str, manifest_uri: str, catalog_uri: str) -> JobMetadata:
        """The metadata of a run that this process starts or submits."""
        manifest = without_credentials(manifest_uri)
        return cls(run_id, manifest, catalog_uri, code_digest(), package_version(), owner_here())

    def to_ray(self) -> dict[str, str]:
        return {name: value for name, value in asdict(self).items() if value}

    @classmethod
    def from_ray(cls, values: Mapping[str, str] | None) -> JobMetadata | None:
        """Parse the metadata of a job; None if it is not the job of a run."""
        values = values or {}
        if not all(values.get(name) for name in ("run_id", "manifest", "catalog")):
            return None
        return cls(**{name: str(values[name]) for name in cls.__dataclass_fields__ if name in values})


@dataclass(frozen=True, slots=True)
class RunJob:
    """A run as its cluster's job server knows it.

    Attributes:
        job: the submission id; None for a driver that was not submitted, which Ray neither logs nor stops.
        state: of the job's driver; "waiting" until the cluster has started it.
        began, ended: seconds since 1970, if known.
        reason: Ray's message about a driver that failed or was lost; else empty.
    """

    job: str | None
    metadata: JobMetadata
    state: RunState
    began: float | None = None
    ended: float | None = None
    exit_code: int | None = None
    reason: str = ""


def job_name(run_id: str) -> str:
    """The submission id of a run. Submitting a run twice gives the same id, and so a single job."""
    return JOB_PREFIX + run_id


def run_jobs(server: JobServer) -> list[RunJob]:
    """All runs that the cluster knows, newest run id first.

    Raises:
        ClusterUnreachable: the job server does not answer.
    """
    found = [job for details in server.jobs() if (job := run_job(details)) is not None]
    return sorted(found, key=lambda job: job.metadata.run_id, reverse=True)


def run_job(details: JobDetails) -> RunJob | None:
    """The run of a job; None if the job is not that of a run."""
    metadata = JobMetadata.from_ray(details.metadata)
    if metadata is None:
        return None
    state = _state(details.status.value, details.driver_exit_code)
    return RunJob(
        job=details.submission_id,
        metadata=metadata,
        state=state,
        began=_seconds(details.start_time),
        ended=_seconds(details.end_time),
        exit_code=0 if details.status.value == "SUCCEEDED" else details.driver_exit_code,
        reason=(details.message or "").strip() if state in ("failed", "lost") else "",
    )


def _state(status: str, exit_code: int | None) -> RunState:
    if status in ("PENDING", "RUNNING"):
        return "waiting" if status == "PENDING" else "running"
    if status == "SUCCEEDED" or exit_code == ExitCode.CONCEPTS_FAILED:
        return "ended"
    if status == "STOPPED" or exit_code in (ExitCode.INTERRUPTED, ExitCode.TERMINATED):
        return "stopped"
    return "lost" if exit_code is None else "failed"


def _seconds(milliseconds: int | None) -> float | None:
    return milliseconds / 1000 if milliseconds else None
