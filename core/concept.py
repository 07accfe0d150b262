"""A concept: its reference images, its prompt templates, and the seeds derived from its name."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # numpy is needed for an annotation alone, and every setting imports this file
    import numpy as np

CONCEPT_ID_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
PLACEHOLDER = "{concept}"


@dataclass(frozen=True, slots=True, eq=False)
class Concept:
    """One subject to personalize.

    Attributes:
        concept_id: unique id, matching `CONCEPT_ID_PATTERN`.
        macro_class: its category noun, such as "mug".
        references: decoded reference images, each H x W x 3, uint8 RGB; sizes may differ.
        prompts: templates, each with one `{concept}`.
        seed: the run seed from which all random numbers of this concept are derived.
    """

    concept_id: str
    macro_class: str
    references: tuple[np.ndarray, ...]
    prompts: tuple[str, ...] = ()
    seed: int = 0


def derive_seed(run_seed: int, concept_id: str, purpose: str) -> int:
    """Return a 63-bit seed that depends on nothing but (run seed, concept, purpose).

    A concept's noise, timesteps and initialization are therefore the same in every pack and shard and on every worker
    (law 1).
    """
    text = f"{run_seed}\x1f{concept_id}\x1f{purpose}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


def check_template(template: str) -> str | None:
    """Return why a template cannot be rendered, or None if it can."""
    if not template.strip():
        return "the prompt is empty"
    if template.count(PLACEHOLDER) != 1:
        return f"the prompt must contain {PLACEHOLDER} exactly once"
    return None


def concept_phrase(identifier_token: str | None, macro_class: str) -> str:
    """Return what replaces `{concept}`: "V* mug", or "mug" for the base variant, which has no V*."""
    return f"{identifier_token} {macro_class}" if identifier_token else macro_class


def expand_template(template: str, identifier_token: str | None, macro_class: str) -> str:
    """Replace `{concept}` in a template by the concept's phrase.

    Args:
        identifier_token: the word used as V*, or None for a prompt without V*.

    Raises:
        ValueError: the template is empty or does not contain `{concept}` exactly once.
    """
    problem = check_template(template)
    if problem:
        raise ValueError(f"{problem}: {template!r}")
    return template.replace(PLACEHOLDER, concept_phrase(identifier_token, macro_class))
