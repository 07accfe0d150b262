"""The metrics of a run, read where Prometheus reads them: at the metrics port of a real Ray's node."""

from __future__ import annotations

import re
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable

import pytest
import ray

from persres.jobs.driver.progress import RunProgress
from persres.jobs.observe.metrics import ALL_SERIES, RunMetrics
from persres.pipeline.shard.summary import ShardSummary

pytestmark = pytest.mark.slow  # Ray reports every ten seconds

RUN = "20261123T030000Z-abc123"
SAMPLE = re.compile(r"^(ray_persres_\w+)\{(.*)\} (\S+)$", re.MULTILINE)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def summary(attempt: str, seconds: dict[str, float], pack_size: int | None, written: int = 0) -> ShardSummary:
    return ShardSummary("shard", attempt, ("a", "b"), (), seconds, pack_size=pack_size, bytes_written=written)


def scrape() -> dict[tuple[str, ...], float]:
    """The samples of this run, by name and labels."""
    (node,) = ray.nodes()
    with urllib.request.urlopen(f"http://127.0.0.1:{node['MetricsExportPort']}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found: dict[tuple[str, ...], float] = defaultdict(float)
    for name, labels, value in SAMPLE.findall(text):
        label = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        if label.get("run") == RUN and "le" not in label:
            found[name, *(label[key] for key in ("state", "phase") if key in label)] += float(value)
    return found


def scrape_until(enough: Callable[[dict], bool], keep_alive: Callable[[], None]) -> dict[tuple[str, ...], float]:
    for _ in range(120):
        keep_alive()
        found = scrape()
        if enough(found):
            return found
        time.sleep(0.5)
    raise AssertionError(f"not exported within a minute; found {dict(found)}")


def test_metrics_are_exported_at_the_metrics_port(local_ray):
    clock = Clock()
    metrics = RunMetrics(RUN, clock=clock)
    metrics.on_progress(RunProgress(committed=0, failed=0, left=10, in_progress=0.0, workers=2, shards_waiting=5))
    clock.now += 100.0  # two workers have been ready for 200 seconds in total
    metrics.on_shard_end(summary("001", {"load": 2.0, "train": 60.0, "render": 20.0}, 4, 1000))
    metrics.on_shard_end(summary("003", {"train": 15.0, "score": 5.0, "commit": 3.0}, None, 24))
    metrics.on_shard_end(summary("001", {}, 2))
    metrics.on_incident("a worker was lost")
    metrics.on_incident("a shard was split")
    latest = RunProgress(4, 1, 5, in_progress=1.5, workers=2, shards_waiting=3, seconds_to_go=123.0)

    found = scrape_until(
        lambda found: found.get(("ray_persres_concepts", "committed")) == 4.0 and len(found) >= 18,
        lambda: metrics.on_progress(latest),
    )

    assert found == {
        ("ray_persres_concepts", "committed"): 4.0,
        ("ray_persres_concepts", "failed"): 1.0,
        ("ray_persres_concepts", "underway"): 1.5,
        ("ray_persres_concepts", "waiting"): 3.5,
        ("ray_persres_workers",): 2.0,
        ("ray_persres_shards_waiting",): 3.0,
        ("ray_persres_seconds_to_go",): 123.0,
        ("ray_persres_device_busy_share",): 0.5,
        ("ray_persres_pack_size",): 2.0,
        ("ray_persres_phase_seconds_total", "load"): 2.0,
        ("ray_persres_phase_seconds_total", "train"): 75.0,
        ("ray_persres_phase_seconds_total", "render"): 20.0,
        ("ray_persres_phase_seconds_total", "score"): 5.0,
        ("ray_persres_phase_seconds_total", "commit"): 3.0,
        ("ray_persres_shards_ended_total",): 3.0,
        ("ray_persres_shard_retries_total",): 2.0,
        ("ray_persres_incidents_total",): 2.0,
        ("ray_persres_bytes_written_total",): 1024.0,
        ("ray_persres_shard_seconds_count",): 3.0,
        ("ray_persres_shard_seconds_sum",): pytest.approx(found["ray_persres_shard_seconds_sum",]),
    }
    exported = {name for series in ALL_SERIES for name in series.exported if not name.endswith("_bucket")}
    assert exported <= {name for name, *_ in found}
