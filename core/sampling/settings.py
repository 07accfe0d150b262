"""Settings of rendering. Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ..settings import Settings

Variant = Literal["base", "residual", "lag"]


class SamplingSettings(Settings):
    """Settings of rendering."""

    steps: int = Field(default=50, ge=1, le=1000, description="denoising steps")
    guidance_scale: float = Field(default=7.5, ge=1, le=50, description="classifier-free guidance; 1: none")
    scheduler: Literal["ddim", "dpmsolver++"] = Field(
        default="ddim", description="the denoising scheduler of diffusers"
    )
    variants: tuple[Variant, ...] = Field(
        default=("lag",),
        min_length=1,
        description="lag: residual where attention finds the concept; residual: everywhere; base: base model alone",
    )
    unconditional: Literal["share_mask", "base"] = Field(
        default="share_mask",
        description="unconditional half of guidance: residual with the conditional half's mask, or base weights",
    )
    mask_quantile: float = Field(
        default=0.5, gt=0, lt=1, description="attention above this quantile belongs to the concept; paper: the median"
    )
    negative_prompt: str = Field(default="", description="prompt of the unconditional half")
    images_per_prompt: int = Field(default=1, ge=1, le=1000, description="images per prompt, each with its own seed")
    height: int | None = Field(default=None, ge=8, description="pixels; null: the base model's resolution")
    width: int | None = Field(default=None, ge=8, description="pixels; null: the base model's resolution")
    batch_size: int = Field(
        default=8, ge=1, le=1024, description="images per batch, of any concepts; short batches are padded"
    )

    @classmethod
    def not_fingerprinted(cls) -> frozenset[str]:
        return frozenset({"batch_size"})
