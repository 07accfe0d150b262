"""The course of one concept's learning rates: they rise, stay, and fall to zero.

With T iterations, the first w of them warm-up and the last d of them decay, iteration i (from 0) has the rates times

    (i + 1) / (w + 1)                        i < w
    1                                        w <= i < T - d
    1 - x,  or  (1 + cos(pi x)) / 2          i >= T - d,  x = (i - (T - d)) / d

so neither the first nor the last iteration is lost to a rate of zero. When early stopping finds that a concept has
learned what there is to learn at the full rate, its decay starts there and then, and T is d iterations later.
"""

from __future__ import annotations

import math

from .settings import TrainingSettings


class LearningRateCourse:
    """The factor of a concept's learning rates at every iteration, and the number of its iterations.

    Attributes:
        iterations: T; smaller once the decay has been started early.
    """

    def __init__(self, settings: TrainingSettings, iterations: int) -> None:
        self.iterations = iterations
        self._schedule = settings.schedule
        self._warmup = min(settings.warmup_iterations, iterations)
        decay = settings.longest_decay
        self._decay = min(iterations - self._warmup, iterations if decay is None else decay)

    @property
    def decays(self) -> bool:
        """Whether the rates fall to zero."""
        return self._schedule != "constant"

    def start_decay(self, iteration: int) -> None:
        """Let the decay begin at `iteration` (not before the warm-up's end), unless it has begun or begins earlier."""
        start = max(iteration, self._warmup)
        if start + self._decay < self.iterations:
            self.iterations = start + self._decay

    def factor(self, iteration: int) -> float:
        """Return the factor of iteration i, from 0; 0.0 from the end of a decay on."""
        if iteration < self._warmup:
            return (iteration + 1) / (self._warmup + 1)
        start = self.iterations - self._decay
        if not self.decays or iteration < start:
            return 1.0
        x = (iteration - start) / self._decay if iteration < self.iterations else 1.0
        return 1.0 - x if self._schedule == "linear" else (1.0 + math.cos(math.pi * x)) / 2
