"""Following the log of a job, over a connection that may break."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from ...core.errors import PersresError
from ...core.timing import JOB_LOG_PAUSE_S, JOB_LOG_POLL_S, JOB_LOG_RETRY_S, JOB_LOG_SILENCE_S
from ...pipeline.run.states import OVER
from .job_server import ClusterUnreachable, JobServer, JobServerError
from .run_jobs import RunJob, run_job

Show = Callable[[str], None]


class JobUnreachable(PersresError):
    """A job cannot be followed any more: its cluster does not answer, or does not know it."""


def follow_job(
    server: JobServer,
    submission_id: str,
    show: Show,
    *,
    retry_s: float = JOB_LOG_RETRY_S,
    silence_s: float = JOB_LOG_SILENCE_S,
) -> RunJob:
    """Show the log of a job, line by line from its beginning, until the job is over. Returns the job as it ended.

    Args:
        retry_s: how long a cluster that does not answer is retried, in seconds.
        silence_s: how long the log may be silent before it is opened anew, in seconds.

    Raises:
        JobUnreachable: the cluster does not answer for `retry_s`, or does not know the job.
        InvalidInput: the token is wrong.
    """
    log, outage = _LogLines(show), _Outage(server, submission_id, show, retry_s)
    while True:
        try:
            job = _require_job(server, submission_id)
            outage.end()
            if job.state in OVER:
                log.finish(server, submission_id)
                return job
            asyncio.run(_read(server, submission_id, log, silence_s))
            time.sleep(JOB_LOG_POLL_S)
        except (ClusterUnreachable, JobServerError) as error:  # a head that starts up answers with errors for a while
            outage.wait(error)


async def _read(server: JobServer, submission_id: str, log: _LogLines, silence_s: float) -> None:
    """Read until the log ends, is silent for too long or the connection breaks; the caller finds out which."""
    import aiohttp

    log.restart()
    chunks = server.tail_log(submission_id)
    try:
        while True:
            log.add(await asyncio.wait_for(anext(chunks), silence_s))
    except (StopAsyncIteration, TimeoutError, aiohttp.ClientError, RuntimeError, OSError):
        return
    finally:
        await chunks.aclose()  # pyright: ignore[reportAttributeAccessIssue]


class _LogLines:
    """Shows every line once, however often the log is read from its beginning."""

    def __init__(self, show: Show) -> None:
        self._show = show
        self._shown = 0  # characters
        self._read = 0
        self._line = ""

    def restart(self) -> None:
        self._read = 0

    def add(self, text: str) -> None:
        new = text[max(0, self._shown - self._read) :]
        self._read += len(text)
        self._shown = max(self._shown, self._read)
        *lines, self._line = (self._line + new).split("\n")
        for line in lines:
            self._show(line)

    def finish(self, server: JobServer, submission_id: str) -> None:
        """Show the remaining lines, and a last one without a line break."""
        try:
            text = server.log(submission_id)
        except JobServerError:  # the log may be gone with its node
            text = ""
        self.restart()
        self.add(text)
        if self._line:
            self._show(self._line)
            self._line = ""


class _Outage:
    """Shows when a cluster stops to answer and when it answers again, and limits how long it is retried."""

    def __init__(self, server: JobServer, submission_id: str, show: Show, retry_s: float) -> None:
        self._server, self._submission_id, self._show, self._retry_s = server, submission_id, show, retry_s
        self._since: float | None = None

    def end(self) -> None:
        if self._since is not None:
            self._show(f"{self._server.address} answers again")
        self._since = None

    def wait(self, error: PersresError) -> None:
        """Sleep until the next attempt.

        Raises:
            JobUnreachable: the outage has lasted for too long.
        """
        if self._since is None:
            self._since = time.monotonic()
            self._show(
                f"{self._server.address} does not answer; the run continues without it. Retrying for "
                f"{self._retry_s:.0f} s"
            )
        if time.monotonic() - self._since >= self._retry_s:
            raise JobUnreachable(
                f"cannot follow job {self._submission_id}: {self._server.address} has not answered for "
                f"{self._retry_s:.0f} s. The run may continue without it",
                fix="once the cluster can be reached again, follow it with `persres-batch logs RUN --follow`; "
                "`persres-batch status RUN --catalog URI` needs no cluster",
            ) from error
        time.sleep(min(JOB_LOG_PAUSE_S, self._retry_s / 4))


def _require_job(server: JobServer, submission_id: str) -> RunJob:
    details = server.job(submission_id)
    job = run_job(details) if details is not None else None
    if job is None:
        raise JobUnreachable(
            f"the cluster at {server.address} does not know job {submission_id} any more: its head was restarted",
            fix="submit again, which does only what is missing",
        )
    return job
