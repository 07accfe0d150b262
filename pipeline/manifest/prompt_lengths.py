"""Find prompts that the text encoder would truncate, before any GPU is used."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ...core.concept import expand_template
from ...core.errors import Problem
from ...core.plural import plural
from .row import ManifestRow, shorten

_NO_LENGTH_LIMIT = 10**6  # tokenizers without a limit report 10**30
_SPECIAL_TOKENS = 4  # at most so many are added to a text: start, end and the like
_CACHE_SIZE = 65_536


class PromptLengthChecker:
    """Finds prompts with more tokens than the text encoder reads. Each different text is tokenized once (cached).

    Args:
        tokenizer: a Hugging Face tokenizer; its `model_max_length` is the limit, start and end tokens included.
        identifier_token: the word used as V*.
        training_prompt: the template that every concept is trained with; None: not checked.
    """

    def __init__(self, tokenizer: Any, identifier_token: str, training_prompt: str | None) -> None:
        self._tokenizer = tokenizer
        self._identifier_token = identifier_token
        self._training_prompt = training_prompt
        self._limit = int(tokenizer.model_max_length)
        self._fits: set[tuple[str, tuple[str, ...]]] = set()

    def check(self, rows: Iterable[ManifestRow]) -> list[Problem]:
        """A concept-level problem for each prompt of `rows` that is too long once expanded, in row order."""
        if self._limit > _NO_LENGTH_LIMIT:
            return []
        if len(self._fits) > _CACHE_SIZE:
            self._fits.clear()
        new = [row for row in rows if (row.macro_class, row.prompts) not in self._fits]
        texts = [self._texts(row) for row in new]
        lengths = self._token_counts({text for of_row in texts for _, text in of_row if not self._must_fit(text)})
        problems = []
        for row, of_row in zip(new, texts, strict=True):
            found = [self._problem(row, column, text, lengths.get(text, 0)) for column, text in of_row]
            if any(found):
                problems += filter(None, found)
            else:
                self._fits.add((row.macro_class, row.prompts))
        return problems

    def _texts(self, row: ManifestRow) -> list[tuple[str, str]]:
        """Each text that a concept needs, with the manifest column that it comes from."""
        templates = [("prompts", prompt) for prompt in row.prompts]
        if self._training_prompt is not None:
            templates.append(("macro_class", self._training_prompt))
        return [(name, expand_template(text, self._identifier_token, row.macro_class)) for name, text in templates]

    def _must_fit(self, text: str) -> bool:
        """Whether a text is short enough without tokenizing it: a token covers at least one character."""
        return len(text) + _SPECIAL_TOKENS <= self._limit and text.isascii()

    def _token_counts(self, texts: set[str]) -> dict[str, int]:
        if not texts:
            return {}
        ordered = list(texts)
        ids = self._tokenizer(ordered, truncation=False, verbose=False, return_attention_mask=False)["input_ids"]
        return {text: len(of_text) for text, of_text in zip(ordered, ids, strict=True)}

    def _problem(self, row: ManifestRow, column: str, text: str, length: int) -> Problem | None:
        if length <= self._limit:
            return None
        what = "prompt" if column == "prompts" else "training prompt"
        reason = f"the {what} is {length} tokens long, the text encoder reads {self._limit}"
        fix = f"shorten it by {plural(length - self._limit, 'token')}"
        return Problem(reason, fix, "concept", row.row, row.concept_id, column, shorten(text))
