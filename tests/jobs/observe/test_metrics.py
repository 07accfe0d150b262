"""The table of series: names that Prometheus takes, each explained once for the people who read the graphs."""

from __future__ import annotations

import re
from pathlib import Path

from persres.jobs.observe.metrics import ALL_SERIES, SHARD_SECONDS

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"


def test_names_are_prometheus_names_of_our_own():
    names = [series.name for series in ALL_SERIES]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"persres_[a-z_]+", name) and not name.endswith("_total") for name in names)


def test_descriptions_are_ascii_as_ray_wants_them():
    assert all(series.description.isascii() for series in ALL_SERIES)


def test_labels_have_few_values():
    """No concept id, shard id or text: every value of a label is a series of its own, for ever."""
    assert {label for series in ALL_SERIES for label in series.labels} == {"state", "phase"}


def test_buckets_rise():
    assert list(SHARD_SECONDS) == sorted(set(SHARD_SECONDS))


def test_the_documentation_names_every_series_and_no_other():
    named = set(re.findall(r"^\| `(ray_persres_\w+)`", OPERATIONS.read_text(encoding="utf-8"), re.MULTILINE))
    assert named == {series.exported[0] for series in ALL_SERIES}
