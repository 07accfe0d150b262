"""What a worker keeps from one shard to the next: the frozen models, and how many concepts it trains at once."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from transformers import CLIPTokenizer

from ...core.base_model import BaseModel, load_base_model
from ...core.identifier_token import identifier_id
from ...core.quality_scores import Scorer, load_scorer
from ...core.training.training_pack import check_trainable
from ..catalog.store import CatalogStore
from ..models.folder import ResolvedModel
from ..spec.run_spec import RunSpec
from .pack_size import agreed_pack_size


@dataclass(frozen=True, eq=False)
class Personalizer:
    """What a worker keeps warm between shards. Nothing in it changes while it works (law 6).

    Attributes:
        pack_size: concepts trained together; short packs are padded to it.
        loading_tokenizer: the base model's, for the thread that loads: tokenizers of the `tokenizers` library set
            themselves up anew in every call, and fail when two threads do that at once.
    """

    base: BaseModel
    scorer: Scorer | None
    pack_size: int
    loading_tokenizer: CLIPTokenizer


def load_personalizer(
    spec: RunSpec, base: ResolvedModel, scorer: ResolvedModel | None, device: str, store: CatalogStore
) -> Personalizer:
    """Load the frozen models of a run onto a device: bfloat16 on CUDA, float32 on the CPU.

    Args:
        store: the catalog, in which all workers of one kind agree on a pack size where the spec leaves it open.

    Raises:
        InvalidInput: a model cannot be loaded, the spec's identifier token is not one token of its tokenizer, or the
            model cannot be trained with the spec's settings.
        StoreError: the store did not answer.
    """
    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    model = load_base_model(base.path, name=spec.base_model, revision=base.revision, device=device, dtype=dtype)
    identifier_id(model.tokenizer, spec.training.identifier_token)
    check_trainable(model, spec.training)
    batch_size = spec.scoring.batch_size
    judge = load_scorer(scorer.path, device=device, batch_size=batch_size) if scorer else None
    return Personalizer(
        model, judge, agreed_pack_size(store, model, spec.training), loading_tokenizer=copy.deepcopy(model.tokenizer)
    )
