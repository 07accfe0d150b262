"""A run's log: every event in order, bounded, written to the catalog without ever blocking the run."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from persres.core.errors import StoreUnavailable
from persres.pipeline.catalog.layout import RunPaths
from persres.pipeline.catalog.store import CatalogStore
from persres.pipeline.run import log as run_log
from persres.pipeline.run.log import RunEvent, RunLog, format_event, read_run_log

NOW = datetime(2026, 11, 22, 19, 5, 1, 250_000, tzinfo=UTC)
RUN = "20261122T190501Z-3fa9c1"


@pytest.fixture
def store(tmp_path) -> CatalogStore:
    return CatalogStore(str(tmp_path / "catalog"))


def log_of(store: CatalogStore) -> RunLog:
    return RunLog(store, RUN, clock=lambda: NOW, write_interval_s=3600)


def test_log_is_in_the_catalog_when_the_run_ends(store):
    with log_of(store) as log:
        log.emit(
            "shard_ended", "shard s1: 2 done", shard_id="s1", attempt="001", seconds={"train": 1.5}, pack_size=None
        )
        log.emit("concept_failed", "concept a failed", level="warning", concept_id="a")
    first, second = read_run_log(store, RUN)
    assert first.fields == {"shard_id": "s1", "attempt": "001", "seconds": {"train": 1.5}}
    assert (first.time, first.run_id, first.event) == ("2026-11-22T19:05:01.250Z", RUN, "shard_ended")
    assert format_event(first) == "2026-11-22 19:05:01  shard s1: 2 done"
    assert format_event(second) == "2026-11-22 19:05:01  warning: concept a failed"
    for line in store.read(RunPaths(RUN).log).decode().splitlines():
        assert json.loads(line)["run_id"] == RUN


@given(st.text(), st.dictionaries(st.sampled_from(["shard_id", "concept_id", "n"]), st.integers() | st.text()))
def test_event_is_one_line_and_parses_to_itself(text, fields):
    event = RunEvent("2026-11-22T19:05:01.250Z", "error", "incident", RUN, text, fields)
    line = event.to_json()
    assert "\n" not in line and RunEvent.from_json(line) == event


def test_log_is_written_while_the_run_is_running(store):
    pause = threading.Event()
    path = RunPaths(RUN).log
    with RunLog(store, RUN, write_interval_s=0.01) as log:
        log.emit("notice", "one")
        while not store.exists(path):
            pause.wait(0.01)
        log.emit("notice", "two")
    assert [event.text for event in read_run_log(store, RUN)] == ["one", "two"]


def test_log_keeps_its_first_and_last_events(store, monkeypatch):
    monkeypatch.setattr(run_log, "FIRST_LINES", 3)
    monkeypatch.setattr(run_log, "LAST_LINES", 2)
    with log_of(store) as log:
        for number in range(10):
            log.emit("notice", str(number))
    kept = [event.text for event in read_run_log(store, RUN)]
    assert kept == ["0", "1", "2", "5 events are left out here", "8", "9"]


def test_log_survives_a_store_that_refuses_it(store, monkeypatch):
    def refuse(path: str, data: bytes) -> None:
        raise StoreUnavailable("no store today", fix="wait")

    monkeypatch.setattr(store, "write", refuse)
    with log_of(store) as log:
        log.emit("notice", "still here")
    assert not store.exists(RunPaths(RUN).log)


def test_log_of_a_failed_run_is_written(store):
    with pytest.raises(KeyError), log_of(store) as log:
        log.emit("run_failed", "out of luck", level="error")
        raise KeyError
    assert [event.level for event in read_run_log(store, RUN)] == ["error"]


def test_read_run_log_leaves_out_damaged_lines(store):
    good = RunEvent("t", "info", "notice", RUN, "good").to_json()
    store.write(RunPaths(RUN).log, f"[]\n{good}\n{{cut".encode())
    assert [event.text for event in read_run_log(store, RUN)] == ["good"]
