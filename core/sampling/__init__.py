"""Rendering with residuals: the denoising loop, and localized attention-guided (LAG) sampling."""
