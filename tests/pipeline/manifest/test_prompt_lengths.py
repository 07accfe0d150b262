from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from persres.pipeline.manifest import prompt_lengths as module
from persres.pipeline.manifest.prompt_lengths import PromptLengthChecker
from persres.pipeline.manifest.row import ManifestRow, ReferenceSource

WORDS = ["a", "photo", "of", "sks", "mug", "on", "very", "sand"]


def row(number: int, *prompts: str, macro_class: str = "mug") -> ManifestRow:
    return ManifestRow(number, f"mug-{number}", macro_class, (ReferenceSource("a.png"),), prompts or ("a {concept}",))


def word_tokenizer(limit: int) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(["?", *WORDS])}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="?", model_max_length=limit)


def test_prompt_with_too_many_tokens_is_a_problem(caplog):
    rows = [row(0, "a {concept}", "a very very very very {concept}"), row(1)]

    [problem] = PromptLengthChecker(word_tokenizer(6), "sks", None).check(rows)

    assert (problem.row, problem.concept_id, problem.column) == (0, "mug-0", "prompts")
    assert problem.value == "a very very very very sks mug"
    assert "7 tokens" in problem.reason and problem.fix == "shorten it by 1 token"
    assert caplog.records == []


def test_training_prompt_is_checked_with_each_macro_class():
    rows = [row(0), row(1, "{concept}", macro_class="very very very mug")]

    problems = PromptLengthChecker(word_tokenizer(6), "sks", "photo of {concept}").check(rows)

    assert [(p.row, p.column) for p in problems] == [(1, "macro_class")]
    assert PromptLengthChecker(word_tokenizer(int(1e30)), "sks", None).check(rows) == []


prompts = st.lists(st.sampled_from(["a", "very", "möglichst", "sand"]), max_size=6).map(
    lambda words: " ".join([*words, "{concept}"])
)
rows_of_prompts = st.lists(st.lists(prompts, min_size=1, max_size=3), max_size=8)


@given(rows_of_prompts, st.integers(3, 40), st.integers(0, 4))
def test_check_does_not_depend_on_batches_or_the_cache(all_prompts, limit, batch):
    """Compared with tokenizing each text of each row."""
    rows = [row(number, *prompts) for number, prompts in enumerate(all_prompts)]
    tokenizer = word_tokenizer(limit)

    def tokens(prompt: str) -> int:
        return len(tokenizer(prompt.replace("{concept}", "sks mug"))["input_ids"])

    checker = PromptLengthChecker(tokenizer, "sks", None)
    step = batch or len(rows) or 1
    found = [one for start in range(0, len(rows), step) for one in checker.check(rows[start : start + step])]
    expected = [one.row for one in rows for prompt in one.prompts if tokens(prompt) > limit]
    assert [one.row for one in found] == expected


def test_text_is_tokenized_once_and_short_text_not_at_all(monkeypatch):
    tokenized: list[str] = []

    class Counting:
        model_max_length = 16

        def __call__(self, texts: list[str], **_: Any) -> dict[str, list[str]]:
            tokenized.extend(texts)
            return {"input_ids": texts}

    checker = PromptLengthChecker(Counting(), "sks", None)
    rows = [row(0, "a {concept}"), row(1, "in {concept} mm"), row(2, "in {concept} mm"), row(3, "ä {concept}")]
    assert checker.check(rows) == checker.check(rows) == []
    assert sorted(tokenized) == ["in sks mug mm", "ä sks mug"]
    monkeypatch.setattr(module, "_CACHE_SIZE", 0)
    assert checker.check(rows) == [] and len(tokenized) == 4, "dropped from the cache, and tokenized again"
