"""A run's log: every event kept, in order, in the catalog; bounded; and never in the run's way."""

from __future__ import annotations

import io
import json
import threading
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from persres.core.errors import StoreUnavailable
from persres.pipeline.catalog.store import CatalogStore
from persres.pipeline.run import log as run_log
from persres.pipeline.run.log import RunEvent, RunLog, event_printer, line_of, read_run_log

NOW = datetime(2026, 11, 22, 19, 5, 1, 250_000, tzinfo=UTC)
RUN = "20261122T190501Z-3fa9c1"


@pytest.fixture
def store(tmp_path) -> CatalogStore:
    return CatalogStore(str(tmp_path / "catalog"))


def log_of(store: CatalogStore | None, **options) -> RunLog:
    return RunLog(store, RUN, clock=lambda: NOW, write_every_s=3600, **options)


def test_what_was_told_is_in_the_catalog_at_the_end(store):
    with log_of(store) as log:
        log.tell(
            "shard_ended", "shard s1: 2 done", shard_id="s1", attempt="001", seconds={"train": 1.5}, pack_size=None
        )
        log.tell("concept_failed", "concept a failed", level="warning", concept_id="a")
    first, second = read_run_log(store, RUN)
    assert first.fields == {"shard_id": "s1", "attempt": "001", "seconds": {"train": 1.5}}
    assert (first.time, first.run_id, first.event) == ("2026-11-22T19:05:01.250Z", RUN, "shard_ended")
    assert line_of(first) == "2026-11-22 19:05:01  shard s1: 2 done"
    assert line_of(second) == "2026-11-22 19:05:01  warning: concept a failed"
    for line in store.read(store.run_file(RUN, "log.jsonl")).decode().splitlines():
        assert json.loads(line)["run_id"] == RUN


@given(st.text(), st.dictionaries(st.sampled_from(["shard_id", "concept_id", "n"]), st.integers() | st.text()))
def test_an_event_is_one_line_and_comes_back(text, fields):
    event = RunEvent("2026-11-22T19:05:01.250Z", "error", "incident", RUN, text, fields)
    line = event.to_json()
    assert "\n" not in line and RunEvent.from_json(line) == event


def test_it_is_written_while_the_run_goes_on(store):
    heard = threading.Event()
    path = store.run_file(RUN, "log.jsonl")
    with RunLog(store, RUN, write_every_s=0.01) as log:
        log.tell("notice", "one")
        while not store.exists(path):
            heard.wait(0.01)
        log.tell("notice", "two")
    assert [event.text for event in read_run_log(store, RUN)] == ["one", "two"]


def test_a_log_keeps_its_beginning_and_its_end(store, monkeypatch):
    monkeypatch.setattr(run_log, "FIRST_LINES", 3)
    monkeypatch.setattr(run_log, "LAST_LINES", 2)
    with log_of(store) as log:
        for number in range(10):
            log.tell("notice", str(number))
    kept = [event.text for event in read_run_log(store, RUN)]
    assert kept == ["0", "1", "2", "5 events are left out here", "8", "9"]


def test_a_store_that_does_not_take_it_ends_no_run(store, monkeypatch):
    def refuse(path: str, data: bytes) -> None:
        raise StoreUnavailable("no store today", fix="wait")

    monkeypatch.setattr(store, "write", refuse)
    with log_of(store) as log:
        log.tell("notice", "still here")
    assert not store.exists(store.run_file(RUN, "log.jsonl"))


def test_a_run_that_fails_has_its_log_as_well(store):
    with pytest.raises(KeyError), log_of(store) as log:
        log.tell("run_failed", "out of luck", level="error")
        raise KeyError
    assert [event.level for event in read_run_log(store, RUN)] == ["error"]


def test_lines_that_are_damaged_are_left_out(store):
    good = RunEvent("t", "info", "notice", RUN, "good").to_json()
    store.write(store.run_file(RUN, "log.jsonl"), f"[]\n{good}\n{{cut".encode())
    assert [event.text for event in read_run_log(store, RUN)] == ["good"]


def test_people_see_incidents_and_notices_machines_everything():
    told = [("incident", "shard [s1] is tried again"), ("shard_ended", "shard s1 ended"), ("notice", "waiting")]
    shown = {}
    for log_format in ("text", "json"):
        file = io.StringIO()
        log = log_of(None, on_event=event_printer(Console(file=file, width=20), log_format))
        for event, text in told:
            log.tell(event, text)
        shown[log_format] = file.getvalue().splitlines()
    assert shown["text"] == ["shard [s1] is tried again", "waiting"]
    assert [json.loads(line)["event"] for line in shown["json"]] == ["incident", "shard_ended", "notice"]
