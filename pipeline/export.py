"""Export a committed concept to files that other programs load: LoRAs for diffusers and for ComfyUI/A1111, and V*."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..core.base_model import load_target_layers, load_xl_layers_per_block
from ..core.lora_export import DIFFUSERS_FILE, TEXTUAL_INVERSION_FILE, diffusers_lora, kohya_lora, textual_inversion
from ..core.residual import Residual
from .catalog.commit_record import CommittedConcept
from .catalog.results import read_residual_row
from .catalog.store import CatalogStore
from .models.resolve import pinned_revision, resolve_model
from .storage.output_file import require_absent, require_own_folder, write_file


def export_concept(store: CatalogStore, committed: CommittedConcept, out: Path, *, force: bool = False) -> list[Path]:
    """Write a concept's residual as LoRA files, and its V* if trained, to the folder `out`/<concept id>.

    The token of V* is the concept id in angle brackets, so that several concepts can be loaded together.

    Args:
        force: replace existing files. Links are never written through.

    Returns:
        The paths of the files.

    Raises:
        InvalidInput: a file exists or cannot be written, or the base model, whose configuration gives the names of the
            layers, cannot be found.
        StoreError: the catalog cannot be read.
    """
    require_exportable([committed.concept_id], out, force=force)
    row = read_residual_row(store, committed)
    residual = Residual.from_bytes(row.residual)
    pinned = pinned_revision(row.base_model, row.base_model_revision)
    path = resolve_model(row.base_model, pinned, weights=False).path
    layers, xl_layers_per_block = load_target_layers(path), load_xl_layers_per_block(path)
    lora, kohya, textual = _file_names(row.concept_id)
    files = {
        lora: diffusers_lora(residual, layers),
        kohya: kohya_lora(residual, layers, title=row.concept_id, xl_layers_per_block=xl_layers_per_block),
    }
    if residual.identifier is not None:
        files[textual] = textual_inversion(residual, f"<{row.concept_id}>")
    folder = out / row.concept_id
    for name, blob in files.items():
        write_file(folder / name, blob)
    return [folder / name for name in files]


def require_exportable(concept_ids: Sequence[str], out: Path, *, force: bool) -> None:
    """Check that concepts can be exported to `out`, before the first of them is.

    Raises:
        InvalidInput: an id is no folder's name, a folder is a link, or, without `force`, a file exists.
    """
    for concept_id in concept_ids:
        require_own_folder(out / concept_id, within=out)
    require_absent((out / one / name for one in concept_ids for name in _file_names(one)), force=force)


def _file_names(concept_id: str) -> tuple[str, str, str]:
    return DIFFUSERS_FILE, f"{concept_id}.kohya.safetensors", TEXTUAL_INVERSION_FILE
