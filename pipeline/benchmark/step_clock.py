"""Seconds of work made of many like steps, measured over a few and scaled to all of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from .device_peak import synchronize


@dataclass(eq=False)
class StepClock:
    """Started when made. The device is waited for at the first step, the last one and the end, and not in between.

    Args:
        steps: how many will be done.
        seconds: a clock that only grows; tests bring their own.
    """

    device: torch.device
    steps: int
    seconds: Callable[[], float] = time.perf_counter
    _marks: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._mark()

    def stepped(self, done: int) -> None:
        """Tell that `done` steps are finished."""
        if done in (1, self.steps):
            self._mark()

    def scaled_to(self, steps: int) -> float:
        """Stop, and give the seconds that `steps` steps would take: set-up and end once, a step `steps` times.

        With a single step measured, the set-up counts as part of the step.
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
