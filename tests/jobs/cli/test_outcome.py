"""The end of a submit for programs: one JSON object whatever happens, and the webhook's message."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer

from persres.core.errors import CatalogHeld, ConceptFailure, InvalidInput, ManifestInvalid, Problem, StoreUnavailable
from persres.jobs.cli.app import main
from persres.jobs.cli.outcome import SubmitResult, reporting
from persres.jobs.observe.webhook import Webhook
from persres.jobs.submit import FinishedRun, RunStopped
from persres.pipeline.planning.cost import RunCost
from persres.pipeline.run.summary import RunSummary

from ...support.webhook_receiver import webhook_receiver

FAILURE = ConceptFailure("secret-mug", "train", "the loss is not a number", "lower the learning rate")
COST = RunCost(1.25, 1.5, "USD", ("NVIDIA H100 80GB HBM3",))
SUMMARY = RunSummary("run-1", 5, 2, (FAILURE,), 2, 1, wall_seconds=185.0, workers=2, cost=COST)
RUN = "20261123T030000Z-3fa9c1"


def result_of(
    error: Exception | None = None, finished: FinishedRun | None = None, begun: str | None = None
) -> SubmitResult:
    result = SubmitResult("s3://key:hunter2@bucket/mugs.parquet", "s3://bucket/mugs")
    if begun:
        result.start(begun)
    if error is not None:
        result.fail(error)
    if finished is not None:
        result.finish(finished, finished.report)
    return result


@pytest.mark.parametrize(
    ("error", "begun", "state", "exit_code"),
    [
        (InvalidInput("no such model", fix="choose another"), None, "refused", 2),
        (InvalidInput("the workers have another version"), RUN, "failed", 2),
        (CatalogHeld("run-0 holds it"), None, "held", 4),
        (RunStopped("stopped run"), RUN, "stopped", 130),
        (StoreUnavailable("it does not answer"), RUN, "failed", 1),
        (ZeroDivisionError("division by zero"), RUN, "failed", 1),
    ],
)
def test_every_result_has_a_state_and_the_processs_exit_code(error, begun, state, exit_code):
    result = result_of(error, begun=begun)
    values, message = json.loads(result.to_json()), result.message()
    for reported in (values, message):
        assert (reported["state"], reported["exit_code"], reported["run_id"]) == (state, exit_code, begun)
        assert str(error).split(". Fix")[0] in reported["error"] and reported["fix"] == getattr(error, "fix", None)
    assert state in message["text"] and message["counts"] is None
    assert "hunter2" not in json.dumps(message) + result.to_json(), "a manifest's password stays secret"


def test_message_of_a_run_that_ended_has_counts_and_cost_and_no_concept():
    result = result_of(finished=FinishedRun(SUMMARY, "s3://bucket/mugs/runs/run-1/report.html"))
    values, message = json.loads(result.to_json()), result.message()
    assert (values["committed"], values["failed"][0]["concept_id"], values["exit_code"]) == (2, "secret-mug", 3)
    assert values["cost"] == {
        "device_hours": 1.25, "amount": 1.5, "currency": "USD", "devices": ["NVIDIA H100 80GB HBM3"],
    }  # fmt: skip
    assert message["cost"]["device_hours"] == 1.25 and message["wall_seconds"] == 185.0
    assert message["counts"] == {"rows": 5, "committed": 2, "failed": 1, "current": 2, "removed": 1, "pruned": 0}
    expected = (
        "s3://bucket/mugs: 2 done, 1 failed, 2 current of 5 in run run-1 (3 min 05 s, 1.25 device hours, 1.50 USD). "
    )
    assert message["text"] == expected + "Report: s3://bucket/mugs/runs/run-1/report.html"
    assert "secret-mug" not in json.dumps(message)


def test_run_without_changes_is_idle():
    idle = RunSummary("run-1", 5, 0, (), 5, 1)
    assert result_of(finished=FinishedRun(idle, None)).state == "idle"
    assert result_of(finished=FinishedRun(idle, None, pruned=1)).state == "ended"
    assert "nothing to do, all 5 concepts are current, 1 forgotten" in (
        result_of(finished=FinishedRun(idle, None, pruned=1)).text()
    )


def test_message_escapes_mentions_and_links():
    message = result_of(InvalidInput("value <!channel> & <https://evil.example.com|click>")).message()
    assert "<" not in message["text"] and "&lt;!channel&gt; &amp;" in message["text"]


def test_json_lists_the_problems_of_a_manifest():
    problem = Problem("no such file", "check the path", row=3, concept_id="a", column="reference_images", value="x.png")
    values = json.loads(result_of(ManifestInvalid("it cannot be used", (problem,))).to_json())
    assert values["problems"][0]["row"] == 3 and values["problems"][0]["fix"] == "check the path"


def test_reporting_reports_once_and_raises_the_error_again(capsys):
    with webhook_receiver() as receiver:
        result = SubmitResult("m", "c", webhook=Webhook(receiver.url))
        with pytest.raises(CatalogHeld), reporting(result, as_json=True):
            raise CatalogHeld("run-0 holds it")
        assert [message["state"] for message in receiver.messages] == ["held"]
    assert json.loads(capsys.readouterr().out)["state"] == "held"


def test_reporting_of_an_open_state_reports_nothing(capsys):
    with webhook_receiver() as receiver:
        result = SubmitResult("m", "c", webhook=Webhook(receiver.url))
        with pytest.raises(typer.Exit), reporting(result, as_json=True):
            raise typer.Exit(3)
        assert receiver.requests == []
    assert capsys.readouterr().out == ""


def test_webhook_that_cannot_be_reached_is_a_warning(capsys):
    with webhook_receiver([404]) as receiver:
        result = SubmitResult("m", "c", webhook=Webhook(receiver.url))
        with reporting(result, as_json=False):
            result.finish(FinishedRun(SUMMARY, None), None)
    shown = capsys.readouterr()
    assert shown.out == "" and "warning: the webhook at 127.0.0.1 was not notified: it answers 404" in shown.err
    assert "hunter2" not in shown.err


@pytest.fixture
def refused(tmp_path: Path, capsys, monkeypatch):
    """A submit that does not begin: returns what it prints as JSON, what else, and its exit code."""
    pq.write_table(pa.table({"concept_id": ["a"]}), tmp_path / "manifest.parquet")
    (tmp_path / "run.yaml").write_text("prices: {device_hour: 1.2}\n")
    for name in ("PERSRES_WEBHOOK", "PERSRES_WEBHOOK_ON", "RAY_ADDRESS", "PERSRES_DEBUG"):
        monkeypatch.delenv(name, raising=False)

    def submit(*options: str, spec: str = "run.yaml"):
        arguments = ["submit", str(tmp_path / "manifest.parquet"), "--spec", str(tmp_path / spec)]
        with pytest.raises(SystemExit) as end:
            main([*arguments, "--catalog", str(tmp_path / "catalog"), "--json", *options])
        shown = capsys.readouterr()
        return json.loads(shown.out), shown.err, end.value.code

    return submit


@pytest.mark.parametrize(
    ("options", "spec", "word"),
    [
        ((), "run.yaml", "manifest"),
        (("--dry-run",), "run.yaml", "manifest"),
        ((), "gone.yaml", "gone.yaml"),
        (("--no-follow",), "run.yaml", "--no-follow"),
        (("--run-id", "x/y"), "run.yaml", "x/y"),
        (("--webhook", "ftp://hooks.example.com/hunter2"), "run.yaml", "webhook"),
        (
            ("--webhook", "https://x.example.com/hunter2", "--address", "http://127.0.0.1:1"),
            "run.yaml",
            "cannot be used",
        ),
    ],
)
def test_refused_submit_prints_one_json_object(refused, options, spec, word):
    values, err, code = refused(*options, spec=spec)
    assert (values["state"], values["exit_code"], code) == ("refused", 2, 2)
    assert word in values["error"] and values["fix"] and values["run_id"] is None
    assert values["error"] in err and "hunter2" not in err + json.dumps(values)


def test_refused_manifest_notifies_the_webhook_and_a_dry_run_does_not(refused, monkeypatch):
    with webhook_receiver() as receiver:
        monkeypatch.setenv("PERSRES_WEBHOOK", receiver.url)
        refused("--dry-run")
        assert receiver.requests == []
        refused()
        assert [message["state"] for message in receiver.messages] == ["refused"]
        monkeypatch.setenv("PERSRES_WEBHOOK_ON", "ended,failed")
        refused()
        assert len(receiver.messages) == 1


def test_job_that_cannot_be_submitted_notifies_the_submitters_webhook(refused, monkeypatch):
    with webhook_receiver() as receiver:
        monkeypatch.setenv("PERSRES_WEBHOOK", receiver.url)
        values, _, code = refused("--address", "http://127.0.0.1:1")
        (message,) = receiver.messages
    assert message["state"] == values["state"] != "ended" and message["exit_code"] == code
    assert message["error"] == values["error"]
