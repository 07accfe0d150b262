"""How prompts become images: every setting, its default and what it does. Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ..settings import Settings

Variant = Literal["base", "residual", "lag"]


class SamplingSettings(Settings):
    """How a prompt becomes an image."""

    steps: int = Field(default=50, ge=1, le=1000, description="denoising steps")
    guidance_scale: float = Field(default=7.5, ge=1, le=50, description="classifier-free guidance; 1 switches it off")
    scheduler: Literal["ddim", "dpmsolver++"] = Field(
        default="ddim", description="the denoising scheduler, from diffusers"
    )
    variants: tuple[Variant, ...] = Field(
        default=("lag",),
        min_length=1,
        description="lag: residual where attention finds the concept; residual: everywhere; base: the base model alone",
    )
    unconditional: Literal["share_mask", "base"] = Field(
        default="share_mask",
        description="the unconditional half of guidance: residual under its conditional half's mask, or base weights",
    )
    mask_quantile: float = Field(
        default=0.5, gt=0, lt=1, description="attention above this quantile is the concept; the paper's is the median"
    )
    negative_prompt: str = Field(default="", description="the unconditional half's prompt")
    images_per_prompt: int = Field(
        default=1, ge=1, le=1000, description="images of every prompt, each with its own seed"
    )
    height: int | None = Field(default=None, ge=8, description="pixels; null: the base model's own size")
    width: int | None = Field(default=None, ge=8, description="pixels; null: the base model's own size")
    batch_size: int = Field(
        default=8, ge=1, le=1024, description="images of any concepts denoised together; short batches are padded"
    )

    @classmethod
    def not_fingerprinted(cls) -> frozenset[str]:
        return frozenset({"batch_size"})
