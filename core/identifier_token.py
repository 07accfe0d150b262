"""The identifier token V*: its position in a prompt, and its embedding.

V* is a rare word of the tokenizer. A trained V* is never written into the text encoder's embedding table, which all
concepts of the worker share. Instead, a hook replaces the table's output at the position of V* in every prompt.

Shapes: P prompts, L tokens, D the width of the (first) text encoder.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import CLIPTokenizer

from .base_model import BaseModel
from .concept import PLACEHOLDER, concept_phrase, expand_template
from .errors import ConceptError, InvalidInput


@dataclass(frozen=True, slots=True)
class TokenizedPrompt:
    """A prompt with its token ids.

    Attributes:
        text: the expanded prompt.
        ids: L token ids, padded to the tokenizer's length.
        identifier_position: the position of V*, or None in a prompt without it.
        concept_positions: the positions of V* and of the macro class's tokens: the set C of LAG.
    """

    text: str
    ids: tuple[int, ...]
    identifier_position: int | None = None
    concept_positions: tuple[int, ...] = ()


def identifier_id(tokenizer: CLIPTokenizer, identifier_token: str) -> int:
    """Return the token id of V*.

    Raises:
        InvalidInput: the word is not exactly one known token, so it has no embedding of its own.
    """
    ids = tokenizer(identifier_token, add_special_tokens=False)["input_ids"]
    if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
        raise InvalidInput(
            f"training.identifier_token {identifier_token!r} is {len(ids)} tokens of this base model's tokenizer",
            fix="choose a rare word that is one token, such as 'sks' for Stable Diffusion",
        )
    return int(ids[0])


def tokenize(tokenizer: CLIPTokenizer, text: str) -> TokenizedPrompt:
    """Tokenize a prompt without V*.

    Raises:
        ConceptError: the prompt is longer than the tokenizer's length.
    """
    length = tokenizer.model_max_length
    ids = tokenizer(text, truncation=False)["input_ids"]
    if len(ids) > length:
        raise ConceptError(
            f"prompt {text!r} has {len(ids)} tokens, the base model reads {length} (two of them mark start and end)",
            stage="load",
            fix=f"shorten it by {len(ids) - length} tokens",
        )
    padded = tokenizer(text, padding="max_length", max_length=length)["input_ids"]
    return TokenizedPrompt(text, tuple(padded))


def tokenize_concept_prompt(
    tokenizer: CLIPTokenizer, template: str, identifier_token: str, macro_class: str
) -> TokenizedPrompt:
    """Expand a template with "V* <macro class>", tokenize it, and find the tokens of the concept, the set C of LAG.

    Text may follow `{concept}` at once: of "sks mugs" the token "mugs" belongs to C.

    Raises:
        ConceptError: the prompt is too long, or text before `{concept}` merges with V* into other tokens.
    """
    prompt = tokenize(tokenizer, expand_template(template, identifier_token, macro_class))
    start = template.index(PLACEHOLDER)  # the phrase may also stand elsewhere in the prompt, as the user's own words
    end_of_identifier = start + len(identifier_token)
    end = start + len(concept_phrase(identifier_token, macro_class))
    spans = tokenizer(prompt.text, return_offsets_mapping=True)["offset_mapping"]
    concept = tuple(place for place, (first, last) in enumerate(spans) if first < last and first < end and last > start)
    identifier = [place for place in concept if spans[place][0] < end_of_identifier]
    inside = [spans[place][0] >= start and spans[place][1] <= end_of_identifier for place in identifier]
    if inside != [True] or prompt.ids[identifier[0]] != identifier_id(tokenizer, identifier_token):
        raise ConceptError(
            f"prompt {template!r} glues other text to the front of {{concept}}, so its tokens cannot be found",
            stage="load",
            fix="leave a space (or punctuation) before {concept}",
        )
    return TokenizedPrompt(prompt.text, prompt.ids, identifier[0], concept)


def identifier_embedding(base: BaseModel, identifier_token: str) -> Tensor:
    """Return the base model's own embedding of V*, [D] float32, from which the training of V* starts."""
    token = identifier_id(base.tokenizer, identifier_token)
    table = base.text_encoder.get_input_embeddings().weight
    assert isinstance(table, Tensor)
    return table[token].detach().float().clone()


def encode_prompts(base: BaseModel, prompts: Sequence[TokenizedPrompt], identifiers: Tensor | None = None) -> Tensor:
    """Return the (first) text encoder's states, [P, L, D]: those of the last layer, in SDXL of the one before it.

    Args:
        identifiers: embeddings [P, D] that replace each prompt's own at the position of V*; the row of a prompt without
            V* is not used. Gradients flow to them. None: the base model's own embedding.
    """
    ids = torch.tensor([prompt.ids for prompt in prompts], device=base.device)
    with nullcontext() if identifiers is None else _embeddings_replaced(base, prompts, identifiers):
        if base.text_encoder_2 is None:
            return base.text_encoder(ids).last_hidden_state
        return base.text_encoder(ids, output_hidden_states=True).hidden_states[-2]


@contextmanager
def _embeddings_replaced(base: BaseModel, prompts: Sequence[TokenizedPrompt], identifiers: Tensor) -> Iterator[None]:
    is_identifier = torch.zeros(len(prompts), len(prompts[0].ids), 1, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        if prompt.identifier_position is not None:
            is_identifier[row, prompt.identifier_position] = True
    is_identifier = is_identifier.to(base.device)

    def replace(_module: object, _inputs: object, embeddings: Tensor) -> Tensor:
        return torch.where(is_identifier, identifiers[:, None].to(embeddings.dtype), embeddings)

    handle = base.text_encoder.get_input_embeddings().register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


def concept_token_mask(prompts: Sequence[TokenizedPrompt]) -> Tensor:
    """Return the indicator of the set C, [P, L] float32: one for the concept's tokens, zero for the others."""
    mask = torch.zeros(len(prompts), len(prompts[0].ids))
    for row, prompt in enumerate(prompts):
        mask[row, list(prompt.concept_positions)] = 1.0
    return mask
