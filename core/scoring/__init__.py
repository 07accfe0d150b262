"""Scoring renderings: settings, CLIP alignment with prompt and references, the gate."""
