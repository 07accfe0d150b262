"""Captions and their tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from persres.pipeline.spriteworld.captions import (
    BACKGROUND_PHRASES,
    DEFAULT_INITIALIZER,
    LENGTH,
    RARE_WORDS,
    Scene,
    build_tokenizer,
    caption,
    plain_prompt,
    stated_caption,
    vocabulary,
)
from persres.pipeline.spriteworld.world import BACKGROUNDS, CLASSES, rng_for

SCENE = Scene("mug", "checkered floor", "orange", "striped")


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return build_tokenizer()


def test_every_word_is_one_token(tokenizer: CLIPTokenizer) -> None:
    assert len(tokenizer) <= 320
    assert [word for word in vocabulary() if len(tokenizer(word).input_ids) != 3] == []
    assert DEFAULT_INITIALIZER in RARE_WORDS
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 1, 1)
    assert tokenizer.model_max_length == LENGTH


def test_captions_stay_within_vocabulary_and_length(tokenizer: CLIPTokenizer) -> None:
    known, seen_letters = set(vocabulary()), 0
    for i in range(2_000):
        text = caption(SCENE, rng_for("caption", i))
        unknown = set(text.split()) - known
        seen_letters += bool(unknown)
        assert len(unknown) <= 1, text
        assert len(tokenizer(text).input_ids) <= LENGTH
    assert 20 < seen_letters < 100


def test_captions_have_the_documented_shares() -> None:
    texts = [caption(SCENE, rng_for("share", i)) for i in range(4_000)]
    not_empty = [text for text in texts if text]
    rare = sum(bool(set(text.split()) & set(RARE_WORDS)) for text in not_empty) / len(not_empty)
    assert abs(1 - len(not_empty) / len(texts) - 0.10) < 0.02
    assert abs(sum("orange" in text for text in not_empty) / len(not_empty) - 0.60) < 0.03
    assert abs(rare - 0.20) < 0.03
    assert abs(sum(text.endswith("mug") for text in not_empty) / len(not_empty) - 0.15) < 0.02
    assert all("mug" in text for text in not_empty)


def test_stated_caption_contains_what_it_states() -> None:
    for i in range(200):
        text, (_, background, body, pattern) = stated_caption(SCENE, rng_for("stated", i))
        assert background == any(text.endswith(phrase) for phrase in BACKGROUND_PHRASES["checkered floor"])
        assert body == ("orange" in text) and pattern == ("striped" in text)


@pytest.mark.parametrize(
    "template",
    [
        "a photo of a {} on grass",
        "a {} in the snow",
        "a {} against a night sky",
        "a {} on a checkered floor",
        "a photo of a {}",
    ],
)
def test_usual_templates_are_in_the_vocabulary(template: str) -> None:
    words = {word for word in template.split() if word != "{}"}
    assert words <= set(vocabulary())


def test_plain_prompts_have_the_right_article() -> None:
    assert plain_prompt("mug", "grass", "orange") == "a photo of an orange mug on grass"
    assert {plain_prompt(k, b) for k in CLASSES for b in BACKGROUNDS}.__len__() == 48


def test_tokenizer_survives_saving(tokenizer: CLIPTokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    again = CLIPTokenizer.from_pretrained(tmp_path)
    text = "a photo of an orange mug on a checkered floor"
    ids = again(text).input_ids
    assert ids == tokenizer(text).input_ids
    assert again.decode(ids, skip_special_tokens=True) == text
    assert again.add_tokens(["<mine>"]) == 1 and len(again("a <mine> mug").input_ids) == 5
