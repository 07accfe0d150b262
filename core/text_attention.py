"""Cross-attention to texts that several samples share, without computing one text's keys and values twice.

Shapes: G texts [G, L, D]; S = G x P samples [S, N, C], P consecutive ones reading the same text.

diffusers' own processors want a copy of the text for every sample and project all of them in every pass. In training
the P samples of a concept read one prompt, so their positions become one longer sequence of queries; and where V* is
frozen the prompt never changes, so its keys and values are computed once and kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import Tensor

from .base_model import BaseModel


def split_heads(projected: Tensor, heads: int) -> Tensor:
    """[G, N, heads d] -> [G, heads, N, d]."""
    return projected.unflatten(2, (heads, -1)).transpose(1, 2)


def project_out(attn: Attention, attended: Tensor) -> Tensor:
    """[G, heads, N, d] -> [G, N, C], through the layer's output projection."""
    assert attn.to_out is not None  # only attention inside a single-stream model lacks one
    return attn.to_out[1](attn.to_out[0](attended.transpose(1, 2).flatten(2)))


@dataclass(slots=True, eq=False)
class TextKeysValues:
    """One attention layer's keys and values, each [G, heads, L, d]; kept from pass to pass if the text is fixed."""

    keep: bool
    _kept: tuple[Tensor, Tensor] | None = None

    def of(self, attn: Attention, text: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of `text` [G, L, D]; what was kept is returned without looking at `text`."""
        if self._kept is not None:
            return self._kept
        assert attn.to_k is not None and attn.to_v is not None  # cross-attention has them
        found = split_heads(attn.to_k(text), attn.heads), split_heads(attn.to_v(text), attn.heads)
        if self.keep:
            self._kept = found
        return found

    def forget(self) -> None:
        self._kept = None


class SharedTextAttnProcessor:
    """A diffusers attention processor for one cross-attention layer that reads G texts instead of S."""

    def __init__(self, keys_values: TextKeysValues) -> None:
        self.keys_values = keys_values

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        grouped = hidden_states.reshape(encoder_hidden_states.shape[0], -1, hidden_states.shape[2])  # [G, P N, C]
        query = split_heads(attn.to_q(grouped), attn.heads)
        key, value = self.keys_values.of(attn, encoder_hidden_states)
        attended = F.scaled_dot_product_attention(query, key, value)
        return project_out(attn, attended).view(hidden_states.shape)


@dataclass(slots=True, eq=False)
class SharedText:
    """One text a group of samples, for every cross-attention layer of a UNet.

    Args:
        fixed: the texts do not change between passes, except after `forget`.
    """

    base: BaseModel
    fixed: bool
    _by_layer: dict[str, TextKeysValues] = field(default_factory=dict)

    def forget(self) -> None:
        """A text has changed: keys and values are computed again in the next pass."""
        for keys_values in self._by_layer.values():
            keys_values.forget()

    @contextmanager
    def attended(self) -> Iterator[None]:
        """While this is open, the UNet takes `encoder_hidden_states` [G, L, D] for S = G x P samples."""
        processors = dict(self.base.unet.attn_processors)
        shared = {
            name: SharedTextAttnProcessor(self._by_layer.setdefault(name, TextKeysValues(self.fixed)))
            for name in processors
            if name.endswith(".attn2.processor")
        }
        self.base.unet.set_attn_processor({**processors, **shared})  # type: ignore[arg-type]
        try:
            yield
        finally:
            self.base.unet.set_attn_processor(processors)
