"""Runs on a cluster whose nodes are drained, killed and added meanwhile, by tests/programs/node_loss.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]


def play(scenario: str) -> dict[str, Any]:
    """Run a scenario of the program, which commits every concept once; returns what it prints."""
    command = [sys.executable, "-m", "tests.programs.node_loss", scenario]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert ended.returncode == 0, ended.stderr[-3000:]
    found = json.loads(ended.stdout)
    outcome = found["outcome"]
    assert not outcome["failures"] and outcome["left"] == 0
    assert len(set(outcome["committed"])) == len(outcome["committed"]), "nothing is done twice"
    return found


def started(found: dict[str, Any]) -> list[dict[str, Any]]:
    return [line for line in found["log"] if line["event"] == "started"]


def test_drained_node_finishes_its_shards_and_gets_no_more():
    found = play("drained")
    (incident,) = found["outcome"]["incidents"]
    assert "is draining" in incident
    assert len(started(found)) == len(found["outcome"]["committed"]) == 24, "nothing was started twice"
    after = [line for line in started(found) if line["at"] > found["done"]["at"]]
    there = [line for line in after if line["node"] == found["done"]["node"]]
    assert len(there) <= 5 < len(after) - len(there), "the driver polls every few seconds, with two shards in flight"


def test_node_killed_after_draining_blames_no_shard():
    """With one allowed loss: a shard that was blamed would be quarantined."""
    found = play("drained-then-killed")
    assert len(found["outcome"]["committed"]) == 24
    assert not any("lost" in incident or "alone" in incident for incident in found["outcome"]["incidents"])


def test_killed_node_costs_its_shards_another_attempt():
    """Ray reports the actor as unavailable: it may or may not have finished."""
    found = play("killed")
    assert len(found["outcome"]["committed"]) == 12 and found["outcome"]["incidents"]
    nodes = {line["node"] for line in started(found)}
    assert len(nodes) == 2 and found["done"]["node"] in nodes


def test_added_nodes_are_used_and_a_run_survives_the_loss_of_all():
    found = play("added-and-killed")
    assert len(found["outcome"]["committed"]) == 30
    assert found["outcome"]["workers"] == 2, "it started with one"
    assert len({line["node"] for line in started(found)}) == 3
    assert not any("in a row" in incident for incident in found["outcome"]["incidents"])
