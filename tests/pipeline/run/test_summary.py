from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from persres.core.errors import ConceptFailure
from persres.pipeline.catalog.commit_record import CommittedConcept, Measured
from persres.pipeline.planning.plan import plan_run
from persres.pipeline.run.summary import AccountingError, RunSummary, account_for, device_busy_share
from persres.pipeline.spec.prices import Prices

from ...support.catalog_factories import planned

MEASURED = Measured("gpu", "t", "r", 4, concepts=2, iterations=20, pack_steps=10, train_seconds=3.0)


def held(concept_id: str, training: str = "t1", rendering: str = "r1") -> CommittedConcept:
    return CommittedConcept(concept_id, "mug", training, rendering, "residuals/x.parquet", 0)


def failure(concept_id: str) -> ConceptFailure:
    return ConceptFailure(concept_id, "train", "the loss is not a number", "lower the learning rate")


def account(plan, committed, failures) -> RunSummary:
    return account_for(
        plan,
        committed,
        failures,
        run_id="run-1",
        seconds={"load": 9.0, "train": 2.0, "render": 1.5, "score": 0.5, "commit": 9.0},
        ready_seconds=5.0,
        wall_seconds=3.5,
        workers=2,
        versions={"torch": "2"},
        measured=[MEASURED, MEASURED],
        start_seconds=1.5,
        prices=Prices(device_hour=3600.0),
    )


@given(st.lists(st.sampled_from(["done", "failed", "current", "edited", "unplannable", "both"]), max_size=12))
def test_summary_counts_every_row_once(fates):
    """`both`: committed by an attempt whose worker died, and then failed by another."""
    names = {f"c{number}": fate for number, fate in enumerate(fates)}
    before = {
        name: held(name, rendering="r0" if fate == "edited" else "r1")
        for name, fate in names.items()
        if fate in ("current", "edited")
    }
    plan = plan_run(
        [planned(name) for name, fate in names.items() if fate != "unplannable"],
        [failure(name) for name, fate in names.items() if fate == "unplannable"],
        before,
    )
    after = before | {name: held(name) for name, fate in names.items() if fate in ("done", "edited", "both")}
    summary = account(plan, after, [failure(name) for name, fate in names.items() if fate in ("failed", "both")])
    assert summary.rows == len(names)
    assert summary.committed == sum(fate in ("done", "edited", "both") for fate in fates)
    assert summary.current == fates.count("current")
    assert [one.concept_id for one in summary.failed] == sorted(
        n for n, fate in names.items() if fate in ("failed", "unplannable")
    )
    assert summary.device_busy_share == 0.8, "loading and committing run beside the device's work"
    (measured,) = summary.measured
    assert (measured.shards, measured.concepts, measured.train_seconds) == (2, 4, 6.0)
    assert summary.cost and summary.cost.amount == pytest.approx(5.0, abs=1e-3), "what is paid for is the workers' time"
    assert RunSummary.from_json(summary.to_json()) == summary


@pytest.mark.parametrize("after", [{}, {"a": held("a", training="old")}, {"a": held("a", rendering="old")}])
def test_summary_names_a_concept_that_is_neither_committed_nor_failed(after):
    with pytest.raises(AccountingError, match=r"neither committed nor failed: \['a'\].*Fix: submit again"):
        account(plan_run([planned("a")], [], {}), after, [])


def test_summary_names_a_failure_that_was_never_planned():
    with pytest.raises(AccountingError, match=r"never planned: \['x'\]"):
        account(plan_run([planned("a")], [], {}), {"a": held("a")}, [failure("x")])


def test_summary_check_refuses_counts_that_do_not_add_up():
    good = RunSummary("r", 3, 1, (failure("a"),), 1, 5)
    good.check()
    for bad in (RunSummary("r", 4, 1, (failure("a"),), 1, 0), RunSummary("r", 4, 1, (failure("a"),) * 2, 1, 0)):
        with pytest.raises(AccountingError, match="the manifest has 4 rows"):
            bad.check()


def test_device_busy_share_without_a_worker_is_none():
    assert device_busy_share({}, 0.0) is None and device_busy_share({"train": 1.01}, 1.0) == 1.0


def test_summary_of_a_later_version_is_read():
    summary = RunSummary("r", 1, 1, (), 0, 0)
    assert RunSummary.from_json(json.dumps({**json.loads(summary.to_json()), "new": 1}).encode()) == summary
