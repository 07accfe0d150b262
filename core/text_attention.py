"""Cross-attention to texts that several samples share; a text's keys and values are computed only once.

Shapes: G texts [G, L, D]; S = G P samples [S, N, C], P consecutive samples per text; N positions, C channels, L tokens,
D the width of the text states, d the width of an attention head.

diffusers' own processors need a copy of the text for every sample and project all copies in every pass. In training,
the P samples of a concept share one prompt, so their positions are joined to one sequence of P N queries. If V* is
frozen, the prompts never change, and their keys and values are cached.
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
    """Reshape [G, N, heads d] to [G, heads, N, d]."""
    return projected.unflatten(2, (heads, -1)).transpose(1, 2)


def project_out(attn: Attention, attended: Tensor) -> Tensor:
    """Join the heads of [G, heads, N, d] and apply the layer's output projection: [G, N, C]."""
    assert attn.to_out is not None  # only single-stream models have attention without one
    return attn.to_out[1](attn.to_out[0](attended.transpose(1, 2).flatten(2)))


@dataclass(slots=True, eq=False)
class KeyValueCache:
    """The keys and values of one attention layer, each [G, heads, L, d]; cached only if the text is `fixed`."""

    fixed: bool
    _cached: tuple[Tensor, Tensor] | None = None

    def get(self, attn: Attention, text: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cached keys and values if there are any, else those of `text` [G, L, D]."""
        if self._cached is not None:
            return self._cached
        assert attn.to_k is not None and attn.to_v is not None  # cross-attention has them
        keys_values = split_heads(attn.to_k(text), attn.heads), split_heads(attn.to_v(text), attn.heads)
        if self.fixed:
            self._cached = keys_values
        return keys_values

    def clear(self) -> None:
        self._cached = None


class SharedTextAttnProcessor:
    """A diffusers attention processor for one cross-attention layer, with G texts for S samples."""

    def __init__(self, cache: KeyValueCache) -> None:
        self.cache = cache

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
        key, value = self.cache.get(attn, encoder_hidden_states)
        attended = F.scaled_dot_product_attention(query, key, value)
        return project_out(attn, attended).view(hidden_states.shape)


@dataclass(slots=True, eq=False)
class SharedText:
    """The key-value caches of a UNet's cross-attention layers, for one text per group of samples.

    Args:
        fixed: whether the texts stay the same from pass to pass, until `clear_cache`.
    """

    base: BaseModel
    fixed: bool
    _by_layer: dict[str, KeyValueCache] = field(default_factory=dict)

    def clear_cache(self) -> None:
        """Compute keys and values anew in the next pass, because a text has changed."""
        for cache in self._by_layer.values():
            cache.clear()

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Context manager in which the UNet takes `encoder_hidden_states` [G, L, D] for S = G P samples."""
        processors = dict(self.base.unet.attn_processors)
        shared = {
            name: SharedTextAttnProcessor(self._by_layer.setdefault(name, KeyValueCache(self.fixed)))
            for name in processors
            if name.endswith(".attn2.processor")
        }
        self.base.unet.set_attn_processor({**processors, **shared})  # type: ignore[arg-type]
        try:
            yield
        finally:
            self.base.unet.set_attn_processor(processors)
