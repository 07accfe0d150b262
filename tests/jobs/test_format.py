"""Device hours, money and sizes for people."""

from __future__ import annotations

import pytest

from persres.jobs.cli.catalog import status_lines
from persres.jobs.cli.plan import plan_lines, plan_values
from persres.jobs.cli.printing import summary_lines
from persres.jobs.format import estimate_lines, format_cost, format_hours, format_size
from persres.pipeline.planning.cost import CostEstimate, RunCost
from persres.pipeline.planning.plan import RunPlan
from persres.pipeline.run.catalog_status import CatalogStatus
from persres.pipeline.run.run_status import RunStatus
from persres.pipeline.run.summary import RunSummary

COST = RunCost(1.25, 1.5, "USD", ("NVIDIA H100 80GB HBM3",))
ESTIMATE = CostEstimate(
    concepts=40, images=160, workers=4, device="NVIDIA H100 80GB HBM3", device_hours=2.5, wall_seconds=2400.0,
    amount=3.0, currency="USD", seconds_per_concept=12.125, seconds_per_image=0.18, runs=3, measured_concepts=240,
    measured_images=960,
)  # fmt: skip
PLAN = RunPlan((), (), ("a",), (), ())


def test_estimate_names_the_runs_it_is_based_on():
    assert list(estimate_lines(ESTIMATE)) == [
        "cost: about 2.50 device hours on NVIDIA H100 80GB HBM3, 3.00 USD; 40 min 00 s with 4 workers",
        "  from 3 earlier runs: 12.1 s a trained concept (240 measured), 0.18 s an image (960 measured)",
    ]


def test_estimate_without_measurements_says_why_and_when_there_is_one():
    (line,) = estimate_lines(CostEstimate(40, 160, 4, missing="no run has trained like this"))
    assert line == (
        "cost: cannot be estimated yet: no run has trained like this. After the first shard of the run, `plan` can"
    )


def test_estimate_without_work_is_empty():
    assert list(estimate_lines(CostEstimate(0, 0, 4, device_hours=0.0, wall_seconds=0.0))) == []


def test_plan_summary_and_status_show_the_cost():
    assert any(line.startswith("cost: about 2.50") for line in plan_lines(PLAN, [], cost=ESTIMATE))
    assert plan_values(PLAN, [], cost=ESTIMATE)["cost"] == ESTIMATE
    summary = RunSummary("run-1", 5, 3, (), 2, 0, wall_seconds=185.0, workers=2, device_busy_share=0.9, cost=COST)
    line = "5 rows: 3 done, 0 failed, 2 current (3 min 05 s, 2 workers, device busy 90%, 1.25 device hours, 1.50 USD)"
    assert line in list(summary_lines(summary, None))
    latest = RunStatus("run-1", 3, 3, (), 0, ended=True, report=None, device_busy_share=0.9, cost=COST)
    lines = list(status_lines(CatalogStatus("out", 5, 1, latest, None)))
    assert any(line.endswith("(ended, device busy 90%, 1.25 device hours, 1.50 USD)") for line in lines)


@pytest.mark.parametrize(
    ("cost", "text"),
    [
        (RunCost(0.0025), "9.0 device seconds"),
        (RunCost(0.0025, 0.003, "EUR"), "9.0 device seconds, less than 0.01 EUR"),
        (RunCost(12.0, 0.0, "EUR"), "12.00 device hours, 0.00 EUR"),
    ],
)
def test_format_cost_of_small_amounts(cost, text):
    assert format_cost(cost) == text


def test_format_hours_has_seconds_below_a_hundredth_of_an_hour():
    assert (format_hours(0.01), format_hours(0.009)) == ("0.01 device hours", "32.4 device seconds")


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (2_000_000_000, "2 GB")]
)
def test_format_size_has_three_digits_and_a_unit(count, text):
    assert format_size(count) == text
