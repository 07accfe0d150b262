"""V*: its position in a prompt, and its embedding, which never changes the shared table."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from persres.core.base_model import BaseModel, load_base_model
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


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("sks mug on a {concept}", ["sks</w>", "mug</w>"]),
        ("{concept} on a sks mug", ["sks</w>", "mug</w>"]),
        ("a sks mug, a {concept}, a sks mug", ["sks</w>", "mug</w>"]),
        ("SKS {concept} sks", ["sks</w>", "mug</w>"]),
        ("a  {concept}  in   sand", ["sks</w>", "mug</w>"]),
        ("été: {concept}", ["sks</w>", "mug</w>"]),
    ],
)
def test_the_placeholder_is_marked_and_not_the_same_words_elsewhere(sd1: BaseModel, template: str, words: list[str]):
    prompt = tokenize_concept_prompt(sd1.tokenizer, template, "sks", "mug")
    found = sd1.tokenizer.convert_ids_to_tokens(list(prompt.ids))
    assert [found[place] for place in prompt.concept_positions] == words
    spans = sd1.tokenizer(prompt.text, return_offsets_mapping=True)["offset_mapping"]
    assert spans[prompt.concept_positions[0]][0] == template.index("{concept}")
    assert prompt.identifier_position == prompt.concept_positions[0]


PIECES = st.lists(st.sampled_from(["a", "mug", "sks", "on", "dog", ",", "-", " ", "s", "Ä", "{"]), max_size=6)


@given(PIECES, PIECES)
def test_marked_tokens_cover_the_placeholder(sd1: BaseModel, before: list[str], after: list[str]):
    front, back = "".join(before), "".join(after)
    try:
        prompt = tokenize_concept_prompt(sd1.tokenizer, f"{front}{{concept}}{back}", "sks", "mug")
    except ConceptError as error:
        assert len(front) + len(back) > 6 or front[-1:].isalpha() or "tokens" in error.message
        return
    spans = sd1.tokenizer(prompt.text, return_offsets_mapping=True)["offset_mapping"]
    inside = range(len(front), len(front) + len("sks mug"))
    for place, (first, last) in enumerate(spans):
        assert (place in prompt.concept_positions) == any(first <= character < last for character in inside)
    assert prompt.identifier_position is not None
    assert prompt.ids[prompt.identifier_position] == identifier_id(sd1.tokenizer, "sks")


@pytest.mark.parametrize("template", ["a {concept}s", "{concept}'s hat", "two {concept}-like things", "“{concept}”"])
def test_text_may_follow_the_placeholder_at_once(sd1: BaseModel, template: str):
    prompt = tokenize_concept_prompt(sd1.tokenizer, template, "sks", "mug")
    assert prompt.identifier_position == prompt.concept_positions[0]
    assert len(prompt.concept_positions) >= 2


@pytest.mark.parametrize("template", ["a c{concept}", "c{concept} in sand", "a c{concept}s"])
def test_text_that_merges_with_the_identifier_is_refused(sd1: BaseModel, template: str):
    """Of "can mug" the first word is one token, and not that of V*."""
    with pytest.raises(ConceptError, match="leave a space"):
        tokenize_concept_prompt(sd1.tokenizer, template, "an", "mug")


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


@pytest.mark.parametrize("length", [None, 10**30, 99])
def test_prompts_are_as_long_as_the_text_encoder_reads(tiny_folder: Path, tmp_path: Path, length: int | None):
    """A tokenizer that states no length, or a longer one than its text encoder has positions for."""
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    path = folder / "tokenizer" / "tokenizer_config.json"
    config = json.loads(path.read_text())
    del config["model_max_length"]
    path.write_text(json.dumps(config if length is None else config | {"model_max_length": length}))
    base = load_base_model(folder, name="tiny", revision="1")
    prompt = tokenize_concept_prompt(base.tokenizer, "a photo of a {concept}", "sks", "mug")
    assert len(prompt.ids) == 16
    assert encode_prompts(base, [prompt]).shape == (1, 16, 32)
    with pytest.raises(ConceptError, match="the base model reads 16"):
        tokenize(base.tokenizer, "a mug " * 9)
