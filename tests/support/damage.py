"""Damage to the data of committed concepts, as a disk, a copy or a person may do it.

Each kind returns the bytes of a damaged data file, or None for a file that is gone. `replace_residual` and
`replace_renderings` damage rows from within: what they commit has right digests and wrong content.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from persres.core.residual import Residual
from persres.pipeline.catalog.commit_record import Fingerprints
from persres.pipeline.catalog.index import read_committed
from persres.pipeline.catalog.index_version import newest_version
from persres.pipeline.catalog.layout import AttemptPaths
from persres.pipeline.catalog.results import read_renderings, read_residual_row
from persres.pipeline.catalog.schemas import RenderingRow, ResidualRow
from persres.pipeline.catalog.store import CatalogStore
from persres.pipeline.manifest.row import ManifestRow
from persres.pipeline.planning.plan import PlannedConcept, Shard
from persres.pipeline.shard.commit import commit_shard


def flipped(data: bytes, at: float = 0.5) -> bytes:
    """One bit is another, at this share of the file."""
    changed = bytearray(data)
    changed[int(at * (len(data) - 1))] ^= 1
    return bytes(changed)


def truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


def emptied(data: bytes) -> bytes:
    return b""


def overwritten(data: bytes) -> bytes:
    """A bad block: 512 bytes are zero."""
    middle = len(data) // 2
    return data[:middle] + bytes(min(512, len(data) - middle)) + data[middle + 512 :]


def gone(data: bytes) -> None:
    return None


KINDS: dict[str, Callable[[bytes], bytes | None]] = {
    one.__name__: one for one in (flipped, truncated, emptied, overwritten, gone)
}


def damage_file(store: CatalogStore, path: str, kind: str) -> None:
    """Damage a data file."""
    data = KINDS[kind](store.read(path))
    if data is None:
        store.delete(path)
    else:
        store.write(path, data)


def swap_files(store: CatalogStore, one: str, other: str) -> None:
    """Exchange the content of two files: each then holds rows of other concepts."""
    data = store.read_many([one, other])
    store.write(one, data[other])
    store.write(other, data[one])


def replace_residual(store: CatalogStore, concept_id: str, change: Callable[[Residual], Residual | bytes]) -> None:
    """Commit another residual for a concept under its own fingerprints, with the digests of the new one."""

    def changed(row: ResidualRow) -> ResidualRow:
        residual = change(Residual.from_bytes(row.residual))
        return replace(row, residual=residual if isinstance(residual, bytes) else residual.to_bytes())

    _commit_again(store, concept_id, change_residual=changed)


def replace_renderings(store: CatalogStore, concept_id: str, image: bytes) -> None:
    """Commit one image for all renderings of a concept, under its own fingerprints, with the digests of the image."""
    _commit_again(store, concept_id, change_rendering=lambda row: replace(row, image=image))


def _commit_again(
    store: CatalogStore,
    concept_id: str,
    *,
    change_residual: Callable[[ResidualRow], ResidualRow] = lambda row: row,
    change_rendering: Callable[[RenderingRow], RenderingRow] = lambda row: row,
) -> None:
    """Commit a concept's changed rows as an attempt that precedes those of its run."""
    held = read_committed(store)[concept_id]
    residual, renderings = read_residual_row(store, held), read_renderings(store, held)
    prompts = tuple(dict.fromkeys(row.prompt_template for row in renderings))
    row = ManifestRow(0, concept_id, held.macro_class, (), prompts)
    planned = PlannedConcept(row, Fingerprints(held.training_fingerprint, held.rendering_fingerprint), held)
    attempt = AttemptPaths.parse(held.residual_file)
    assert attempt is not None
    commit_shard(
        store,
        run_id=attempt.run_id,
        shard=Shard.of("train", [planned]),
        attempt="000",
        residuals=[change_residual(residual)],
        renderings=[change_rendering(row) for row in renderings],
        failures=(),
        seconds={},
        lease_generation=newest_version(store).fence,
    )
