"""The runs that a cluster's job server knows. It forgets them with its head node; the catalog does not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from ...pipeline.catalog.lease import owner_here
from ...pipeline.manifest.row import without_credentials
from ...pipeline.run.state import State
from .code import code_digest, package_version
from .job_server import JobServer

if TYPE_CHECKING:
    from ray.job_submission import JobDetails

JOB_PREFIX = "persres-"
_STOPPED = (130, 143)
_CONCEPTS_FAILED = 3


@dataclass(frozen=True, slots=True)
class JobMetadata:
    """What a job says of its run to whoever may look at the dashboard: nothing secret.

    Attributes:
        run_id: the run's, as the submitting machine named it.
        manifest: without credentials.
        code: digest of the code that travels with the job.
        version: of persres-batch.
        owner: who submitted it, and where.
    """

    run_id: str
    manifest: str
    catalog: str
    code: str = ""
    version: str = ""
    owner: str = ""

    @classmethod
    def here(cls, run_id: str, manifest_uri: str, catalog_uri: str) -> JobMetadata:
        """Of a run that this process starts or submits, with the code that it has itself."""
        manifest = without_credentials(manifest_uri)
        return cls(run_id, manifest, catalog_uri, code_digest(), package_version(), owner_here())

    def to_ray(self) -> dict[str, str]:
        return {name: value for name, value in asdict(self).items() if value}

    @classmethod
    def from_ray(cls, told: Mapping[str, str] | None) -> JobMetadata | None:
        """None if the job is not one of ours."""
        told = told or {}
        if not all(told.get(name) for name in ("run_id", "manifest", "catalog")):
            return None
        return cls(**{name: str(told[name]) for name in cls.__dataclass_fields__ if name in told})


@dataclass(frozen=True, slots=True)
class RunJob:
    """A run as its cluster sees it.

    Attributes:
        job: its submission id; None for a driver that was not submitted, whose log and life are not in Ray's hands.
        state: "waiting" for a place on the cluster, "under way", or how the driver ended.
        began, ended: seconds since 1970, where known.
        reason: what Ray says of its end; empty if there is nothing to say.
    """

    job: str | None
    metadata: JobMetadata
    state: State
    began: float | None = None
    ended: float | None = None
    exit_code: int | None = None
    reason: str = ""


def job_name(run_id: str) -> str:
    """A run's submission id. Two submissions of one run have the same, so that there is one job however often."""
    return JOB_PREFIX + run_id


def run_jobs(server: JobServer) -> list[RunJob]:
    """All runs that the cluster knows, by run id, the newest first.

    Raises:
        ClusterAway: nobody answers.
    """
    found = [job for details in server.jobs() if (job := run_job(details)) is not None]
    return sorted(found, key=lambda job: job.metadata.run_id, reverse=True)


def run_job(details: JobDetails) -> RunJob | None:
    """A job's run; None if it is not one of ours."""
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
        reason=(details.message or "").strip() if state in ("failed", "died") else "",
    )


def _state(status: str, exit_code: int | None) -> State:
    if status in ("PENDING", "RUNNING"):
        return "waiting" if status == "PENDING" else "under way"
    if status == "SUCCEEDED" or exit_code == _CONCEPTS_FAILED:
        return "ended"
    if status == "STOPPED" or exit_code in _STOPPED:
        return "stopped"
    return "died" if exit_code is None else "failed"


def _seconds(milliseconds: int | None) -> float | None:
    return milliseconds / 1000 if milliseconds else None
