"""A client for the job server of a Ray cluster, with our errors.

It uses the dashboard's HTTP API, so that any machine will do that has the token and can reach the dashboard.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from ...core.errors import InvalidInput, PersresError
from ...core.timing import JOB_SERVER_TIMEOUT_S

if TYPE_CHECKING:  # importing it takes a second or more
    from ray.job_submission import JobDetails, JobSubmissionClient

T = TypeVar("T")


class ClusterUnreachable(InvalidInput):
    """No job server answers at an address: the address is wrong, the tunnel is closed, or the cluster is gone."""


class JobServerError(PersresError):
    """The job server answered a request with an error."""


class JobServer:
    """The jobs of a cluster.

    Every method raises `ClusterUnreachable` if the job server does not answer, and `InvalidInput` if the token is
    missing or wrong.

    Args:
        address: of the dashboard, such as "http://127.0.0.1:8265". A token in RAY_AUTH_TOKEN or at RAY_AUTH_TOKEN_PATH
            is used as Ray does.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        try:
            self._client = self._call(lambda: _client(address))
        except (JobServerError, ValueError) as error:  # some other server, or not an address
            raise self._unreachable(error) from error

    def submit(
        self, *, entrypoint: str, submission_id: str, runtime_env: Mapping[str, Any], metadata: Mapping[str, str]
    ) -> None:
        """Submit a job.

        Raises:
            JobServerError: a job of this submission id exists, or the cluster cannot accept the job.
        """
        self._call(
            lambda: self._client.submit_job(
                entrypoint=entrypoint,
                submission_id=submission_id,
                runtime_env=dict(runtime_env),
                metadata=dict(metadata),
            )
        )

    def job(self, submission_id: str) -> JobDetails | None:
        """The details of a job; None if the cluster does not know it, as after a restart of its head."""
        try:
            return self._call(lambda: self._client.get_job_info(submission_id))
        except JobServerError as error:
            if "does not exist" in str(error) or "status code 404" in str(error):
                return None
            raise

    def jobs(self) -> Sequence[JobDetails]:
        """All jobs that the cluster knows, whoever submitted them, ended ones included."""
        return self._call(self._client.list_jobs)

    def log(self, submission_id: str) -> str:
        """The output of a job so far.

        Raises:
            JobServerError: there is no such job, or its log is gone with its node.
        """
        return self._call(lambda: self._client.get_job_logs(submission_id))

    def tail_log(self, submission_id: str) -> AsyncIterator[str]:
        """The output of a job from its beginning, in chunks, as it grows; raises the errors of Ray's client."""
        return self._client.tail_job_logs(submission_id)

    def stop(self, submission_id: str) -> bool:
        """Request that a job stops. Returns at once, with whether it was running.

        Raises:
            JobServerError: there is no such job.
        """
        return self._call(lambda: self._client.stop_job(submission_id))

    def _call(self, call: Callable[[], T]) -> T:
        import requests
        from ray.exceptions import AuthenticationError

        try:
            return call()
        except AuthenticationError:
            raise InvalidInput(
                f"the Ray cluster at {self.address} did not accept this user's token, or was given none",
                fix="set RAY_AUTH_MODE=token, and the cluster's token in RAY_AUTH_TOKEN or in the file at "
                "RAY_AUTH_TOKEN_PATH (by default ~/.ray/auth_token)",
            ) from None
        except (requests.RequestException, ConnectionError) as error:
            raise self._unreachable(error) from error
        except RuntimeError as error:
            raise JobServerError(
                f"the Ray cluster at {self.address} refused: {_reason(error)}",
                fix="look at its dashboard, and check that its Ray has the version of this machine's",
            ) from error

    def _unreachable(self, error: Exception) -> ClusterUnreachable:
        return ClusterUnreachable(
            f"no Ray cluster answers at {self.address}: {_reason(error)}",
            fix="give the dashboard's address, such as http://127.0.0.1:8265 behind `ray dashboard cluster.yaml`",
        )


def job_server_address(given: str | None) -> str | None:
    """The address of the job server to use: `given`, else RAY_ADDRESS if it is one; None if neither is.

    Raises:
        InvalidInput: `given` is not a job server's address, but for example that of a cluster's GCS.
    """
    if given is not None and not is_job_server(given):
        raise InvalidInput(
            f"{given!r} is not the address of a Ray job server",
            fix="give the dashboard's, which begins with http:// or https://, such as http://127.0.0.1:8265",
        )
    from_environment = os.environ.get("RAY_ADDRESS", "")
    return given or (from_environment if is_job_server(from_environment) else None)


def is_job_server(address: str) -> bool:
    """Whether an address is that of a job server. Any other is that of a cluster which this process can join."""
    return address.startswith(("http://", "https://"))


def _client(address: str) -> JobSubmissionClient:
    from ray.job_submission import JobSubmissionClient

    # They log every package that is uploaded and every socket that is closed.
    for verbose in ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk", "_private.runtime_env.packaging"):
        logging.getLogger(f"ray.{verbose}").setLevel(logging.WARNING)

    class Client(JobSubmissionClient):
        def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
            return super()._do_request(method, endpoint, **{"timeout": JOB_SERVER_TIMEOUT_S, **options})

    return Client(address)


def _reason(error: BaseException) -> str:
    """The last line of an error, where Ray names the reason: it sends tracebacks."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" .")]
    return lines[-1][:300] if lines else type(error).__name__
