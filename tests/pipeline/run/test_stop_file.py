"""A word in the catalog stops a run: who hears it, when, and how often."""

from __future__ import annotations

import json
import threading

from persres.pipeline.catalog.store import CatalogStore
from persres.pipeline.run.stop_file import StopWord, ask_to_stop, heeding_catalog

RUN, OTHER = "20261122T190501Z-3fa9c1", "20261123T190501Z-000000"


def test_a_run_hears_its_own_word_once(tmp_path):
    store, heard, words = CatalogStore(str(tmp_path)), threading.Event(), []

    def on_asked(word: StopWord) -> None:
        words.append(word)
        heard.set()

    with heeding_catalog(store, RUN, on_asked, every_s=0.01):
        ask_to_stop(store, OTHER, "bob@laptop")
        assert not heard.wait(0.3), "another run's"
        ask_to_stop(store, RUN, "ana@laptop")
        assert heard.wait(30)
        ask_to_stop(store, RUN, "ana@laptop")
    (word,) = words
    assert word.by == "ana@laptop" and word.at.endswith("+00:00")
    assert json.loads(store.read(f"runs/{RUN}/stop.json"))["by"] == "ana@laptop"


def test_a_word_that_makes_no_sense_is_one_all_the_same(tmp_path):
    store, heard, words = CatalogStore(str(tmp_path)), threading.Event(), []
    store.write(store.run_file(RUN, "stop.json"), b"[")
    with heeding_catalog(store, RUN, lambda word: (words.append(word), heard.set()), every_s=0.01):
        assert heard.wait(30)
    assert words[0].by == "somebody"


def test_once_it_is_over_nobody_listens(tmp_path):
    store, words = CatalogStore(str(tmp_path)), []
    before = set(threading.enumerate())
    with heeding_catalog(store, RUN, words.append, every_s=0.01):
        (thread,) = set(threading.enumerate()) - before
    thread.join(30)
    ask_to_stop(store, RUN, "ana@laptop")
    assert not thread.is_alive() and not words
