"""Measurements on tiny models: all rows; the order of rounds; packs that do not fit into memory."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from persres.core.errors import InvalidInput, PersresError
from persres.pipeline.benchmark import bench
from persres.pipeline.benchmark.bench import run_bench
from persres.pipeline.benchmark.workloads import OurTraining, PackTooLarge, PeerTraining

TRAINING = ["peer", "peer_cached", "alone", "packed_2"]
RENDERING = ["peer_render", "render_base", "render", "render_lag"]


@pytest.fixture
def uncounted(monkeypatch):
    """Do not count FLOPs, which takes most of the time of a short run."""
    for kind in (OurTraining, PeerTraining):
        monkeypatch.setattr(kind, "flops", lambda self: 1.0)


def test_all_rows_are_measured_and_compared_with_their_peer(whole_run):
    result = whole_run.result
    rows = {row.name: row for row in result.rows}
    assert list(rows) == TRAINING + RENDERING
    for names in (TRAINING, RENDERING):
        peer = rows[names[0]]
        assert peer.ratio_to_peer == 1
        assert all(rows[name].ratio_to_peer == peer.seconds / rows[name].seconds for name in names)
    assert all(row.seconds > 0 and row.peak_share > 0 for row in result.rows)
    runs = [(text, done, total) for text, done, total in whole_run.progress if "FLOPs" not in text]
    expected = [f"{doing} {name}" for doing in ("warming up", "measuring") for name in rows]
    assert runs == [(text, done, len(expected)) for done, text in enumerate(expected)]
    machine = json.loads(result.to_json())["machine"]
    assert machine["threads"] == 1 and machine["dtype"] == "float32" and machine["iterations_measured"] == 2
    assert machine["matmul_flops_per_second"] > 0
    assert any("scaled to 5 iterations" in note for note in result.notes)


def test_rounds_measure_every_row_in_turn(sd1, small_plan, uncounted):
    seen: list[str] = []
    plan = replace(small_plan, rounds=2, rows=("alone",))
    run_bench(sd1, plan, lambda text, done, total: seen.append(text))
    assert seen[2:6] == ["measuring peer", "measuring alone"] * 2


def test_pack_that_would_not_fit_on_a_cpu_is_not_tried(sd1, small_plan, monkeypatch, uncounted):
    monkeypatch.setattr(bench, "available_bytes", lambda device: 0)
    tried: list[str] = []
    plan = replace(small_plan, rows=("alone", "packed_2"))
    result = run_bench(sd1, plan, lambda text, done, total: tried.append(text))
    assert [row.name for row in result.rows] == ["peer", "alone"]
    assert not [text for text in tried if "packed" in text]
    assert any("memory ends at packed_2" in note for note in result.notes)


def test_pack_that_does_not_fit_is_left_out_with_larger_ones(sd1, small_plan, monkeypatch, uncounted):
    train = OurTraining.train

    def limited(self, *arguments):
        if self.pack_size > 2:
            raise PackTooLarge("packed_4: 2 concepts at most")
        return train(self, *arguments)

    monkeypatch.setattr(OurTraining, "train", limited)
    result = run_bench(sd1, replace(small_plan, max_pack=4, rows=("packed_2", "packed_4")))
    assert [row.name for row in result.rows] == ["peer", "packed_2"]
    ended = [note for note in result.notes if "memory ends" in note]
    assert ended == ["memory ends at packed_4: it and larger packs were left out"]


def test_out_of_memory_of_the_peer_is_an_error_with_a_fix(sd1, small_plan, monkeypatch):
    def no_room(self, steps):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(PeerTraining, "seconds", no_room)
    with pytest.raises(PersresError, match=r"too little memory for peer.*batch_size"):
        run_bench(sd1, replace(small_plan, rows=("alone",)))


def test_unknown_row_is_refused_with_the_known_ones(sd1, small_plan):
    with pytest.raises(InvalidInput, match=r"packed_3.*choose from peer, peer_cached"):
        run_bench(sd1, replace(small_plan, rows=("packed_3",)))
