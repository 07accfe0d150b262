"""What no run spec may ask of a base model is refused before there is a worker."""

from __future__ import annotations

from pathlib import Path

import pytest

from persres.core.errors import InvalidInput
from persres.core.sampling.settings import SamplingSettings
from persres.core.training.settings import TrainingSettings
from persres.pipeline import spriteworld
from persres.pipeline.planning.run_models import check_spec_fits
from persres.pipeline.spec.run_spec import RunSpec

from ...support.tiny_models import Shape, write_tiny_pipeline


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return write_tiny_pipeline(tmp_path_factory.mktemp("tiny"), "sd1")


@pytest.mark.parametrize("shape", ["sd2", "sdxl"])
def test_every_shape_goes_with_the_defaults(tmp_path, shape: Shape):
    check_spec_fits(RunSpec(), str(write_tiny_pipeline(tmp_path, shape)))


def test_spriteworld_goes_with_the_defaults():
    check_spec_fits(RunSpec(), str(spriteworld.base_model_path()))


@pytest.mark.parametrize(
    ("sampling", "told"),
    [
        ({"height": 16, "width": 24}, None),
        ({"width": 19}, "sampling.width: 19 is no multiple of 2, the pixels of one latent. Fix: for example 20"),
        ({"negative_prompt": "on sand"}, None),
        ({"negative_prompt": "on sand " * 9}, "sampling.negative_prompt is 20 tokens long"),
    ],
)
def test_a_rendering_has_a_size_and_a_negative_prompt_the_model_can_read(tiny, sampling, told):
    spec = RunSpec(sampling=SamplingSettings(**sampling))
    if told is None:
        check_spec_fits(spec, str(tiny))
    else:
        with pytest.raises(InvalidInput) as refused:
            check_spec_fits(spec, str(tiny))
        assert told in str(refused.value)


def test_v_star_is_one_token(tiny):
    with pytest.raises(InvalidInput, match="identifier_token 'handkerchief'"):
        check_spec_fits(RunSpec(training=TrainingSettings(identifier_token="handkerchief")), str(tiny))
