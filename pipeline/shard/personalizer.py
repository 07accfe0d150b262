"""What a worker keeps loaded from one shard to the next: the frozen models and the pack size."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from transformers import CLIPTokenizer

from ...core.base_model import BaseModel, load_base_model
from ...core.identifier_token import identifier_id
from ...core.scoring.quality_scores import Scorer, load_scorer
from ...core.training.training_pack import check_trainable
from ..catalog.store import CatalogStore
from ..models.folder import ResolvedModel
from ..spec.run_spec import RunSpec
from .pack_size import resolve_pack_size


@dataclass(frozen=True, eq=False)
class Personalizer:
    """The frozen models of a worker and its pack size. Executing a shard changes nothing in it (law 6).

    Attributes:
        pack_size: concepts trained together; short packs are padded to it.
        loading_tokenizer: a copy of the base model's tokenizer for the loading thread. Tokenizers of the `tokenizers`
            library are not thread-safe: every call changes their truncation and padding state.
    """

    base: BaseModel
    scorer: Scorer | None
    pack_size: int
    loading_tokenizer: CLIPTokenizer


def load_personalizer(
    spec: RunSpec, base: ResolvedModel, scorer: ResolvedModel | None, device: str, store: CatalogStore
) -> Personalizer:
    """Load a run's frozen models onto a device: the base model in bfloat16 on CUDA, in float32 on a CPU.

    Args:
        store: the catalog, which stores the pack size if the spec has `auto`.

    Raises:
        InvalidInput: a model cannot be loaded, the identifier token is not one token, or the base model cannot be
            trained with the spec's settings.
        StoreError: the catalog cannot be read or written.
    """
    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    model = load_base_model(base.path, name=spec.base_model, revision=base.revision, device=device, dtype=dtype)
    identifier_id(model.tokenizer, spec.training.identifier_token)
    check_trainable(model, spec.training)
    batch_size = spec.scoring.batch_size
    clip = load_scorer(scorer.path, device=device, batch_size=batch_size) if scorer else None
    pack_size = resolve_pack_size(store, model, spec.training, spec.shard_size)
    return Personalizer(model, clip, pack_size, loading_tokenizer=copy.deepcopy(model.tokenizer))
