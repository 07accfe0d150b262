"""Lines that several commands print."""

from __future__ import annotations

from persres.core.errors import ConceptFailure
from persres.jobs.cli.plan import plan_lines, plan_values
from persres.jobs.cli.printing import failure_lines, print_choices, summary_lines
from persres.pipeline.planning.plan import RunPlan
from persres.pipeline.run.summary import RunSummary

PLAN = RunPlan((), (), ("a",), ("old-mug",), ())


def test_plan_lists_removed_concepts_and_their_fate():
    kept, pruned = "\n".join(plan_lines(PLAN, [])), "\n".join(plan_lines(PLAN, [], prune=True))
    assert "old-mug" in kept and "they are kept" in kept and "--prune" in kept and "nothing to do" in kept
    assert "old-mug" in pruned and "they are removed" in pruned and "nothing else to do" in pruned
    assert plan_values(PLAN, [])["pruned"] == [] and plan_values(PLAN, [], prune=True)["pruned"] == ["old-mug"]


def test_summary_counts_forgotten_concepts():
    summary = RunSummary("run", rows=1, committed=0, failed=(), current=1, removed=2)
    lines = "\n".join(summary_lines(summary, None, pruned=2))
    assert "nothing to train or render" in lines and "forgot 2 concepts that the manifest no longer lists" in lines
    assert "nothing to do" in "\n".join(summary_lines(summary, None))


def test_failures_beyond_the_tenth_are_counted():
    lines = list(failure_lines([ConceptFailure(f"c{number}", "train", "NaN", "lower it") for number in range(12)]))
    assert lines[0] == "  failed: c0 (train): NaN. Fix: lower it"
    assert (len(lines), lines[-1]) == (11, "  … and 2 more")


def test_choices_are_printed_on_standard_error_in_the_log_format(capsys):
    print_choices(None, "catalog: out (beside the manifest)")
    assert capsys.readouterr() == ("", "catalog: out (beside the manifest)\n")
    print_choices(None)
    assert capsys.readouterr() == ("", "")
    print_choices("run spec: run.yaml (beside the manifest)", log_format="json")
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith("{") and '"event": "notice"' in shown.err
