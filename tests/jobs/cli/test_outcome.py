"""How a submit ended, told to machines: one JSON object whatever happens, and the webhook's message."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer

from persres.core.errors import CatalogHeld, ConceptFailure, InvalidInput, ManifestInvalid, Problem, StoreUnavailable
from persres.jobs.cli.app import main
from persres.jobs.cli.outcome import RunEnding, telling
from persres.jobs.observe.signals import StopRequest
from persres.jobs.observe.webhook import Webhook
from persres.jobs.submit import FinishedRun, RunStopped
from persres.pipeline.planning.cost import RunCost
from persres.pipeline.run.summary import RunSummary

from ...support.web_receiver import web_receiver

FAILURE = ConceptFailure("secret-mug", "train", "the loss is not a number", "lower the learning rate")
COST = RunCost(1.25, 1.5, "USD", ("NVIDIA H100 80GB HBM3",))
SUMMARY = RunSummary("run-1", 5, 2, (FAILURE,), 2, 1, wall_seconds=185.0, workers=2, cost=COST)
RUN = "20261123T030000Z-3fa9c1"


def ended(error: Exception | None = None, finished: FinishedRun | None = None, begun: str | None = None) -> RunEnding:
    ending = RunEnding("s3://key:hunter2@bucket/mugs.parquet", "s3://bucket/mugs")
    if begun:
        ending.begun(begun)
    if error is not None:
        ending.broken_off(error)
    if finished is not None:
        ending.finished(finished, finished.report)
    return ending


@pytest.mark.parametrize(
    ("error", "begun", "state", "exit_code"),
    [
        (InvalidInput("no such model", fix="choose another"), None, "refused", 2),
        (InvalidInput("the workers have another version"), RUN, "failed", 2),
        (CatalogHeld("run-0 holds it"), None, "held", 4),
        (RunStopped("stopped run", request=StopRequest()), RUN, "stopped", 130),
        (StoreUnavailable("it does not answer"), RUN, "failed", 1),
        (ZeroDivisionError("division by zero"), RUN, "failed", 1),
    ],
)
def test_every_end_has_a_state_and_the_exit_code_that_the_shell_sees(error, begun, state, exit_code):
    ending = ended(error, begun=begun)
    told, message = json.loads(ending.to_json()), ending.message()
    for said in (told, message):
        assert (said["state"], said["exit_code"], said["run_id"]) == (state, exit_code, begun)
        assert str(error).split(". Fix")[0] in said["error"] and said["fix"] == getattr(error, "fix", None)
    assert state in message["text"] and message["counts"] is None
    assert "hunter2" not in json.dumps(message) + ending.to_json(), "a manifest's password is nobody's business"


def test_a_run_that_ended_says_what_it_did_and_cost_and_names_no_concept():
    ending = ended(finished=FinishedRun(SUMMARY, "s3://bucket/mugs/runs/run-1/report.html"))
    told, message = json.loads(ending.to_json()), ending.message()
    assert (told["committed"], told["failed"][0]["concept_id"], told["exit_code"]) == (2, "secret-mug", 3)
    assert told["cost"] == {
        "device_hours": 1.25, "amount": 1.5, "currency": "USD", "devices": ["NVIDIA H100 80GB HBM3"],
    }  # fmt: skip
    assert message["cost"]["device_hours"] == 1.25 and message["wall_seconds"] == 185.0
    assert message["counts"] == {"rows": 5, "committed": 2, "failed": 1, "current": 2, "removed": 1, "pruned": 0}
    expected = (
        "s3://bucket/mugs: 2 done, 1 failed, 2 current of 5 in run run-1 (3 min 05 s, 1.25 device hours, 1.50 USD). "
    )
    assert message["text"] == expected + "Report: s3://bucket/mugs/runs/run-1/report.html"
    assert "secret-mug" not in json.dumps(message)


def test_a_night_without_work_is_no_end_worth_a_word():
    idle = RunSummary("run-1", 5, 0, (), 5, 1)
    assert ended(finished=FinishedRun(idle, None)).state == "nothing"
    assert ended(finished=FinishedRun(idle, None, pruned=1)).state == "ended"
    assert "nothing to do, all 5 concepts are current, 1 forgotten" in (
        ended(finished=FinishedRun(idle, None, pruned=1)).text()
    )


def test_what_a_manifest_says_cannot_call_a_whole_chat():
    message = ended(InvalidInput("value <!channel> & <https://evil.example.com|click>")).message()
    assert "<" not in message["text"] and "&lt;!channel&gt; &amp;" in message["text"]


def test_problems_are_told_one_by_one():
    problem = Problem("no such file", "check the path", row=3, concept_id="a", column="reference_images", value="x.png")
    told = json.loads(ended(ManifestInvalid("it cannot be used", (problem,))).to_json())
    assert told["problems"][0]["row"] == 3 and told["problems"][0]["fix"] == "check the path"


def test_the_block_tells_once_and_lets_the_error_through(capsys):
    with web_receiver() as receiver:
        ending = RunEnding("m", "c", webhook=Webhook(receiver.url))
        with pytest.raises(CatalogHeld), telling(ending, as_json=True):
            raise CatalogHeld("run-0 holds it")
        assert [message["state"] for message in receiver.messages] == ["held"]
    assert json.loads(capsys.readouterr().out)["state"] == "held"


def test_who_only_hands_a_run_over_tells_nothing(capsys):
    with web_receiver() as receiver:
        ending = RunEnding("m", "c", webhook=Webhook(receiver.url))
        with pytest.raises(typer.Exit), telling(ending, as_json=True):
            raise typer.Exit(3)
        assert receiver.requests == []
    assert capsys.readouterr().out == ""


def test_a_webhook_that_is_away_is_a_warning_and_not_the_runs_failure(capsys):
    with web_receiver([404]) as receiver:
        ending = RunEnding("m", "c", webhook=Webhook(receiver.url))
        with telling(ending, as_json=False) as told:
            told.finished(FinishedRun(SUMMARY, None), None)
    shown = capsys.readouterr()
    assert shown.out == "" and "warning: the webhook at 127.0.0.1 was not told: it answers 404" in shown.err
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
        (("--webhook", "https://x.example.com/hunter2", "--address", "http://127.0.0.1:1"), "run.yaml", "not travel"),
    ],
)
def test_a_submit_that_is_refused_prints_one_json_object_too(refused, options, spec, word):
    told, err, code = refused(*options, spec=spec)
    assert (told["state"], told["exit_code"], code) == ("refused", 2, 2)
    assert word in told["error"] and told["fix"] and told["run_id"] is None
    assert told["error"] in err and "hunter2" not in err + json.dumps(told)


def test_a_refused_manifest_is_told_and_a_dry_run_is_not(refused, monkeypatch):
    with web_receiver() as receiver:
        monkeypatch.setenv("PERSRES_WEBHOOK", receiver.url)
        refused("--dry-run")
        assert receiver.requests == []
        refused()
        assert [message["state"] for message in receiver.messages] == ["refused"]
        monkeypatch.setenv("PERSRES_WEBHOOK_ON", "ended,failed")
        refused()
        assert len(receiver.messages) == 1


def test_a_job_that_cannot_be_handed_over_is_told_by_who_wanted_to(refused, monkeypatch):
    with web_receiver() as receiver:
        monkeypatch.setenv("PERSRES_WEBHOOK", receiver.url)
        told, _, code = refused("--address", "http://127.0.0.1:1")
        (message,) = receiver.messages
    assert message["state"] == told["state"] != "ended" and message["exit_code"] == code
    assert message["error"] == told["error"]
