"""The denoising schedulers, as diffusers' own pipeline sets them up for the same base model.

A scheduler_config.json may be written for another class than the one that renders, and may leave keys out. As in
diffusers, a key that is left out has the default of the class that renders, not of the class that read the file; and
Stable Diffusion 1.x and 2.x never clip latents and start their steps at 1, whatever the file says: old configurations
left out `clip_sample` and `steps_offset`, whose defaults (true and 0) are wrong for a latent model.
"""

from __future__ import annotations

from typing import Any

from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

from ..base_model import BaseModel
from .settings import SamplingSettings

_CLASSES = {"ddim": DDIMScheduler, "dpmsolver++": DPMSolverMultistepScheduler}


def make_scheduler(base: BaseModel, settings: SamplingSettings) -> Any:
    """Return a new diffusers scheduler with the base model's noise schedule, set to `settings.steps` steps."""
    # The configuration names, in `_use_default_values`, the keys that the file leaves out; `from_config` skips them.
    scheduler = _CLASSES[settings.scheduler].from_config(base.scheduler_config)
    if base.text_encoder_2 is None:  # StableDiffusionPipeline.__init__; the XL pipeline takes the file as it is
        forced = {"clip_sample": False, "steps_offset": 1}
        scheduler.register_to_config(**{name: value for name, value in forced.items() if name in scheduler.config})
    scheduler.set_timesteps(settings.steps, device=base.device)
    return scheduler
