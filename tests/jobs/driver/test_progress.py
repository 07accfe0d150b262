"""The estimate of the time to go."""

from __future__ import annotations

import pytest

from persres.jobs.driver.progress import RunProgress, TimeToGo


def test_time_to_go_counts_from_the_first_worker_and_counts_parts_of_shards():
    now = 0.0
    time_to_go = TimeToGo(clock=lambda: now)
    assert time_to_go.estimate(RunProgress(0, 0, 10, 0.0, workers=0)) is None
    now = 100.0
    assert time_to_go.estimate(RunProgress(0, 0, 10, 0.0, workers=1)) is None
    now = 130.0
    assert time_to_go.estimate(RunProgress(1, 1, 8, 0.5, workers=1)) == pytest.approx(30 * 7.5 / 2.5)
    assert time_to_go.estimate(RunProgress(9, 1, 0, 0.0, workers=1)) == 0.0
