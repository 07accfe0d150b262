"""A stop file in the catalog stops its run, once."""

from __future__ import annotations

import json
import threading

from persres.pipeline.catalog.layout import RunPaths
from persres.pipeline.catalog.store import CatalogStore
from persres.pipeline.run.stop_file import StopFile, watch_stop_file, write_stop_file

RUN, OTHER = "20261122T190501Z-3fa9c1", "20261123T190501Z-000000"


def test_stop_file_of_the_run_is_noticed_once(tmp_path):
    store, noticed, found = CatalogStore(str(tmp_path)), threading.Event(), []

    def on_stop(stop: StopFile) -> None:
        found.append(stop)
        noticed.set()

    with watch_stop_file(store, RUN, on_stop, poll_s=0.01):
        write_stop_file(store, OTHER, "bob@laptop")
        assert not noticed.wait(0.3), "another run's"
        write_stop_file(store, RUN, "ana@laptop")
        assert noticed.wait(30)
        write_stop_file(store, RUN, "ana@laptop")
    (stop,) = found
    assert stop.by == "ana@laptop" and stop.at.endswith("+00:00")
    assert json.loads(store.read(f"runs/{RUN}/stop.json"))["by"] == "ana@laptop"


def test_damaged_stop_file_stops_the_run_too(tmp_path):
    store, noticed, found = CatalogStore(str(tmp_path)), threading.Event(), []
    store.write(RunPaths(RUN).stop_request, b"[")
    with watch_stop_file(store, RUN, lambda stop: (found.append(stop), noticed.set()), poll_s=0.01):
        assert noticed.wait(30)
    assert found[0].by == "somebody"


def test_stop_file_is_ignored_once_the_run_has_ended(tmp_path):
    store, found = CatalogStore(str(tmp_path)), []
    before = set(threading.enumerate())
    with watch_stop_file(store, RUN, found.append, poll_s=0.01):
        (thread,) = set(threading.enumerate()) - before
    thread.join(30)
    write_stop_file(store, RUN, "ana@laptop")
    assert not thread.is_alive() and not found
