"""Export a committed concept to files that other programs load: LoRAs for diffusers and for ComfyUI/A1111, and V*."""

from __future__ import annotations

from pathlib import Path

from ..core.base_model import load_target_layers, load_xl_layers_per_block
from ..core.lora_export import DIFFUSERS_FILE, TEXTUAL_INVERSION_FILE, diffusers_lora, kohya_lora, textual_inversion
from ..core.residual import Residual
from .catalog.commit_record import CommittedConcept
from .catalog.results import read_residual_row
from .catalog.store import CatalogStore
from .models.resolve import pinned_revision, resolve_model


def export_concept(store: CatalogStore, committed: CommittedConcept, out: Path) -> list[Path]:
    """Write a concept's residual as LoRA files, and its V* if trained, to the folder `out`/<concept id>.

    The token of V* is the concept id in angle brackets, so that several concepts can be loaded together.

    Returns:
        The paths of the files.

    Raises:
        InvalidInput: the base model, whose configuration gives the names of the layers, cannot be found.
        StoreError: the catalog cannot be read.
    """
    row = read_residual_row(store, committed)
    residual = Residual.from_bytes(row.residual)
    pinned = pinned_revision(row.base_model, row.base_model_revision)
    path = resolve_model(row.base_model, pinned, weights=False).path
    layers, xl_layers_per_block = load_target_layers(path), load_xl_layers_per_block(path)
    files = {
        DIFFUSERS_FILE: diffusers_lora(residual, layers),
        f"{row.concept_id}.kohya.safetensors": kohya_lora(
            residual, layers, title=row.concept_id, xl_layers_per_block=xl_layers_per_block
        ),
    }
    if residual.identifier is not None:
        files[TEXTUAL_INVERSION_FILE] = textual_inversion(residual, f"<{row.concept_id}>")
    folder = out / row.concept_id
    folder.mkdir(parents=True, exist_ok=True)
    for name, blob in files.items():
        (folder / name).write_bytes(blob)
    return [folder / name for name in files]
