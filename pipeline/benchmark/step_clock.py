"""Measure a few of many like steps, and extrapolate the seconds to all of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from ...core.training.device import synchronize


@dataclass(eq=False)
class StepClock:
    """A clock that starts when it is created. Synchronizes with the device only at the first and last step and the end.

    Args:
        steps: the number of steps that will be done.
        seconds: a monotonic clock.
    """

    device: torch.device
    steps: int
    seconds: Callable[[], float] = time.perf_counter
    _marks: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._mark()

    def step_done(self, done: int) -> None:
        """Record that `done` steps are done."""
        if done in (1, self.steps):
            self._mark()

    def seconds_for(self, steps: int) -> float:
        """Stop the clock and return the seconds that `steps` steps would take, with set-up and end counted once.

        If only one step was measured, the set-up counts as part of the step.
        """
        self._mark()
        if len(self._marks) == 3:
            started, last, ended = self._marks
            return (last - started) * steps + (ended - last)
        started, first, last, ended = self._marks
        step = (last - first) / (self.steps - 1)
        return max(0.0, first - started - step) + step * steps + (ended - last)

    def _mark(self) -> None:
        synchronize(self.device)
        self._marks.append(self.seconds())
