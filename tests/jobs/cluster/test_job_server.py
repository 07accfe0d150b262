"""Addresses without a job server, and the states of jobs. A real job server: tests/ray."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from ray.dashboard.modules.job.common import JobStatus
from ray.job_submission import JobDetails

from persres.core.errors import InvalidInput
from persres.jobs.cluster.job_server import ClusterUnreachable, JobServer, job_server_address
from persres.jobs.cluster.run_jobs import run_job

from ...support.http_server import QuietHandler, serving

RUN = "20261122T190501Z-3fa9c1"


@pytest.fixture(params=[(404, b"not found"), (200, b"<html>hello</html>"), (500, b"out of order")])
def website(request) -> Iterator[str]:
    """The URL of a server that is no job server."""

    class Page(QuietHandler):
        def do_GET(self) -> None:
            status, body = request.param
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

    with serving(Page) as url:
        yield url


def test_job_server_refuses_another_kind_of_server(website):
    with pytest.raises(ClusterUnreachable, match=f"no Ray cluster answers at {website}") as away:
        JobServer(website)
    assert away.value.exit_code == 2 and away.value.fix


def test_job_server_refuses_an_address_without_a_server():
    with pytest.raises(ClusterUnreachable, match="no Ray cluster answers"):
        JobServer("http://127.0.0.1:1")


def test_job_server_address_is_the_given_one_or_the_environments(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "https://ray.example.com")
    assert job_server_address(None) == "https://ray.example.com"
    assert job_server_address("http://127.0.0.1:8265") == "http://127.0.0.1:8265"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")  # as Ray sets it inside a job
    assert job_server_address(None) is None
    with pytest.raises(InvalidInput, match="not the address of a Ray job server"):
        job_server_address("ray://10.0.0.1:10001")


def details(status: str, exit_code: int | None = None, metadata: dict[str, str] | None = None) -> JobDetails:
    ours = {"run_id": RUN, "manifest": "s3://b/m", "catalog": "s3://b/c"}
    return JobDetails(
        type="SUBMISSION",
        submission_id=f"persres-{RUN}",
        status=JobStatus(status),
        entrypoint="…",
        metadata=ours if metadata is None else metadata,
        driver_exit_code=exit_code,
    )


@pytest.mark.parametrize(
    ("status", "exit_code", "state", "expected_code"),
    [
        ("PENDING", None, "waiting", None),
        ("RUNNING", None, "running", None),
        ("SUCCEEDED", None, "ended", 0),
        ("FAILED", 3, "ended", 3),  # with failed concepts
        ("FAILED", 143, "stopped", 143),  # by a stop file in its catalog
        ("STOPPED", None, "stopped", None),
        ("FAILED", 1, "failed", 1),
        ("FAILED", None, "lost", None),  # with its node
    ],
)
def test_job_status_maps_to_a_run_state(status, exit_code, state, expected_code):
    job = run_job(details(status, exit_code))
    assert job is not None and (job.state, job.exit_code) == (state, expected_code)


def test_jobs_of_other_programs_are_no_runs():
    assert run_job(details("RUNNING", metadata={})) is None
    assert run_job(details("RUNNING", metadata={"run_id": RUN})) is None
