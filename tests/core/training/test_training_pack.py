from __future__ import annotations

import pytest

from persres.core.base_model import BaseModel
from persres.core.errors import InvalidInput
from persres.core.training.settings import TrainingSettings
from persres.core.training.training_pack import TrainingPack


def test_trained_identifier_with_two_text_encoders_is_refused(sdxl: BaseModel):
    with pytest.raises(InvalidInput, match="two text encoders") as caught:
        TrainingPack(sdxl, TrainingSettings(train_identifier=True), 1)
    assert "train_identifier: false" in (caught.value.fix or "")
