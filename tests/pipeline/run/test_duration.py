from __future__ import annotations

from persres.pipeline.run.duration import format_duration


def test_format_duration_rounds_to_seconds_or_minutes():
    texts = [format_duration(seconds) for seconds in (41.6, 185, 7800)]
    assert texts == ["42 s", "3 min 05 s", "2 h 10 min"]
