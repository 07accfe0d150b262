"""The text conditioning of the UNet: text states, and for Stable Diffusion XL also pooled states and the image size.

Shapes: P prompts, L tokens, D the width of the states (in SDXL of both encoders together), E of the pooled state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .base_model import BaseModel
from .identifier_token import TokenizedPrompt, encode_prompts, tokenize


@dataclass(frozen=True, slots=True, eq=False)
class TextConditioning:
    """The text states of P prompts.

    Attributes:
        states: [P, L, D].
        pooled: [P, E], or None if the base model has one text encoder.
    """

    states: Tensor
    pooled: Tensor | None = None

    def repeat(self, count: int) -> TextConditioning:
        """Repeat every prompt `count` times, one after the other: [P count, L, D]."""
        pooled = None if self.pooled is None else self.pooled.repeat_interleave(count, dim=0)
        return TextConditioning(self.states.repeat_interleave(count, dim=0), pooled)

    def replace_row(self, row: int, other: TextConditioning) -> None:
        """Overwrite the prompt at `row`, in place, by the single prompt of `other`."""
        self.states[row] = other.states[0]
        if self.pooled is not None and other.pooled is not None:
            self.pooled[row] = other.pooled[0]

    def paired_with(self, conditional: TextConditioning) -> TextConditioning:
        """Interleave this single (unconditional) prompt with each conditional one: [2 P, L, D]."""
        return TextConditioning(
            _paired(self.states, conditional.states),
            None if self.pooled is None or conditional.pooled is None else _paired(self.pooled, conditional.pooled),
        )

    def unet_arguments(self, samples: int, height: int, width: int) -> dict[str, Any]:
        """Return the keyword arguments of a UNet's forward pass.

        Args:
            samples: S, a multiple of P; consecutive samples have the same prompt. The states keep their P rows.
            height, width: the image's size in pixels, an input of SDXL.
        """
        if self.pooled is None:
            return {"encoder_hidden_states": self.states}
        pooled = self.pooled.repeat_interleave(samples // self.pooled.shape[0], dim=0)
        size = pooled.new_zeros(samples, 6)  # height, width, two zeros for the crop, height, width
        size[:, 0::4], size[:, 1::4] = height, width
        added = {"text_embeds": pooled, "time_ids": size}
        return {"encoder_hidden_states": self.states, "added_cond_kwargs": added}


def encode_text(
    base: BaseModel, prompts: Sequence[TokenizedPrompt], identifiers: Tensor | None = None
) -> TextConditioning:
    """Encode prompts with the base model's text encoder, or with both of them.

    Args:
        identifiers: as for `encode_prompts`. SDXL's second encoder always uses its own embedding of V*.
    """
    first = encode_prompts(base, prompts, identifiers)
    if base.text_encoder_2 is None or base.tokenizer_2 is None:
        return TextConditioning(first)
    # The second tokenizer has the same vocabulary and another padding token.
    ids = torch.tensor([tokenize(base.tokenizer_2, prompt.text).ids for prompt in prompts], device=base.device)
    second = base.text_encoder_2(ids, output_hidden_states=True)
    return TextConditioning(torch.cat((first, second.hidden_states[-2]), dim=-1), second.text_embeds)


def encode_negative(base: BaseModel, text: str) -> TextConditioning:
    """Encode one negative prompt. For SDXL the empty one is all zeros, unless its model_index.json says otherwise."""
    encoded = encode_text(base, [tokenize(base.tokenizer, text)])
    if text or base.text_encoder_2 is None or not base.zeros_for_empty_prompt:
        return encoded
    pooled = None if encoded.pooled is None else torch.zeros_like(encoded.pooled)
    return TextConditioning(torch.zeros_like(encoded.states), pooled)


def _paired(unconditional: Tensor, conditional: Tensor) -> Tensor:
    return torch.stack((unconditional.expand_as(conditional), conditional), dim=1).flatten(0, 1)
