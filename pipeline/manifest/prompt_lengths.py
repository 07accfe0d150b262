"""Prompts that the text encoder would cut off, found before a GPU is asked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ...core.concept import expand_template
from ...core.errors import Problem
from .row import ManifestRow, shown

_NO_LENGTH_LIMIT = 10**6  # tokenizers without a limit report an astronomical one
_TOKENS_AROUND = 4  # a start, an end, and what else a tokenizer may put around a text
_REMEMBERED = 65_536


class PromptLengths:
    """Measures the prompts of rows, each different text once, as long as there are not too many to remember.

    Args:
        tokenizer: a Hugging Face tokenizer; its `model_max_length` is the limit, start and end tokens included.
        identifier_token: the word that stands for V*.
        training_prompt: the template that every concept is trained with, to be checked too.
    """

    def __init__(self, tokenizer: Any, identifier_token: str, training_prompt: str | None = None) -> None:
        self._tokenizer = tokenizer
        self._identifier_token = identifier_token
        self._training_prompt = training_prompt
        self._limit = int(tokenizer.model_max_length)
        self._fits: set[tuple[str, tuple[str, ...]]] = set()

    def problems(self, rows: Iterable[ManifestRow]) -> list[Problem]:
        """The prompts that are too long once the concept's words are in them; concept level, in the rows' order."""
        if self._limit > _NO_LENGTH_LIMIT:
            return []
        if len(self._fits) > _REMEMBERED:
            self._fits.clear()
        new = [row for row in rows if (row.macro_class, row.prompts) not in self._fits]
        texts = [self._texts(row) for row in new]
        lengths = self._measured({text for of_row in texts for _, text in of_row if not self._surely_fits(text)})
        problems = []
        for row, of_row in zip(new, texts, strict=True):
            found = [self._too_long(row, column, text, lengths.get(text, 0)) for column, text in of_row]
            if any(found):
                problems += filter(None, found)
            else:
                self._fits.add((row.macro_class, row.prompts))
        return problems

    def _texts(self, row: ManifestRow) -> list[tuple[str, str]]:
        """Every text a concept needs, with the column of the manifest that it comes from."""
        templates = [("prompts", prompt) for prompt in row.prompts]
        if self._training_prompt is not None:
            templates.append(("macro_class", self._training_prompt))
        return [(name, expand_template(text, self._identifier_token, row.macro_class)) for name, text in templates]

    def _surely_fits(self, text: str) -> bool:
        """A token stands for one character at least, so most prompts need not be taken apart."""
        return len(text) + _TOKENS_AROUND <= self._limit and text.isascii()

    def _measured(self, texts: set[str]) -> dict[str, int]:
        """The number of tokens of each text."""
        if not texts:
            return {}
        ordered = list(texts)
        ids = self._tokenizer(ordered, truncation=False, verbose=False, return_attention_mask=False)["input_ids"]
        return {text: len(of_text) for text, of_text in zip(ordered, ids, strict=True)}

    def _too_long(self, row: ManifestRow, column: str, text: str, length: int) -> Problem | None:
        if length <= self._limit:
            return None
        what = "prompt" if column == "prompts" else "training prompt"
        reason = f"the {what} is {length} tokens long, the text encoder reads {self._limit}"
        fix = f"shorten it by {length - self._limit}"
        return Problem(reason, fix, "concept", row.row, row.concept_id, column, shown(text))


def check_prompt_lengths(
    rows: Sequence[ManifestRow], tokenizer: Any, identifier_token: str, *, training_prompt: str | None = None
) -> list[Problem]:
    """`PromptLengths.problems` of some rows."""
    return PromptLengths(tokenizer, identifier_token, training_prompt).problems(rows)
