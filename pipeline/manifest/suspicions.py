"""Texts of a manifest that are accepted and surely not meant: other placeholders, a class that is no noun."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from ...core.concept import PLACEHOLDER
from .row import ManifestRow, shorten

_DOUBLED = "{" + PLACEHOLDER + "}"
_BRACES = re.compile(r"\{+[^{}]*\}+|[{}]+")
_NO_CLASS = frozenset({
    "nan", "none", "null", "na", "n/a", "nil", "nat", "<na>", "undefined", "unknown", "missing", "empty",
    "true", "false", "-", "--", "?", ".", "tbd", "todo", "inf", "-inf",
})  # fmt: skip
_ROWS_SHOWN = 3


@dataclass(slots=True)
class _Finding:
    """What is odd about one text, and the rows that have it."""

    column: str
    text: str
    reason: str
    fix: str
    rows: list[int] = field(default_factory=list)

    def __str__(self) -> str:
        shown = ", ".join(map(str, self.rows[:_ROWS_SHOWN]))
        more = f" and {len(self.rows) - _ROWS_SHOWN} more" if len(self.rows) > _ROWS_SHOWN else ""
        where = f"row{'s' if len(self.rows) > 1 else ''} {shown}{more}, " if self.rows else "run spec, "
        return f"{where}{self.column} {shorten(self.text)!r}: {self.reason}. Fix: {self.fix}"


def suspicions(
    rows: Iterable[ManifestRow], *, identifier_token: str, spec_prompts: Sequence[str], training_prompt: str
) -> list[str]:
    """A warning for each odd text, with all rows that have it; those of the run spec's own prompts first.

    Args:
        identifier_token: the word used as V*.
        spec_prompts: the prompts of rows that have none.
        training_prompt: the template that every concept is trained with.
    """
    found: dict[tuple[str, str, str], _Finding] = {}
    for column, prompts in (("prompts", tuple(spec_prompts)), ("training.prompt", (training_prompt,))):
        for finding in _of_prompts(column, prompts, identifier_token):
            found[finding.column, finding.text, finding.reason] = finding
    seen: dict[tuple[str, ...], list[_Finding]] = {tuple(spec_prompts): []}  # told above
    for row in rows:
        if row.prompts not in seen:
            seen[row.prompts] = list(_of_prompts("prompts", row.prompts, identifier_token))
        for finding in (*seen[row.prompts], *_of_class(row.macro_class, identifier_token)):
            known = found.setdefault((finding.column, finding.text, finding.reason), finding)
            if not known.rows or known.rows[-1] != row.row:
                known.rows.append(row.row)
    return list(map(str, found.values()))


def _of_prompts(column: str, prompts: tuple[str, ...], token: str) -> Iterator[_Finding]:
    places: dict[str, list[int]] = {}
    for index, prompt in enumerate(prompts):
        places.setdefault(" ".join(prompt.split()), []).append(index)
        if _DOUBLED in prompt:
            reason, fix = f"{_DOUBLED} leaves braces around the concept", f"write {PLACEHOLDER}"
            yield _Finding(column, prompt, reason, fix)
        for other in dict.fromkeys(_BRACES.findall(prompt.replace(_DOUBLED, "").replace(PLACEHOLDER, ""))):
            reason = f"{other} is no placeholder and is rendered as it stands"
            yield _Finding(column, prompt, reason, f"write out what is meant; the only placeholder is {PLACEHOLDER}")
        if _has_word(prompt, token):
            reason = f"{token!r} stands for the concept already: {PLACEHOLDER} becomes '{token} <class>'"
            yield _Finding(column, prompt, reason, "leave it out, or choose another training.identifier_token")
    for indices in places.values():
        if len(indices) > 1:
            reason = f"the same prompt {len(indices)} times (prompts{indices}), each rendered with another seed"
            yield _Finding(column, prompts[indices[0]], reason, "name it once, and set sampling.images_per_prompt")


def _of_class(macro_class: str, token: str) -> Iterator[_Finding]:
    fix = 'name the category with a noun, such as "mug"'
    if macro_class.strip().lower() in _NO_CLASS:
        yield _Finding("macro_class", macro_class, "this looks like a missing value", fix)
    elif macro_class and not any(letter.isalpha() for letter in macro_class):
        yield _Finding("macro_class", macro_class, "there is no word in it", fix)
    if braces := _BRACES.findall(macro_class):
        yield _Finding("macro_class", macro_class, f"{braces[0]} is no placeholder here and is used as it stands", fix)
    if _has_word(macro_class, token):
        reason = f"{token!r} stands for the concept already: {PLACEHOLDER} becomes '{token} {macro_class}'"
        yield _Finding("macro_class", macro_class, reason, "leave it out of the class")


def _has_word(text: str, word: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) is not None
