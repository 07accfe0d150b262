"""A job's log as it is printed on the cluster, also over a connection that breaks now and then."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from ...core.errors import PersresError
from ...pipeline.run.state import OVER
from ...pipeline.timing import JOB_LOG_PAUSE_S, JOB_LOG_POLL_S, JOB_LOG_RETRY_S, JOB_LOG_SILENCE_S
from .job_server import ClusterAway, JobRefused, JobServer
from .run_jobs import RunJob, run_job

Show = Callable[[str], None]


class JobLost(PersresError):
    """A job that was followed is out of sight: the cluster is away, or has forgotten it."""


def follow_job(
    server: JobServer,
    submission_id: str,
    show: Show,
    *,
    patience_s: float = JOB_LOG_RETRY_S,
    quiet_s: float = JOB_LOG_SILENCE_S,
) -> RunJob:
    """Print a job's log, line by line from its beginning, until it has ended; returns how it did.

    Args:
        patience_s: how long a cluster that does not answer is asked again, in seconds.
        quiet_s: how long the log may be silent before it is opened anew.

    Raises:
        JobLost: the cluster does not answer any more, or does not know the job.
        InvalidInput: the token is wrong.
    """
    log, away = _Log(show), _Away(server, submission_id, show, patience_s)
    while True:
        try:
            job = _still_known(server, submission_id)
            away.answered()
            if job.state in OVER:
                log.rest(server, submission_id)
                return job
            asyncio.run(_read(server, submission_id, log, quiet_s))
            time.sleep(JOB_LOG_POLL_S)
        except (ClusterAway, JobRefused) as error:  # a head that is coming up refuses for a while
            away.wait(error)


async def _read(server: JobServer, submission_id: str, log: _Log, quiet_s: float) -> None:
    """Read until the log ends, falls silent or the connection breaks; it is for others to find out which."""
    import aiohttp

    log.from_the_beginning()
    pieces = server.log_as_it_grows(submission_id)
    try:
        while True:
            log.add(await asyncio.wait_for(anext(pieces), quiet_s))
    except (StopAsyncIteration, TimeoutError, aiohttp.ClientError, RuntimeError, OSError):
        return
    finally:
        await pieces.aclose()  # pyright: ignore[reportAttributeAccessIssue]


class _Log:
    """Shows every line once, however often the log is read from its beginning."""

    def __init__(self, show: Show) -> None:
        self._show = show
        self._shown = 0  # characters
        self._read = 0
        self._line = ""

    def from_the_beginning(self) -> None:
        self._read = 0

    def add(self, text: str) -> None:
        new = text[max(0, self._shown - self._read) :]
        self._read += len(text)
        self._shown = max(self._shown, self._read)
        *lines, self._line = (self._line + new).split("\n")
        for line in lines:
            self._show(line)

    def rest(self, server: JobServer, submission_id: str) -> None:
        """What was printed since, and a last line that has no end."""
        try:
            text = server.log(submission_id)
        except JobRefused:  # its node may have gone with it
            text = ""
        self.from_the_beginning()
        self.add(text)
        if self._line:
            self._show(self._line)
            self._line = ""


class _Away:
    """Bounded patience with a cluster that does not answer, and words about it."""

    def __init__(self, server: JobServer, submission_id: str, show: Show, patience_s: float) -> None:
        self._server, self._submission_id, self._show, self._patience_s = server, submission_id, show, patience_s
        self._since: float | None = None

    def answered(self) -> None:
        if self._since is not None:
            self._show(f"{self._server.address} answers again")
        self._since = None

    def wait(self, error: PersresError) -> None:
        """Raises JobLost when it has lasted for too long."""
        if self._since is None:
            self._since = time.monotonic()
            self._show(
                f"{self._server.address} does not answer; the run goes on without it. Trying again for "
                f"{self._patience_s:.0f} s"
            )
        if time.monotonic() - self._since >= self._patience_s:
            raise JobLost(
                f"lost sight of job {self._submission_id}: {self._server.address} has not answered for "
                f"{self._patience_s:.0f} s. The run may be going on",
                fix="once the cluster can be reached again, follow it with `persres-batch logs RUN --follow`; "
                "`persres-batch status RUN --catalog URI` needs no cluster",
            ) from error
        time.sleep(min(JOB_LOG_PAUSE_S, self._patience_s / 4))


def _still_known(server: JobServer, submission_id: str) -> RunJob:
    details = server.job(submission_id)
    job = run_job(details) if details is not None else None
    if job is None:
        raise JobLost(
            f"the cluster at {server.address} does not know job {submission_id} any more: its head was started anew",
            fix="submit again: only what is missing is done",
        )
    return job
