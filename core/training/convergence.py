"""Early stopping: a deterministic rule after DVAR (Voronov et al., "Is This Loss Informative?", NeurIPS 2023).

The training loss of a diffusion model varies mostly with the timesteps drawn, so it does not show convergence. The loss
on fixed noise, timesteps and references does: it falls, then stays constant. With l_1 … l_n the values of that loss at
the checks so far and w the window, training ends at the first check with

    Var(l_{n-w+1} … l_n) < threshold x Var(l_1 … l_n)

DVAR checks at every step of a single concept; here a check is made every `check_every` iterations.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import Field

from ..settings import Settings


class EarlyStopping(Settings):
    """End a concept's training when its loss on fixed noise has become constant."""

    check_every: int = Field(
        default=10, ge=1, description="iterations between checks; a check costs about a third of an iteration"
    )
    window: int = Field(default=4, ge=2, description="w: number of last checks whose losses must be constant")
    threshold: float = Field(
        default=0.05,
        gt=0,
        lt=1,
        description="constant: the variance over the window is below this share of that over all checks",
    )
    min_iterations: int = Field(default=50, ge=0, description="iterations before which no concept's training ends")


def has_converged(losses: Sequence[float], settings: EarlyStopping) -> bool:
    """Whether training ends after checks with these losses. The first check is made before the first iteration."""
    if len(losses) <= settings.window or (len(losses) - 1) * settings.check_every < settings.min_iterations:
        return False
    values = np.asarray(losses, dtype=np.float64)
    return bool(values[-settings.window :].var() < settings.threshold * values.var())
