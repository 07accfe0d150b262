"""The pack size that all workers of a catalog agree on.

Tensors of another shape round differently, so concepts trained in packs of another size differ in their last bits.
The first worker on a kind of device measures, and leaves what it found in the catalog; every other worker, and every
later run, trains in that shape.
"""

from __future__ import annotations

import json
from dataclasses import asdict

import torch

from ...core.base_model import BaseModel
from ...core.errors import StoreError
from ...core.training.packing import choose_pack_size, measure_packs
from ...core.training.settings import TrainingSettings
from ..catalog.store import CatalogStore
from ..planning.fingerprint import digest_of


def agreed_pack_size(store: CatalogStore, base: BaseModel, settings: TrainingSettings) -> int:
    """`settings.pack_size` if it is a number, else what the catalog remembers for this device; else measured now.

    Measuring takes about a minute at most.

    Raises:
        StoreError: the catalog cannot be read or written, or what it remembers is damaged.
        RuntimeError: the device has no room for one concept.
    """
    if settings.pack_size != "auto":
        return settings.pack_size
    path = store.pack_size_file(_digest(base, settings))
    if not store.exists(path):
        trials = measure_packs(base, settings)
        found = {
            "device": device_name(base),
            "pack_size": choose_pack_size(trials),
            "trials": [asdict(trial) for trial in trials],
        }
        store.create(path, (json.dumps(found, indent=1, sort_keys=True) + "\n").encode())
    try:
        return int(json.loads(store.read(path))["pack_size"])
    except (ValueError, KeyError, TypeError) as error:
        fix = "delete it; the next worker measures again"
        raise StoreError(f"{store.url(path)} is damaged ({type(error).__name__}: {error})", fix=fix) from error


def device_name(base: BaseModel) -> str:
    """What kind of device the base model is on, such as "NVIDIA H100 80GB HBM3", or "cpu, 1 thread"."""
    if base.device.type == "cuda":
        return torch.cuda.get_device_name(base.device)
    threads = torch.get_num_threads()
    return f"cpu, {threads} thread{'' if threads == 1 else 's'}"


def _digest(base: BaseModel, settings: TrainingSettings) -> str:
    """Everything that decides how many concepts fit and how fast they train."""
    fields = ("batch_size", "rank_fraction", "train_identifier", "gradient_checkpointing")
    return digest_of(
        {
            "device": device_name(base),
            "base": base.revision,
            "dtype": str(base.dtype),
            "training": settings.model_dump(mode="json", include=set(fields)),
        }
    )
