"""The states of a run and the outcomes of a `submit`: one vocabulary for commands, JSON, webhook and metrics."""

from __future__ import annotations

from typing import Literal, get_args

RunState = Literal["waiting", "running", "ended", "stopped", "failed", "lost"]
"""waiting: for a place on its cluster, or for its catalog. running: its driver works and renews its lease. ended: every
concept is committed or failed. stopped: by a signal or by `persres-batch stop`. failed: the run recorded why. lost: the
run recorded nothing, and its lease has expired."""

OVER = frozenset[RunState]({"ended", "stopped", "failed", "lost"})
"""States that a run does not leave again."""

SubmitOutcome = Literal["ended", "idle", "failed", "stopped", "refused", "held"]
"""How one `submit` ended. ended, failed, stopped: as for a run. idle: all concepts were current, and no run started.
refused: the manifest, the run spec or the command cannot be used. held: another run holds the catalog."""

SUBMIT_OUTCOMES: tuple[SubmitOutcome, ...] = get_args(SubmitOutcome)
