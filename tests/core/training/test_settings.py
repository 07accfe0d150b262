from __future__ import annotations

from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from persres.core.training.convergence import EarlyStopping
from persres.core.training.settings import TrainingSettings

FIRST_FINGERPRINT = {
    "iterations": 150,
    "batch_size": 4,
    "learning_rate": 0.001,
    "rank_fraction": 0.05,
    "initialization": "random",
    "random_std": 0.01,
    "prompt": "a photo of a {concept}",
    "identifier_token": "sks",
    "train_identifier": False,
    "identifier_learning_rate": 0.005,
    "mirror": False,
    "early_stopping": None,
}
"""What the default settings put into fingerprints before there were others."""

ADDED_LATER: dict[str, Any] = {
    "schedule": "linear",
    "warmup_iterations": 3,
    "timesteps": "stratified",
    "timestep_range": (0.1, 1.0),
    "reference_order": "shuffled",
    "antithetic_noise": True,
    "min_snr_gamma": 5.0,
    "max_gradient_norm": 1.0,
    "averaging": "ema",
}


def test_max_residual_norm_is_not_fingerprinted():
    bound = TrainingSettings(max_residual_norm=3.0)
    assert bound.fingerprint_fields() == TrainingSettings().fingerprint_fields()


def test_iterations_must_be_a_multiple_of_check_every():
    with pytest.raises(ValidationError, match=r"iterations \(150\) is not a multiple"):
        TrainingSettings(early_stopping=EarlyStopping(check_every=7))


def test_catalogs_from_before_a_setting_was_added_stay_current():
    assert TrainingSettings().fingerprint_fields() == FIRST_FINGERPRINT
    stopping = {"check_every": 10, "window": 4, "threshold": 0.05, "min_iterations": 50}
    old = TrainingSettings.model_validate({"rank_fraction": 0.25, "learning_rate": 0.01, "early_stopping": stopping})
    expected = FIRST_FINGERPRINT | {"rank_fraction": 0.25, "learning_rate": 0.01, "early_stopping": stopping}
    assert old.fingerprint_fields() == expected


@pytest.mark.parametrize("name", ADDED_LATER)
def test_setting_that_was_added_later_is_fingerprinted_once_it_is_used(name: str):
    used = TrainingSettings(**{name: ADDED_LATER[name]}).fingerprint_fields()
    assert used != FIRST_FINGERPRINT and used.items() >= FIRST_FINGERPRINT.items()


def test_setting_without_effect_is_not_fingerprinted():
    assert TrainingSettings(averaging_iterations=7).fingerprint_fields() == FIRST_FINGERPRINT
    used = TrainingSettings(averaging="ema", averaging_iterations=7).fingerprint_fields()
    assert used != TrainingSettings(averaging="ema").fingerprint_fields()


def test_every_setting_added_later_has_a_default_and_a_test():
    names = TrainingSettings.added_later()
    assert names <= set(TrainingSettings.model_fields)
    assert names - set(ADDED_LATER) == {"decay_iterations", "averaging_iterations"}
    decay = TrainingSettings(schedule="linear", decay_iterations=9)
    assert decay.fingerprint_fields() != TrainingSettings(schedule="linear").fingerprint_fields()


@pytest.mark.parametrize(("given", "rank"), [(0.25, 0.25), (8, 8), (1, 1), (1.0, 1.0)])
def test_rank_is_a_fraction_or_a_number(given: int | float, rank: int | float):
    settings = TrainingSettings(rank=given)
    assert settings.rank == rank and type(settings.rank) is type(rank)
    again = TrainingSettings.model_validate(yaml.safe_load(yaml.safe_dump(settings.model_dump(mode="json"))))
    assert again == settings and type(again.rank) is type(rank)


def test_rank_of_one_is_a_number_and_of_one_point_zero_the_whole_width():
    number, width = TrainingSettings(rank=1), TrainingSettings(rank=1.0)
    assert number.fingerprint_fields() != width.fingerprint_fields()


@pytest.mark.parametrize("given", [0, -3, 0.0, 1.5, 8.0, -0.1, float("nan"), float("inf"), "x", True, [8], None])
def test_other_ranks_are_refused(given: Any):
    with pytest.raises(ValidationError, match="neither a share of the layer's width"):
        TrainingSettings(rank=given)


@pytest.mark.parametrize(("given", "rank"), [(0.05, 0.05), (1, 1.0)])
def test_former_name_of_rank_is_read(given: float, rank: float):
    settings = TrainingSettings.model_validate({"rank_fraction": given})
    assert settings.rank == rank and isinstance(settings.rank, float)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rank_fraction": 0.1, "rank": 8}, "both given"),
        ({"rank_fraction": 8}, "rank_fraction 8 is not in 0 to 1; write a number as rank"),
        ({"decay_iterations": 5}, "no effect with schedule: constant"),
        ({"warmup_iterations": 151}, r"warmup_iterations \(151\) exceed iterations \(150\)"),
        (
            {"schedule": "linear", "warmup_iterations": 100, "decay_iterations": 51},
            r"warmup_iterations \(100\) and decay_iterations \(51\) exceed iterations \(150\)",
        ),
        ({"antithetic_noise": True, "batch_size": 3}, "even batch_size, not 3"),
        ({"timestep_range": (0.5, 0.5)}, r"timestep_range \[0.5, 0.5\] is not a range"),
        ({"timestep_range": (0.0, 1.5)}, "is not a range within 0 to 1"),
        ({"timestep_range": (float("nan"), 1.0)}, "is not a range within 0 to 1"),
        ({"averaging": "tail", "early_stopping": {}}, "needs schedule: linear or cosine"),
        ({"min_snr_gamma": 0}, "greater than 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused_with_the_reason(given: dict[str, Any], message: str):
    with pytest.raises(ValidationError, match=message):
        TrainingSettings.model_validate(given)
