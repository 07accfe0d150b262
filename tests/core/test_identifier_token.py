"""V*: its position in a prompt, and its embedding, which never changes the shared table."""

from __future__ import annotations

import pytest
import torch

from persres.core.base_model import BaseModel
from persres.core.errors import ConceptError, InvalidInput
from persres.core.identifier_token import (
    concept_token_mask,
    encode_prompts,
    identifier_embedding,
    identifier_id,
    tokenize,
    tokenize_concept_prompt,
)


def test_concept_tokens_are_found_in_a_prompt(sd1: BaseModel):
    prompt = tokenize_concept_prompt(sd1.tokenizer, "a photo of a {concept} on grass", "sks", "mug")
    assert prompt.text == "a photo of a sks mug on grass"
    words = sd1.tokenizer.convert_ids_to_tokens(list(prompt.ids))
    assert [words[place] for place in prompt.concept_positions] == ["sks</w>", "mug</w>"]
    assert prompt.identifier_position == prompt.concept_positions[0] == 5
    assert concept_token_mask([prompt]).sum() == 2 and len(prompt.ids) == 16


def test_all_tokens_of_a_long_macro_class_belong_to_the_concept(sd1: BaseModel):
    prompt = tokenize_concept_prompt(sd1.tokenizer, "{concept} in sand", "sks", "two handled watering can")
    assert len(prompt.concept_positions) == 5


def test_text_glued_to_the_placeholder_is_refused(sd1: BaseModel):
    with pytest.raises(ConceptError, match="leave a space"):
        tokenize_concept_prompt(sd1.tokenizer, "a {concept}s", "sks", "mug")


@pytest.mark.parametrize("word", ["mugs sks", "xyzzy", "?"])
def test_identifier_of_several_tokens_is_refused(sd1: BaseModel, word: str):
    with pytest.raises(InvalidInput, match="identifier_token"):
        identifier_id(sd1.tokenizer, word)


def test_replacing_an_embedding_by_itself_changes_nothing(base: BaseModel):
    prompts = [tokenize_concept_prompt(base.tokenizer, "a {concept}", "sks", "mug"), tokenize(base.tokenizer, "a dog")]
    plain = encode_prompts(base, prompts)
    own = identifier_embedding(base, "sks").expand(2, -1)
    assert torch.equal(encode_prompts(base, prompts, own), plain)


def test_each_prompt_gets_its_own_embedding_and_the_table_is_unchanged(base: BaseModel):
    table = base.text_encoder.get_input_embeddings().weight.clone()
    prompt = tokenize_concept_prompt(base.tokenizer, "a {concept}", "sks", "mug")
    plain = tokenize(base.tokenizer, "a dog")
    identifiers = torch.randn(3, 32, requires_grad=True)
    states = encode_prompts(base, [prompt, prompt, plain], identifiers)
    assert not torch.allclose(states[0], states[1])
    assert torch.allclose(states[2], encode_prompts(base, [plain])[0], atol=1e-5)
    states[0].sum().backward()
    assert identifiers.grad is not None
    assert identifiers.grad[0].abs().sum() > 0 and identifiers.grad[1:].abs().sum() == 0
    assert torch.equal(base.text_encoder.get_input_embeddings().weight, table)
