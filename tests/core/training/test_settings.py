from __future__ import annotations

import pytest
from pydantic import ValidationError

from persres.core.training.convergence import EarlyStopping
from persres.core.training.settings import TrainingSettings


def test_max_residual_norm_is_not_fingerprinted():
    bound = TrainingSettings(max_residual_norm=3.0)
    assert bound.fingerprint_fields() == TrainingSettings().fingerprint_fields()


def test_iterations_must_be_a_multiple_of_check_every():
    with pytest.raises(ValidationError, match=r"iterations \(150\) is not a multiple"):
        TrainingSettings(early_stopping=EarlyStopping(check_every=7))
