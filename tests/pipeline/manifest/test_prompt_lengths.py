from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from persres.pipeline.manifest.prompt_lengths import PromptLengths, check_prompt_lengths
from persres.pipeline.manifest.row import ManifestRow, ReferenceSource
from persres.pipeline.manifest.scan import prompt_lengths as module

WORDS = ["a", "photo", "of", "sks", "mug", "on", "very", "sand"]


def row(number: int, *prompts: str, macro_class: str = "mug") -> ManifestRow:
    return ManifestRow(number, f"mug-{number}", macro_class, (ReferenceSource("a.png"),), prompts or ("a {concept}",))


def word_tokenizer(limit: int) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(["?", *WORDS])}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="?", model_max_length=limit)


def test_prompts_too_long_for_the_tokenizer_are_found(caplog):
    rows = [row(0, "a {concept}", "a very very very very {concept}"), row(1)]

    [problem] = check_prompt_lengths(rows, word_tokenizer(6), "sks")

    assert (problem.row, problem.concept_id, problem.column) == (0, "mug-0", "prompts")
    assert problem.value == "a very very very very sks mug"
    assert "7 tokens" in problem.reason and problem.fix == "shorten it by 1"
    assert caplog.records == []


def test_the_training_prompt_is_measured_with_each_macro_class():
    rows = [row(0), row(1, "{concept}", macro_class="very very very mug")]

    problems = check_prompt_lengths(rows, word_tokenizer(6), "sks", training_prompt="photo of {concept}")

    assert [(p.row, p.column) for p in problems] == [(1, "macro_class")]
    assert check_prompt_lengths(rows, word_tokenizer(int(1e30)), "sks") == []


prompts = st.lists(st.sampled_from(["a", "very", "möglichst", "sand"]), max_size=6).map(
    lambda words: " ".join([*words, "{concept}"])
)
rows_of_prompts = st.lists(st.lists(prompts, min_size=1, max_size=3), max_size=8)


@given(rows_of_prompts, st.integers(3, 40), st.integers(0, 4))
def test_what_is_found_does_not_depend_on_portions_and_what_is_remembered(all_prompts, limit, portion):
    """Against the obvious way: every text of every row through the tokenizer."""
    rows = [row(number, *prompts) for number, prompts in enumerate(all_prompts)]
    tokenizer = word_tokenizer(limit)

    def tokens(prompt: str) -> int:
        return len(tokenizer(prompt.replace("{concept}", "sks mug"))["input_ids"])

    lengths = PromptLengths(tokenizer, "sks")
    step = portion or len(rows) or 1
    found = [one for start in range(0, len(rows), step) for one in lengths.problems(rows[start : start + step])]
    expected = [one.row for one in rows for prompt in one.prompts if tokens(prompt) > limit]
    assert [one.row for one in found] == expected


def test_a_text_is_measured_once_and_one_that_must_fit_is_not_measured(monkeypatch):
    measured: list[str] = []

    class Counting:
        model_max_length = 16

        def __call__(self, texts: list[str], **_: Any) -> dict[str, list[str]]:
            measured.extend(texts)
            return {"input_ids": texts}

    lengths = PromptLengths(Counting(), "sks")
    rows = [row(0, "a {concept}"), row(1, "in {concept} mm"), row(2, "in {concept} mm"), row(3, "ä {concept}")]
    assert lengths.problems(rows) == lengths.problems(rows) == []
    assert sorted(measured) == ["in sks mug mm", "ä sks mug"]
    monkeypatch.setattr(module, "_REMEMBERED", 0)
    assert lengths.problems(rows) == [] and len(measured) == 4, "forgotten, and measured again"
