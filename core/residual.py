"""The personalized residual of one concept: W'_i = W_i + dW_i with dW_i = A_i B_i for every target layer i.

Shapes: A_i [m, r], B_i [r, m] for a layer of width m with rank r; D is the width of V*'s embedding.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from .base_model import TargetLayer
from .errors import PersresError

IDENTIFIER_KEY = "identifier_embedding"
METADATA_KEY = "persres"


@dataclass(frozen=True, slots=True, eq=False)
class Residual:
    """The factors A and B of one concept, and its V* if that was trained.

    Attributes:
        a: layer name to A, [m, r] float32.
        b: layer name to B, [r, m] float32.
        identifier: the trained embedding of V*, [D] float32, or None if V* was not trained.
    """

    a: Mapping[str, Tensor]
    b: Mapping[str, Tensor]
    identifier: Tensor | None = None

    @property
    def ranks(self) -> dict[str, int]:
        """Layer name to rank r."""
        return {name: factor.shape[1] for name, factor in self.a.items()}

    def delta_norm(self, layer: str) -> float:
        """Return the Frobenius norm |A B| of a layer, by |A B|^2 = sum((A^T A) * (B B^T)), without an m x m product."""
        a, b = self.a[layer].double(), self.b[layer].double()
        return float(((a.T @ a) * (b @ b.T)).sum().clamp(min=0).sqrt())

    def to_bytes(self, metadata: Mapping[str, str] | None = None) -> bytes:
        """Serialize to safetensors: `<layer>.A`, `<layer>.B`, and `identifier_embedding` if V* was trained.

        The metadata is stored as one JSON value: safetensors writes several keys in an order that differs between
        processes, but equal residuals must have equal bytes.
        """
        tensors = {f"{name}.A": factor for name, factor in self.a.items()}
        tensors |= {f"{name}.B": factor for name, factor in self.b.items()}
        if self.identifier is not None:
            tensors[IDENTIFIER_KEY] = self.identifier
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        return save(plain, metadata={METADATA_KEY: json.dumps(dict(metadata or {}), sort_keys=True)})

    @classmethod
    def from_bytes(cls, blob: bytes) -> Residual:
        """Deserialize the result of `to_bytes`.

        Raises:
            PersresError: the blob is not a residual.
        """
        try:
            tensors = load(blob)
        except (SafetensorError, ValueError, TypeError, LookupError, RuntimeError) as error:  # the last four: torch's
            raise PersresError(
                f"not a residual: {error}", fix="read the column `residual` of residuals/*.parquet"
            ) from error
        identifier = tensors.pop(IDENTIFIER_KEY, None)
        a = {name.removesuffix(".A"): tensor for name, tensor in tensors.items() if name.endswith(".A")}
        b = {name.removesuffix(".B"): tensor for name, tensor in tensors.items() if name.endswith(".B")}
        if a.keys() != b.keys() or len(a) + len(b) != len(tensors) or not a:
            raise PersresError("not a residual: its A and B factors do not pair up", fix="train the concept again")
        return cls(a, b, identifier)


def check_residual(residual: Residual, target_layers: Sequence[TargetLayer]) -> None:
    """Check that a residual fits the target layers of a base model.

    Raises:
        PersresError: its layers or their widths differ.
    """
    expected = {layer.name: layer.width for layer in target_layers}
    if set(residual.a) != set(expected):
        odd = sorted(set(residual.a) ^ set(expected))
        raise PersresError(
            f"the residual's layers are not this base model's; they differ in {odd[:3]}", fix="use its own base model"
        )
    for name, width in expected.items():
        a, b = residual.a[name], residual.b[name]
        if a.dim() != 2 or b.dim() != 2 or (*a.shape, *b.shape) != (width, a.shape[1], a.shape[1], width):
            raise PersresError(
                f"the residual's {name} is A {tuple(a.shape)}, B {tuple(b.shape)}; the layer is {width} wide",
                fix="use the base model it was trained on",
            )


def initialize_residual(
    target_layers: Sequence[TargetLayer],
    *,
    rank_fraction: int | float,
    a_std: float,
    seed: int,
) -> Residual:
    """Draw the factors with which training starts, from the seed alone.

    B has variance 1/m, so that B x has the scale of x for every width. A has standard deviation `a_std`; with 0, dW is
    zero and training starts exactly at the base model.
    """
    generator = torch.Generator().manual_seed(seed)
    a, b = {}, {}
    for layer in target_layers:
        rank = layer.rank(rank_fraction)
        b[layer.name] = torch.randn(rank, layer.width, generator=generator) * layer.width**-0.5
        a[layer.name] = torch.randn(layer.width, rank, generator=generator) * a_std
    return Residual(a, b)
