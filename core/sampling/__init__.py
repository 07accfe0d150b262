"""Rendering with residuals: settings, the denoising loop, where attention finds the concept (LAG)."""
