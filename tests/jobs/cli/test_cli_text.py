"""What the commands say about a plan and about a run."""

from __future__ import annotations

from persres.jobs.cli.cli_text import plan_lines, plan_values, summary_lines
from persres.pipeline.planning.plan import RunPlan
from persres.pipeline.run.summary import RunSummary

PLAN = RunPlan((), (), ("a",), ("old-mug",), ())


def test_a_plan_names_what_the_manifest_no_longer_lists_and_what_becomes_of_it():
    kept, pruned = "\n".join(plan_lines(PLAN, [])), "\n".join(plan_lines(PLAN, [], prune=True))
    assert "old-mug" in kept and "they are kept" in kept and "--prune" in kept
    assert "old-mug" in pruned and "they are removed" in pruned
    assert plan_values(PLAN, [])["pruned"] == [] and plan_values(PLAN, [], prune=True)["pruned"] == ["old-mug"]


def test_a_summary_tells_how_many_were_forgotten():
    summary = RunSummary("run", rows=1, committed=0, failed=(), current=1, removed=2)
    lines = "\n".join(summary_lines(summary, None, pruned=2))
    assert "nothing to train or render" in lines and "2 that the manifest no longer lists are forgotten" in lines
    assert "nothing to do" in "\n".join(summary_lines(summary, None))
