"""LAG's localization masks: the cross-attention to the concept's tokens, binarized.

In the Transformer2DModel i, with queries Q [heads, N, d] from the image and keys K [heads, L, d] from the prompt:

    A     = softmax(Q K^T / sqrt(d))                            [heads, N, L]
    A_iC  = mean over heads of (sum over j in C of A[..., j])   [N], C = the tokens of V* and of the macro class
    M_i   = A_iC > median over positions of A_iC                [N], in {0, 1}

In the same UNet pass, M_i then masks the residual of the transformer's `proj_out`.

Shapes: I images; S UNet samples, S = 2 I with guidance (unconditional, conditional) and S = I without; N positions
(h x w of the transformer's input), L tokens, d the width of a head.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import Tensor

from ..base_model import BaseModel
from ..text_attention import KeyValueCache, project_out, split_heads

_ALIGNED = 8
"""Fused kernels need head widths that are multiples of this."""


def attend_and_locate(query: Tensor, key: Tensor, value: Tensor, concept_tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Compute cross-attention's output and A_C, the share of each position's attention that the concept's tokens get.

    Args:
        query: [S, heads, N, d]; key, value: [S, heads, L, d].
        concept_tokens: [S, L], one where a token is in C.

    Returns:
        The output [S, heads, N, d], and A_C [S, N] float32 in [0, 1].
    """
    return (attend_with_indicator if query.is_cuda else attend_explicitly)(query, key, value, concept_tokens)


def attend_explicitly(query: Tensor, key: Tensor, value: Tensor, concept_tokens: Tensor) -> tuple[Tensor, Tensor]:
    """`attend_and_locate` with explicit probabilities, in float32, which both results use.

    Prompts are short, so on a CPU this is no slower than a fused kernel.
    """
    samples, heads, positions, width = query.shape
    probabilities = (query @ key.transpose(-1, -2) * width**-0.5).float().softmax(dim=-1)
    on_concept = torch.bmm(probabilities.flatten(1, 2), concept_tokens[:, :, None])  # [S, heads N, 1]
    concept_attention = on_concept.view(samples, heads, positions).mean(dim=1)
    return probabilities.to(value.dtype) @ value, concept_attention


def attend_with_indicator(query: Tensor, key: Tensor, value: Tensor, concept_tokens: Tensor) -> tuple[Tensor, Tensor]:
    """`attend_and_locate` with one fused attention kernel, which never writes the probabilities to memory.

    An additional channel of the values holds the indicator of C, so that attention's weighted sum puts A_C into that
    channel of the output. Queries and keys are padded with zeros, which change no product.
    """
    width = query.shape[-1]
    indicator = concept_tokens.to(value.dtype)[:, None, :, None].expand(-1, value.shape[1], -1, 1)
    output = F.scaled_dot_product_attention(
        F.pad(query, (0, _ALIGNED)),
        F.pad(key, (0, _ALIGNED)),
        torch.cat((value, F.pad(indicator, (0, _ALIGNED - 1))), dim=-1),
        scale=width**-0.5,
    )
    return output[..., :width], output[..., width].float().mean(dim=1)


def binarize(concept_attention: Tensor, quantile: float = 0.5) -> Tensor:
    """Return M = A_C > its quantile over positions, for A_C [S, N]: [S, N] float32 in {0, 1}.

    The quantile is the value at rank ceil(quantile x N), an element of A_C, so that no interpolation can round it past
    a neighbour. With the median of an even number of distinct values, exactly half of the positions are 1.
    """
    positions = concept_attention.shape[-1]
    rank = max(1, math.ceil(quantile * positions))
    threshold = concept_attention.kthvalue(rank, dim=-1, keepdim=True).values
    return (concept_attention > threshold).float()


@dataclass(slots=True, eq=False)
class ConceptLocalization:
    """The masks of a tensor batch, computed anew in every UNet pass from the attention observed in it.

    Attributes:
        concept_tokens: the indicator of C for every sample's prompt, [S, L]; zero for unconditional samples.
        localized: [I] bool; True: the residual acts only inside M (LAG), False: everywhere (M = 1).
        unconditional: the mask of unconditional samples: "share_mask", that of the conditional half, or "base", M = 0.
        quantile: the threshold over positions; the paper's is the median.
        samples_per_image: 2 with guidance, 1 without.
    """

    concept_tokens: Tensor
    localized: Tensor
    unconditional: str = "share_mask"
    quantile: float = 0.5
    samples_per_image: int = 2
    _attention: dict[str, list[Tensor]] = field(default_factory=lambda: defaultdict(list))

    def observe(self, transformer: str, concept_attention: Tensor) -> None:
        """Record A_C, [S, N], of one cross-attention layer of a transformer."""
        self._attention[transformer].append(concept_attention)

    def mask(self, transformer: str) -> Tensor:
        """Return the mask, [S, N], of the named transformer in this pass, and drop what was observed for it.

        If the transformer has several cross-attention layers, their maps are averaged.
        """
        layers = self._attention.pop(transformer)
        attention = torch.stack(layers).mean(dim=0) if len(layers) > 1 else layers[0]
        conditional = binarize(attention[self.samples_per_image - 1 :: self.samples_per_image], self.quantile)
        conditional = torch.where(self.localized[:, None], conditional, torch.ones_like(conditional))
        if self.samples_per_image == 1:
            return conditional
        unconditional = torch.zeros_like(conditional) if self.unconditional == "base" else conditional
        return torch.stack((unconditional, conditional), dim=1).flatten(0, 1)


class LocatingAttnProcessor:
    """A diffusers attention processor for one cross-attention layer that also passes A_C to `localization`."""

    def __init__(self, transformer: str, localization: ConceptLocalization) -> None:
        self.transformer = transformer
        self.localization = localization
        self.cache = KeyValueCache(fixed=True)  # the prompts are the same in every denoising step

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        query = split_heads(attn.to_q(hidden_states), attn.heads)
        key, value = self.cache.get(attn, encoder_hidden_states)
        output, concept_attention = attend_and_locate(query, key, value, self.localization.concept_tokens)
        self.localization.observe(self.transformer, concept_attention)
        return project_out(attn, output)


@contextmanager
def attention_observed(base: BaseModel, localization: ConceptLocalization) -> Iterator[None]:
    """Context manager in which the cross-attention of every target layer's transformer passes A_C to `localization`."""
    processors = dict(base.unet.attn_processors)
    transformers = {target.transformer for target in base.target_layers}
    locating = {
        name: LocatingAttnProcessor(owner, localization)
        for name in processors
        for owner in [name.partition(".transformer_blocks.")[0]]
        if owner in transformers and name.endswith(".attn2.processor")
    }
    base.unet.set_attn_processor({**processors, **locating})  # type: ignore[arg-type]
    try:
        yield
    finally:
        base.unet.set_attn_processor(processors)
