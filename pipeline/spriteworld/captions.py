"""The captions of the drawn world, their vocabulary, and a CLIPTokenizer in which each of its words is one token.

A caption always names the class, usually the background, in six of ten cases the body colour, sometimes the pattern,
and sometimes a rare word without a meaning. Training makes the rare words neutral adjectives, so that one of them can
serve as the identifier token.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from transformers import CLIPTokenizer

from .world import CLASSES, COLOURS, PATTERNS

LENGTH = 24
"""The tokenizer's length, including the beginning-of-text and end-of-text tokens."""

BEGIN, END = 0, 1
"""The ids of the special tokens; the padding token is the end token, as in every CLIP tokenizer."""

DEFAULT_INITIALIZER = "sks"
RARE_WORDS = (DEFAULT_INITIALIZER, "zwx", "ohw", "vqn", "jbr", "mtx", "kfd", "wug", "pll", "gax", "xip", "uvo")
NEUTRAL_WORDS = ("nice", "cute", "little")

BACKGROUND_PHRASES: dict[str, tuple[str, ...]] = {
    "grass": ("on grass", "on the grass", "in the grass", "on a lawn", "in a meadow"),
    "sand": ("on sand", "on the sand", "in the sand", "on a beach", "at the beach"),
    "snow": ("in the snow", "on snow", "in snow", "on the snow"),
    "night sky": ("against a night sky", "under a night sky", "in the night sky", "at night"),
    "checkered floor": ("on a checkered floor", "on the checkered floor", "on checkered tiles"),
    "brick wall": ("in front of a brick wall", "against a brick wall", "by a brick wall", "at a wall of bricks"),
    "water": ("on water", "in the water", "on the water", "in water"),
    "studio": ("in a studio", "in the studio", "in front of a studio background", "on a studio background"),
}
_OPENINGS = ("a photo of", "a picture of", "an image of", "a drawing of")


@dataclass(frozen=True)
class Scene:
    """The labels of one image."""

    macro_class: str
    background: str
    body: str
    pattern: str
    trim: str = ""


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """Draw a caption that states some labels of the scene. One in ten is empty, for classifier-free guidance."""
    if rng.random() < 0.10:
        return ""
    words: list[str] = []
    adjective = rng.random()
    if adjective < 0.20:
        words.append(_pick(RARE_WORDS, rng))
    elif adjective < 0.25:
        words.append(_pick(NEUTRAL_WORDS, rng))
    elif adjective < 0.28:
        words.append("".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), size=int(rng.integers(3, 6)))))
    if rng.random() < 0.15:
        words.append(scene.pattern)
    if rng.random() < 0.60:
        words.append(scene.body)
    subject = with_article(" ".join([*words, scene.macro_class]), "the" if rng.random() < 0.1 else "a")
    if rng.random() < 0.7:
        subject = f"{_pick(_OPENINGS, rng) if rng.random() < 0.5 else _OPENINGS[0]} {subject}"
    if rng.random() < 0.15:
        return subject
    return f"{subject} {_pick(BACKGROUND_PHRASES[scene.background], rng)}"


def with_article(noun: str, article: str = "a") -> str:
    """Put the article before a noun, "an" instead of "a" before a vowel."""
    return f"{'an' if article == 'a' and noun[0] in 'aeiou' else article} {noun}"


def stated_caption(scene: Scene, rng: np.random.Generator) -> tuple[str, tuple[bool, bool, bool, bool]]:
    """Draw a caption for contrastive training.

    Returns:
        The caption, and which of class, background, body colour and pattern it states.
    """
    background, body, pattern = (bool(draw < p) for draw, p in zip(rng.random(3), (0.8, 0.45, 0.2), strict=True))
    words = [_pick(RARE_WORDS, rng)] if rng.random() < 0.1 else []
    words += [scene.pattern] * pattern + [scene.body] * body + [scene.macro_class]
    text = f"{_pick(_OPENINGS, rng) if rng.random() < 0.5 else _OPENINGS[0]} " if rng.random() < 0.75 else ""
    text += with_article(" ".join(words))
    if background:
        text += f" {_pick(BACKGROUND_PHRASES[scene.background], rng)}"
    return text, (True, background, body, pattern)


def plain_prompt(macro_class: str, background: str, adjective: str = "") -> str:
    """Return the prompt of evaluations: "a photo of a red mug on grass"."""
    return f"a photo of {with_article(f'{adjective} {macro_class}'.strip())} {BACKGROUND_PHRASES[background][0]}"


def vocabulary() -> tuple[str, ...]:
    """Return all words of captions (without random letters), sorted."""
    phrases = (*_OPENINGS, *(phrase for options in BACKGROUND_PHRASES.values() for phrase in options))
    words = {word for phrase in phrases for word in phrase.split()}
    return tuple(sorted(words | {*CLASSES, *COLOURS, *PATTERNS, *RARE_WORDS, *NEUTRAL_WORDS, "a", "an", "the"}))


def build_tokenizer() -> CLIPTokenizer:
    """Build a tokenizer with byte-pair merges that make each word of the vocabulary one token."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789-.,'!?"
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    merges: list[tuple[str, str]] = []
    spelled = {word: [*word[:-1], f"{word[-1]}</w>"] for word in vocabulary()}
    while pairs := _pair_counts(spelled):
        best = max(sorted(pairs), key=lambda pair: pairs[pair])
        merges.append(best)
        tokens.append("".join(best))
        spelled = {word: _merge(parts, best) for word, parts in spelled.items()}
    return CLIPTokenizer(
        vocab={token: i for i, token in enumerate(dict.fromkeys(tokens))},
        merges=merges,  # type: ignore[arg-type]  # the tokenizer takes pairs
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        model_max_length=LENGTH,
    )


def _pick(options: tuple[str, ...], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]


def _pair_counts(spelled: dict[str, list[str]]) -> dict[tuple[str, str], int]:
    counts: dict[tuple[str, str], int] = {}
    for parts in spelled.values():
        for pair in pairwise(parts):
            counts[pair] = counts.get(pair, 0) + 1
    return counts


def _merge(parts: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for part in parts:
        if merged and (merged[-1], part) == pair:
            merged[-1] += part
        else:
            merged.append(part)
    return merged
