"""The pack size of a catalog: measured once per kind of device, stored in the catalog, and then used by all workers.

Tensors of another shape round differently, so the last bits of a residual depend on the pack size. Therefore the first
worker on a kind of device measures it, and all other workers and all later runs use the stored size.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import torch
from pydantic import PositiveInt

from ...core.base_model import BaseModel
from ...core.plural import plural
from ...core.training.pack_trials import MAX_PACK_SIZE, choose_pack_size, measure_packs
from ...core.training.settings import TrainingSettings
from ..catalog import layout
from ..catalog.store import CatalogStore
from ..planning.fingerprint import digest_of
from ..storage.json_document import parse_document


@dataclass(frozen=True, slots=True)
class _StoredPackSize:
    pack_size: PositiveInt


def resolve_pack_size(
    store: CatalogStore, base: BaseModel, settings: TrainingSettings, shard_size: int = MAX_PACK_SIZE
) -> int:
    """Return `settings.pack_size`, or for "auto" the catalog's pack size for this kind of device and size of shards.

    If the catalog has none, measure it, which takes about a minute at most, and store it. A pack larger than a shard
    would always be padded, so none is tried.

    Raises:
        StoreError: the catalog cannot be read or written, or its file is damaged.
        RuntimeError: the device has too little memory for one concept.
    """
    if settings.pack_size != "auto":
        return settings.pack_size
    most = min(shard_size, MAX_PACK_SIZE)
    path = layout.pack_size_file(_digest(base, settings))  # measured by an earlier version, for shards of any size
    if not store.exists(path):
        path = layout.pack_size_file(_digest(base, settings, most))
    if not store.exists(path):
        trials = measure_packs(base, settings, most=most)
        found = {
            "device": device_kind(base),
            "pack_size": choose_pack_size(trials, most),
            "trials": [asdict(trial) for trial in trials],
        }
        store.create(path, (json.dumps(found, indent=1, sort_keys=True) + "\n").encode())
    fix = "delete it; the next worker will measure again"
    stored = parse_document(store.read(path), _StoredPackSize, name=store.url(path), fix=fix)
    return min(stored.pack_size, most)


def device_kind(base: BaseModel) -> str:
    """Return the kind of device that the base model is on, such as "NVIDIA H100 80GB HBM3" or "cpu, 1 thread"."""
    if base.device.type == "cuda":
        return torch.cuda.get_device_name(base.device)
    return f"cpu, {plural(torch.get_num_threads(), 'thread')}"


def _digest(base: BaseModel, settings: TrainingSettings, most: int | None = None) -> str:
    """Return a digest of everything that determines how many concepts fit and how fast they train."""
    names = ("batch_size", "rank", "rank_fraction", "train_identifier", "gradient_checkpointing")
    return digest_of(
        {
            "device": device_kind(base),
            "base": base.revision,
            "dtype": str(base.dtype),
            "training": {name: value for name, value in settings.digest_fields().items() if name in names},
            **({} if most is None else {"most": most}),
        }
    )
