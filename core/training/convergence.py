"""When a concept has learned enough: a deterministic stopping rule in the spirit of DVAR.

The training loss of a diffusion model is mostly its timesteps' luck, so it never shows that nothing more is learned.
The loss on noise, timesteps and references that stay the same does: it falls, then stops falling. With l_1 … l_n the
values of that loss at the checks so far, training ends at the first check at which

    Var(l_{n-w+1} … l_n) < threshold x Var(l_1 … l_n)

(Voronov et al., "Is This Loss Informative?", NeurIPS 2023, who check at every step of one concept.)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import Field

from ..settings import Settings


class EarlyStopping(Settings):
    """End a concept's training when its loss on fixed noise has stopped changing."""

    check_every: int = Field(
        default=10, ge=1, description="iterations between checks; each costs a pass forward, a third of an iteration"
    )
    window: int = Field(default=4, ge=2, description="w: checks over which the loss has to stay where it is")
    threshold: float = Field(
        default=0.05, gt=0, lt=1, description="share of the variance over all checks below which it has stayed"
    )
    min_iterations: int = Field(default=50, ge=0, description="no concept ends before this many iterations")


def has_converged(losses: Sequence[float], settings: EarlyStopping) -> bool:
    """Whether the rule holds after the checks that gave `losses`, the first of them before any training."""
    if len(losses) <= settings.window or (len(losses) - 1) * settings.check_every < settings.min_iterations:
        return False
    values = np.asarray(losses, dtype=np.float64)
    return bool(values[-settings.window :].var() < settings.threshold * values.var())
