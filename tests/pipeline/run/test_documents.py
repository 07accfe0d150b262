"""A run's documents: whatever interrupts the report, the run has ended and says so."""

from __future__ import annotations

import json

import pytest

from persres.core.errors import StoreUnavailable
from persres.pipeline.catalog.layout import RunPaths
from persres.pipeline.catalog.store import CatalogStore
from persres.pipeline.run import report
from persres.pipeline.run.documents import RunDocuments
from persres.pipeline.run.summary import RunSummary

RUN = "20261122T190501Z-3fa9c1"
SUMMARY = RunSummary(RUN, rows=0, committed=0, failed=(), current=0, removed=0)


@pytest.fixture
def store(tmp_path) -> CatalogStore:
    return CatalogStore(str(tmp_path))


def not_called(_: object) -> RunSummary:
    raise AssertionError("nothing is damaged")


def test_signal_during_the_report_leaves_a_summary(store, monkeypatch):
    def interrupted(*_: object, **__: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(report, "read_committed", interrupted)
    documents = RunDocuments(store, RUN)
    assert documents.write_end(SUMMARY, (), not_called) == (SUMMARY, None)
    assert RunSummary.from_json(store.read(RunPaths(RUN).summary)) == SUMMARY
    assert not store.exists(RunPaths(RUN).report)


def test_error_of_the_report_leaves_a_summary_that_no_abort_undoes(store, monkeypatch):
    def unavailable(*_: object, **__: object) -> str:
        raise StoreUnavailable("no store today", fix="wait")

    monkeypatch.setattr(report, "read_committed", unavailable)
    documents = RunDocuments(store, RUN)
    with pytest.raises(StoreUnavailable):
        documents.write_end(SUMMARY, ["a worker was lost"], not_called)
    documents.write_abort((), (), "no store today")
    stored = json.loads(store.read(RunPaths(RUN).failures))
    assert stored["ended_by"] is None and stored["incidents"] == ["a worker was lost"]
    assert store.exists(RunPaths(RUN).summary)


def test_end_writes_summary_and_report(store):
    summary, uri = RunDocuments(store, RUN).write_end(SUMMARY, (), not_called)
    assert summary == SUMMARY and uri == store.url(RunPaths(RUN).report)
    assert store.read(RunPaths(RUN).report).startswith(b"<!DOCTYPE html>")
