"""Loading a worker's models: number format, identifier token, and the tokenizer of the loading thread."""

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

from ...support.catalog_factories import memory_store
from ...support.tiny_models import write_tiny_pipeline


@pytest.fixture(scope="module")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_pipeline(tmp_path_factory.mktemp("model"), "sd1")


def load(base_model: Path, **training):
    spec = RunSpec(base_model=str(base_model), scorer=None, training=TrainingSettings(**training))
    return load_personalizer(spec, resolve_base_model(spec), None, "cpu", memory_store())


def test_personalizer_on_a_cpu_is_float32_with_the_specs_pack_size(base_model):
    personalizer = load(base_model, pack_size=3)
    assert personalizer.base.dtype == torch.float32 and personalizer.scorer is None
    assert personalizer.pack_size == 3


def test_unknown_identifier_token_is_refused(base_model):
    with pytest.raises(InvalidInput, match="identifier_token 'qqq'"):
        load(base_model, identifier_token="qqq")


def test_loading_tokenizer_is_safe_to_use_beside_the_base_models(base_model):
    """Using one tokenizer in two threads sooner or later raises "Already borrowed"."""
    personalizer = load(base_model, pack_size=1)

    def tokenize(tokenizer) -> list[tuple[int, ...]]:
        return [tokenize_concept_prompt(tokenizer, "a {concept} on grass", "sks", "mug").ids for _ in range(300)]

    with ThreadPoolExecutor(2) as threads:
        both = threads.map(tokenize, (personalizer.base.tokenizer, personalizer.loading_tokenizer))
        first, second = both
    assert first == second and len(set(first)) == 1
