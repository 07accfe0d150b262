"""A run spec that does not suit its base model is refused before a worker starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from persres.core.errors import InvalidInput
from persres.core.sampling.settings import SamplingSettings
from persres.core.training.settings import TrainingSettings
from persres.pipeline import spriteworld
from persres.pipeline.planning.run_models import check_spec_fits_model
from persres.pipeline.spec.run_spec import RunSpec

from ...support.tiny_models import Shape, write_tiny_pipeline


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return write_tiny_pipeline(tmp_path_factory.mktemp("tiny"), "sd1")


@pytest.mark.parametrize("shape", ["sd2", "sdxl"])
def test_default_spec_fits_every_architecture(tmp_path, shape: Shape):
    check_spec_fits_model(RunSpec(), str(write_tiny_pipeline(tmp_path, shape)))


def test_default_spec_fits_spriteworld():
    check_spec_fits_model(RunSpec(), str(spriteworld.base_model_path()))


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ({"height": 16, "width": 24}, None),
        ({"width": 19}, "sampling.width: 19 is not a multiple of 2, the pixels per latent. Fix: for example 20"),
        ({"negative_prompt": "on sand"}, None),
        ({"negative_prompt": "on sand " * 9}, "sampling.negative_prompt is 20 tokens long"),
    ],
)
def test_size_and_negative_prompt_must_suit_the_model(tiny, sampling, message):
    spec = RunSpec(sampling=SamplingSettings(**sampling))
    if message is None:
        check_spec_fits_model(spec, str(tiny))
    else:
        with pytest.raises(InvalidInput) as refused:
            check_spec_fits_model(spec, str(tiny))
        assert message in str(refused.value)


def test_identifier_token_must_be_one_token(tiny):
    with pytest.raises(InvalidInput, match="identifier_token 'handkerchief'"):
        check_spec_fits_model(RunSpec(training=TrainingSettings(identifier_token="handkerchief")), str(tiny))
