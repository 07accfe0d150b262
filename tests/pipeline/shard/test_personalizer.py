"""What a worker loads once: models, a pack size, and a tokenizer that the loading thread has to itself."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from persres.core.errors import InvalidInput
from persres.core.identifier_token import tokenize_concept_prompt
from persres.core.training.settings import TrainingSettings
from persres.pipeline.planning.run_models import resolve_base_model
from persres.pipeline.shard.personalizer import load_personalizer
from persres.pipeline.spec.run_spec import RunSpec

from ...support.catalog_samples import memory_store
from ...support.tiny_models import write_tiny_pipeline


@pytest.fixture(scope="module")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_pipeline(tmp_path_factory.mktemp("model"), "sd1")


def load(base_model: Path, **training):
    spec = RunSpec(base_model=str(base_model), scorer=None, training=TrainingSettings(**training))
    return load_personalizer(spec, resolve_base_model(spec), None, "cpu", memory_store())


def test_on_the_cpu_models_are_float32_and_a_fixed_pack_size_is_taken_as_it_is(base_model):
    personalizer = load(base_model, pack_size=3)
    assert personalizer.base.dtype == torch.float32 and personalizer.scorer is None
    assert personalizer.pack_size == 3


def test_an_identifier_the_tokenizer_does_not_know_stops_the_worker_at_once(base_model):
    with pytest.raises(InvalidInput, match="identifier_token 'qqq'"):
        load(base_model, identifier_token="qqq")


def test_prompts_can_be_checked_while_others_are_being_tokenized(base_model):
    """One tokenizer in two threads raises "Already borrowed" sooner or later."""
    personalizer = load(base_model, pack_size=1)

    def tokenize(tokenizer) -> list[tuple[int, ...]]:
        return [tokenize_concept_prompt(tokenizer, "a {concept} on grass", "sks", "mug").ids for _ in range(300)]

    with ThreadPoolExecutor(2) as threads:
        both = threads.map(tokenize, (personalizer.base.tokenizer, personalizer.loading_tokenizer))
        first, second = both
    assert first == second and len(set(first)) == 1
