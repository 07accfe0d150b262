"""A personalized residual: for every target layer i, dW_i = A_i B_i, added to the frozen weight with scale 1."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from .base_model import BaseModel, TargetLayer
from .errors import PersresError

IDENTIFIER_KEY = "identifier_embedding"
METADATA_KEY = "persres"


@dataclass(frozen=True, slots=True, eq=False)
class Residual:
    """What one concept learned.

    Attributes:
        a: for every target layer, A, [m, r] float32.
        b: for every target layer, B, [r, m] float32.
        identifier: [D] float32, V*'s learned embedding, or None when V* was not trained.
    """

    a: Mapping[str, Tensor]
    b: Mapping[str, Tensor]
    identifier: Tensor | None = None

    @property
    def ranks(self) -> dict[str, int]:
        return {name: factor.shape[1] for name, factor in self.a.items()}

    @property
    def parameter_count(self) -> int:
        return sum(factor.numel() for factors in (self.a, self.b) for factor in factors.values())

    def delta(self, layer: str) -> Tensor:
        """dW = A B, [m, m]."""
        return self.a[layer] @ self.b[layer]

    def delta_norm(self, layer: str) -> float:
        """The Frobenius norm of dW = A B, without making the m x m product: ||A B||^2 = sum((A^T A) * (B B^T))."""
        a, b = self.a[layer].double(), self.b[layer].double()
        return float(((a.T @ a) * (b @ b.T)).sum().clamp(min=0).sqrt())

    def to_bytes(self, metadata: Mapping[str, str] | None = None) -> bytes:
        """One safetensors blob: `<layer>.A`, `<layer>.B`, and `identifier_embedding` when V* was trained.

        The metadata goes into one JSON value: safetensors writes several keys in an order that differs between
        processes, and the same residual has to have the same bytes everywhere.
        """
        tensors = {f"{name}.A": factor for name, factor in self.a.items()}
        tensors |= {f"{name}.B": factor for name, factor in self.b.items()}
        if self.identifier is not None:
            tensors[IDENTIFIER_KEY] = self.identifier
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        return save(plain, metadata={METADATA_KEY: json.dumps(dict(metadata or {}), sort_keys=True)})

    @classmethod
    def from_bytes(cls, blob: bytes) -> Residual:
        """Read what `to_bytes` wrote.

        Raises:
            PersresError: the blob is not a residual.
        """
        try:
            tensors = load(blob)
        except SafetensorError as error:
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
    """Raises:
    PersresError: the residual was not trained on a model with these target layers.
    """
    expected = {layer.name: layer.width for layer in target_layers}
    if set(residual.a) != set(expected):
        odd = sorted(set(residual.a) ^ set(expected))
        raise PersresError(
            f"the residual's layers are not this base model's; they differ in {odd[:3]}", fix="use its own base model"
        )
    for name, width in expected.items():
        a, b = residual.a[name], residual.b[name]
        if a.shape[0] != width or b.shape[1] != width or a.shape[1] != b.shape[0]:
            raise PersresError(
                f"the residual's {name} is A {tuple(a.shape)}, B {tuple(b.shape)}; the layer is {width} wide",
                fix="use the base model it was trained on",
            )


def initialize_residual(
    target_layers: Sequence[TargetLayer],
    *,
    rank_fraction: float,
    a_std: float,
    seed: int,
    identifier: Tensor | None = None,
) -> Residual:
    """A residual before training, from its seed alone.

    B is drawn with variance 1/m, so that B x has the scale of x whatever the width. A is drawn with standard deviation
    `a_std`; 0 makes dW = 0, so that training starts exactly at the base model.
    """
    generator = torch.Generator().manual_seed(seed)
    a, b = {}, {}
    for layer in target_layers:
        rank = layer.rank(rank_fraction)
        b[layer.name] = torch.randn(rank, layer.width, generator=generator) * layer.width**-0.5
        a[layer.name] = torch.randn(layer.width, rank, generator=generator) * a_std
    return Residual(a, b, identifier)


def merge_into_base(base: BaseModel, residual: Residual) -> None:
    """Add dW to every target layer's weight, in place: W' = W + A B. For export and tests; workers never do it."""
    check_residual(residual, base.target_layers)
    with torch.no_grad():
        for layer in base.target_layers:
            weight = base.layer(layer).weight
            assert isinstance(weight, Tensor)
            weight += residual.delta(layer.name).to(weight).view_as(weight)
