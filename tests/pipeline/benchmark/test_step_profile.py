"""The profile of training and of rendering."""

from __future__ import annotations

from persres.pipeline.benchmark.step_profile import profile_steps


def test_profile_has_a_table_of_operators_for_training_and_rendering(sd1, small_plan):
    text = profile_steps(sd1, small_plan)
    training, rendering = text.split("render_lag, 2 denoising steps")
    assert training.startswith("one training step of 2 concepts")
    assert "backward" in training.lower() and "aten::" in training
    assert "aten::" in rendering and "backward" not in rendering.lower()
