"""The table of series: names that Prometheus accepts, each documented once."""

from __future__ import annotations

import re
from pathlib import Path

from persres.jobs.observe.metrics import ALL_SERIES, SHARD_SECONDS

DOCS = Path(__file__).parents[3] / "docs"


def test_names_are_valid_in_prometheus_and_prefixed():
    names = [series.name for series in ALL_SERIES]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"persres_[a-z_]+", name) and not name.endswith("_total") for name in names)


def test_descriptions_are_ascii_as_ray_requires():
    assert all(series.description.isascii() for series in ALL_SERIES)


def test_labels_have_few_values():
    """No concept id, shard id or text: every value of a label is one more series."""
    assert {label for series in ALL_SERIES for label in series.labels} == {"state", "phase"}


def test_buckets_are_increasing():
    assert list(SHARD_SECONDS) == sorted(set(SHARD_SECONDS))


def test_documentation_lists_every_series_and_no_other():
    pages = "\n".join(page.read_text(encoding="utf-8") for page in DOCS.rglob("*.md"))
    listed = set(re.findall(r"^\| `(ray_persres_\w+)`", pages, re.MULTILINE))
    assert listed == {series.exported[0] for series in ALL_SERIES}
