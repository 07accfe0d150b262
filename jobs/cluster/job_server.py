"""A Ray cluster's job server, as the commands talk to it: reached, refused for want of a token, or away.

Everything goes over the dashboard's HTTP API, so that any machine with the token and a way to the dashboard will do.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from ...core.errors import InvalidInput, PersresError
from ...pipeline.timing import JOB_SERVER_TIMEOUT_S

if TYPE_CHECKING:  # importing it takes a second or more
    from ray.job_submission import JobDetails, JobSubmissionClient


T = TypeVar("T")


class ClusterAway(InvalidInput):
    """No job server answers at an address: a wrong address, no tunnel, or the cluster is gone."""


class JobRefused(PersresError):
    """The job server answered, and would not do what it was asked."""


class JobServer:
    """One cluster's jobs.

    Every method raises `ClusterAway` if nobody answers, and `InvalidInput` if the token is missing or wrong.

    Args:
        address: the dashboard's, such as "http://127.0.0.1:8265". A token in RAY_AUTH_TOKEN or at RAY_AUTH_TOKEN_PATH
            is used as Ray does.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        try:
            self._client = self._ask(lambda: _client(address))
        except (JobRefused, ValueError) as error:  # somebody else's server, or an address that cannot be one
            raise self._away(error) from error

    def submit(
        self, *, entrypoint: str, submission_id: str, runtime_env: Mapping[str, Any], metadata: Mapping[str, str]
    ) -> None:
        """Hand over a job under a name of ours.

        Raises:
            JobRefused: there is a job of that name already, or the cluster cannot take it.
        """
        self._ask(
            lambda: self._client.submit_job(
                entrypoint=entrypoint,
                submission_id=submission_id,
                runtime_env=dict(runtime_env),
                metadata=dict(metadata),
            )
        )

    def job(self, submission_id: str) -> JobDetails | None:
        """What is known of a job, or None if the cluster has never heard of it: its head may have been started anew."""
        try:
            return self._ask(lambda: self._client.get_job_info(submission_id))
        except JobRefused as error:
            if "does not exist" in str(error) or "status code 404" in str(error):
                return None
            raise

    def jobs(self) -> Sequence[JobDetails]:
        """Every job the cluster knows, ended ones included; anybody's."""
        return self._ask(self._client.list_jobs)

    def log(self, submission_id: str) -> str:
        """All that a job has printed.

        Raises:
            JobRefused: there is no such job, or its node has gone with the log.
        """
        return self._ask(lambda: self._client.get_job_logs(submission_id))

    def log_as_it_grows(self, submission_id: str) -> AsyncIterator[str]:
        """The same from the beginning, piece by piece; raises whatever Ray's client does."""
        return self._client.tail_job_logs(submission_id)

    def stop(self, submission_id: str) -> bool:
        """Ask a job to end; returns at once, with whether it was under way.

        Raises:
            JobRefused: there is no such job.
        """
        return self._ask(lambda: self._client.stop_job(submission_id))

    def _ask(self, call: Callable[[], T]) -> T:
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
            raise self._away(error) from error
        except RuntimeError as error:
            raise JobRefused(
                f"the Ray cluster at {self.address} refused: {_brief(error)}",
                fix="look at its dashboard, and whether its Ray is of this machine's version",
            ) from error

    def _away(self, error: Exception) -> ClusterAway:
        return ClusterAway(
            f"no Ray cluster answers at {self.address}: {_brief(error)}",
            fix="give the dashboard's address, such as http://127.0.0.1:8265 behind `ray dashboard cluster.yaml`",
        )


def job_server_address(given: str | None) -> str | None:
    """The job server to talk to: `given`, else RAY_ADDRESS if that is one; None if neither is.

    Raises:
        InvalidInput: `given` is something else, such as the address of a cluster's GCS.
    """
    if given is not None and not is_job_server(given):
        raise InvalidInput(
            f"{given!r} is not the address of a Ray job server",
            fix="give the dashboard's, which begins with http:// or https://, such as http://127.0.0.1:8265",
        )
    from_environment = os.environ.get("RAY_ADDRESS", "")
    return given or (from_environment if is_job_server(from_environment) else None)


def is_job_server(address: str) -> bool:
    """Whether an address is one of a job server. Any other is of a cluster that this process can be part of."""
    return address.startswith(("http://", "https://"))


def _client(address: str) -> JobSubmissionClient:
    from ray.job_submission import JobSubmissionClient

    # Of packages it uploads and sockets it closes.
    for talkative in ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk", "_private.runtime_env.packaging"):
        logging.getLogger(f"ray.{talkative}").setLevel(logging.WARNING)

    class Client(JobSubmissionClient):
        def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
            return super()._do_request(method, endpoint, **{"timeout": JOB_SERVER_TIMEOUT_S, **options})

    return Client(address)


def _brief(error: BaseException) -> str:
    """The end of what Ray says, where it names the reason; it answers with tracebacks."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" .")]
    return lines[-1][:300] if lines else type(error).__name__
