"""Printing events as text and as JSON lines."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from persres.jobs.observe.event_printer import LogFormat, event_printer
from persres.pipeline.run.log import RunLog


@pytest.fixture
def printed():
    """Return a function that emits three events and returns the printed lines."""

    def emit(log_format: LogFormat) -> list[str]:
        file = io.StringIO()
        log = RunLog(None, "run-1", event_printer(Console(file=file, width=20), log_format))
        log.emit("incident", "shard [s1] is retried on another worker")
        log.emit("shard_ended", "shard s1 ended")
        log.emit("notice", "waiting")
        return file.getvalue().splitlines()

    return emit


def test_event_printer_prints_incidents_and_notices_as_text(printed):
    assert printed("text") == ["shard [s1] is retried on another worker", "waiting"]


def test_event_printer_prints_every_event_as_json(printed):
    assert [json.loads(line)["event"] for line in printed("json")] == ["incident", "shard_ended", "notice"]
