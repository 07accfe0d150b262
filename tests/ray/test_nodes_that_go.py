"""Runs on a real cluster whose machines get notice, die, join and all leave; nodes_that_go.py carries them out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def carried_out(scenario: str) -> dict[str, Any]:
    command = [sys.executable, str(Path(__file__).parents[1] / "programs" / "nodes_that_go.py"), scenario]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    outcome = found["outcome"]
    assert not outcome["failures"] and outcome["left"] == 0
    assert len(set(outcome["committed"])) == len(outcome["committed"]), "nothing is done twice"
    return found


def begun(found: dict[str, Any]) -> list[dict[str, Any]]:
    return [line for line in found["log"] if line["what"] == "begun"]


def test_a_machine_with_notice_finishes_what_it_has_and_gets_no_more():
    found = carried_out("notice")
    (incident,) = found["outcome"]["incidents"]
    assert "has been given notice" in incident
    assert len(begun(found)) == len(found["outcome"]["committed"]) == 24, "nothing was begun twice"
    after = [line for line in begun(found) if line["at"] > found["told"]["at"]]
    there = [line for line in after if line["node"] == found["told"]["node"]]
    assert len(there) <= 5 < len(after) - len(there), "the driver looks every few seconds, and there are two in hand"


def test_a_machine_that_goes_after_its_notice_is_nobodys_fault():
    """With a single allowed loss: a shard that was blamed for it would be quarantined."""
    found = carried_out("notice-then-gone")
    assert len(found["outcome"]["committed"]) == 24
    assert not any("lost" in incident or "alone" in incident for incident in found["outcome"]["incidents"])


def test_a_machine_that_dies_costs_its_shards_another_try():
    """Ray tells of it as of an actor that is unavailable, and may or may not have done its work."""
    found = carried_out("lost")
    assert len(found["outcome"]["committed"]) == 12 and found["outcome"]["incidents"]
    nodes = {line["node"] for line in begun(found)}
    assert len(nodes) == 2 and found["told"]["node"] in nodes


def test_machines_that_join_are_used_and_a_run_outlives_all_of_them():
    found = carried_out("join-and-leave")
    assert len(found["outcome"]["committed"]) == 30
    assert found["outcome"]["workers"] == 2, "it began with one"
    assert len({line["node"] for line in begun(found)}) == 3
    assert not any("in a row" in incident for incident in found["outcome"]["incidents"])
