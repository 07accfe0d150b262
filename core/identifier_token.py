"""V*: the word that stands for a concept, its place in a prompt, and its own embedding.

V* borrows a rare word of the tokenizer. A trained V* is never written into the text encoder's embedding table: the
table is shared by every concept on the worker, so each prompt's own embedding is laid over the table's output instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import CLIPTokenizer

from .base_model import BaseModel
from .concept import concept_phrase, expand_template
from .errors import ConceptError, InvalidInput


@dataclass(frozen=True, slots=True)
class TokenizedPrompt:
    """A prompt as the text encoder reads it.

    Attributes:
        text: the expanded prompt.
        ids: L token ids, padded to the model's length.
        identifier_position: where V* stands, or None when the prompt has none.
        concept_positions: where V* and the macro class's tokens stand; the set C of the LAG equations.
    """

    text: str
    ids: tuple[int, ...]
    identifier_position: int | None = None
    concept_positions: tuple[int, ...] = ()


def identifier_id(tokenizer: CLIPTokenizer, identifier_token: str) -> int:
    """The id of V*'s word.

    Raises:
        InvalidInput: the word is not exactly one known token, so it could not carry one embedding.
    """
    ids = tokenizer(identifier_token, add_special_tokens=False)["input_ids"]
    if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
        raise InvalidInput(
            f"training.identifier_token {identifier_token!r} is {len(ids)} tokens of this base model's tokenizer",
            fix="choose a rare word that is one token, such as 'sks' for Stable Diffusion",
        )
    return int(ids[0])


def tokenize(tokenizer: CLIPTokenizer, text: str) -> TokenizedPrompt:
    """Tokenize a prompt that does not mention the concept by V*.

    Raises:
        ConceptError: the prompt does not fit the tokenizer's length.
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
    """Expand a template with "V* <macro class>" and find those tokens in it.

    Raises:
        ConceptError: the prompt is too long, or the words around `{concept}` merge with it into other tokens.
    """
    prompt = tokenize(tokenizer, expand_template(template, identifier_token, macro_class))
    phrase = tokenizer(concept_phrase(identifier_token, macro_class), add_special_tokens=False)["input_ids"]
    ids = list(prompt.ids)
    starts = [start for start in range(len(ids)) if ids[start : start + len(phrase)] == phrase]
    if not starts:
        raise ConceptError(
            f"prompt {template!r} glues other text to {{concept}}, so its tokens cannot be found",
            stage="load",
            fix="leave a space (or punctuation) before and after {concept}",
        )
    start = starts[0]
    return TokenizedPrompt(prompt.text, prompt.ids, start, tuple(range(start, start + len(phrase))))


def identifier_embedding(base: BaseModel, identifier_token: str) -> Tensor:
    """[D] float32: the base model's own embedding of V*'s word, from which a trained V* starts."""
    token = identifier_id(base.tokenizer, identifier_token)
    table = base.text_encoder.get_input_embeddings().weight
    assert isinstance(table, Tensor)
    return table[token].detach().float().clone()


def encode_prompts(base: BaseModel, prompts: Sequence[TokenizedPrompt], identifiers: Tensor | None = None) -> Tensor:
    """[P, L, D]: the (first) text encoder's states as the UNet reads them: in SDXL those before the last layer.

    Args:
        identifiers: [P, D] embeddings laid over the position of V* in each prompt; a prompt without V* ignores its row.
            Gradients flow to them. None leaves the base model's own embedding of the word in place.
    """
    ids = torch.tensor([prompt.ids for prompt in prompts], device=base.device)
    with nullcontext() if identifiers is None else _identifiers_laid_over(base, prompts, identifiers):
        if base.text_encoder_2 is None:
            return base.text_encoder(ids).last_hidden_state
        return base.text_encoder(ids, output_hidden_states=True).hidden_states[-2]


@contextmanager
def _identifiers_laid_over(base: BaseModel, prompts: Sequence[TokenizedPrompt], identifiers: Tensor) -> Iterator[None]:
    is_identifier = torch.zeros(len(prompts), len(prompts[0].ids), 1, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        if prompt.identifier_position is not None:
            is_identifier[row, prompt.identifier_position] = True
    is_identifier = is_identifier.to(base.device)

    def overlay(_module: object, _inputs: object, embeddings: Tensor) -> Tensor:
        return torch.where(is_identifier, identifiers[:, None].to(embeddings.dtype), embeddings)

    handle = base.text_encoder.get_input_embeddings().register_forward_hook(overlay)
    try:
        yield
    finally:
        handle.remove()


def concept_token_mask(prompts: Sequence[TokenizedPrompt]) -> Tensor:
    """[P, L] float32: one where a token belongs to the concept (the set C), zero elsewhere."""
    mask = torch.zeros(len(prompts), len(prompts[0].ids))
    for row, prompt in enumerate(prompts):
        mask[row, list(prompt.concept_positions)] = 1.0
    return mask
