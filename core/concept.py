"""What is being learned: a concept, its reference images, and the prompts it is rendered with."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

import numpy as np

CONCEPT_ID_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
PLACEHOLDER = "{concept}"


@dataclass(frozen=True, slots=True, eq=False)
class Concept:
    """One subject to personalize.

    Attributes:
        concept_id: unique name, matching `CONCEPT_ID_PATTERN`.
        macro_class: its category noun, such as "mug".
        references: decoded reference images, each H x W x 3, uint8 RGB; sizes may differ.
        prompts: templates that contain `{concept}` exactly where the concept belongs.
        seed: the seed from which all of this concept's random numbers are derived.
    """

    concept_id: str
    macro_class: str
    references: tuple[np.ndarray, ...]
    prompts: tuple[str, ...] = ()
    seed: int = 0


def derive_seed(run_seed: int, concept_id: str, purpose: str) -> int:
    """A 63-bit seed from (run seed, concept, purpose) alone.

    A concept's noise, timesteps and initialisation depend on nothing else: not on its place in a pack, its shard, or
    the worker that happens to run it (law 1).
    """
    text = f"{run_seed}\x1f{concept_id}\x1f{purpose}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


def check_template(template: str) -> str | None:
    """Why `template` cannot be rendered, or None if it can."""
    if not template.strip():
        return "the prompt is empty"
    if template.count(PLACEHOLDER) != 1:
        return f"the prompt must contain {PLACEHOLDER} exactly once"
    return None


def concept_phrase(identifier_token: str | None, macro_class: str) -> str:
    """The words that stand for the concept: "V* mug", or just "mug" for the base model, which has never seen V*."""
    return f"{identifier_token} {macro_class}" if identifier_token else macro_class


def expand_template(template: str, identifier_token: str | None, macro_class: str) -> str:
    """Put the concept's words where the template says `{concept}`.

    Args:
        identifier_token: the word that stands for V*, or None for a prompt that the base model can read.

    Raises:
        ValueError: `check_template` would refuse the template.
    """
    problem = check_template(template)
    if problem:
        raise ValueError(f"{problem}: {template!r}")
    return template.replace(PLACEHOLDER, concept_phrase(identifier_token, macro_class))
