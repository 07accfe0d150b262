"""What the UNet is told about the prompts: text states, and for Stable Diffusion XL also pooled states and a size.

Shapes: P prompts, L tokens, D the width of the states (of both encoders side by side in SDXL), E of the pooled state.
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
    """`states` [P, L, D], and `pooled` [P, E], None where the base model has one text encoder."""

    states: Tensor
    pooled: Tensor | None = None

    def repeat(self, count: int) -> TextConditioning:
        """Every prompt `count` times, side by side."""
        pooled = None if self.pooled is None else self.pooled.repeat_interleave(count, dim=0)
        return TextConditioning(self.states.repeat_interleave(count, dim=0), pooled)

    def put(self, row: int, other: TextConditioning) -> None:
        """Write another's only prompt over one of ours."""
        self.states[row] = other.states[0]
        if self.pooled is not None and other.pooled is not None:
            self.pooled[row] = other.pooled[0]

    def paired_with(self, conditional: TextConditioning) -> TextConditioning:
        """(ours, theirs), (ours, theirs), …: this one prompt as the unconditional half of every other."""
        return TextConditioning(
            _paired(self.states, conditional.states),
            None if self.pooled is None or conditional.pooled is None else _paired(self.pooled, conditional.pooled),
        )

    def unet_arguments(self, samples: int, height: int, width: int) -> dict[str, Any]:
        """The keyword arguments that carry this to a UNet.

        Args:
            samples: S, a multiple of P; consecutive samples read the same prompt. The states are not copied for them.
            height, width: of the picture in pixels, which SDXL is told.
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
    """Run prompts through the base model's text encoder, or both of them.

    Args:
        identifiers: as for `encode_prompts`; gradients flow to them. SDXL's second encoder always reads V*'s own word.
    """
    first = encode_prompts(base, prompts, identifiers)
    if base.text_encoder_2 is None or base.tokenizer_2 is None:
        return TextConditioning(first)
    # The second tokenizer has the same words and pads with another one.
    ids = torch.tensor([tokenize(base.tokenizer_2, prompt.text).ids for prompt in prompts], device=base.device)
    second = base.text_encoder_2(ids, output_hidden_states=True)
    return TextConditioning(torch.cat((first, second.hidden_states[-2]), dim=-1), second.text_embeds)


def encode_negative(base: BaseModel, text: str) -> TextConditioning:
    """One negative prompt. The empty one is zeros where the model was trained so, as SDXL was."""
    encoded = encode_text(base, [tokenize(base.tokenizer, text)])
    if text or base.text_encoder_2 is None:
        return encoded
    pooled = None if encoded.pooled is None else torch.zeros_like(encoded.pooled)
    return TextConditioning(torch.zeros_like(encoded.states), pooled)


def _paired(unconditional: Tensor, conditional: Tensor) -> Tensor:
    return torch.stack((unconditional.expand_as(conditional), conditional), dim=1).flatten(0, 1)
