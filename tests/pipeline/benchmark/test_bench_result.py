"""The rows of a result and their JSON."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from persres.pipeline.benchmark.bench_result import BenchResult, Measurement, compare

TRAINING = [Measurement("peer", "concept", 20.0, 600.0, 100), Measurement("packed_8", "concept", 5.0, 300.0, None)]
RENDERING = [Measurement("peer_render", "image", 2.0, 10.0, 7), Measurement("render_lag", "image", 0.5, 10.0, 8)]


def test_rows_are_compared_with_their_peer_and_with_the_device():
    rows = {row.name: row for row in compare([*TRAINING, *RENDERING], matmul_peak=100.0)}
    assert (rows["peer"].ratio_to_peer, rows["packed_8"].ratio_to_peer) == (1.0, 4.0)
    assert (rows["peer_render"].ratio_to_peer, rows["render_lag"].ratio_to_peer) == (1.0, 4.0)
    assert (rows["peer"].peak_share, rows["packed_8"].peak_share) == (0.3, 0.6)


def test_row_without_its_peer_has_no_ratio():
    assert compare([TRAINING[1]], 1.0)[0].ratio_to_peer is None


def test_json_has_the_documented_keys():
    result = BenchResult({"device": "a CPU"}, compare([*TRAINING, *RENDERING], 100.0), ("a note",))
    plain = json.loads(result.to_json())
    assert plain.keys() == {"machine", "rows"}
    common = {"name", "ratio_to_peer", "peak_bytes", "peak_share"}
    for row in plain["rows"]:
        unit = "image" if "render" in row["name"] else "concept"
        assert row.keys() == common | {f"seconds_per_{unit}"}
    assert plain["rows"][1]["peak_bytes"] is None


@given(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_ratio_and_share_double_with_half_the_seconds(peer, ours):
    def row(seconds):
        return compare(
            [Measurement("peer", "concept", peer, 1.0, 0), Measurement("alone", "concept", seconds, 1.0, 0)], 7.0
        )[1]

    whole, half = row(ours), row(ours / 2)
    assert half.ratio_to_peer == 2 * whole.ratio_to_peer
    assert half.peak_share == 2 * whole.peak_share
