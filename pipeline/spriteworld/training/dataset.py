"""Drawn pictures and what is true of each, on disk: two pictures of every identity, on different backgrounds.

Shapes: pictures uint8 [n, 64, 64, 3], masks as packed bits [n, 512], facts int16 [n, 5]. Pictures 2i and 2i+1 show
one identity.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..world import BACKGROUNDS, CLASSES, COLOURS, PATTERNS, SIZE, draw, random_identity, rng_for

TRAIN_IDENTITIES = 24_000
HELD_OUT_IDENTITIES = 1_000
_CHUNK = 500
_COLOUR_NAMES = tuple(COLOURS)


@dataclass(frozen=True)
class Scenes:
    """A split of the data set. `facts` columns: class, background, body colour, pattern, trim colour (indices)."""

    pictures: np.ndarray
    masks: np.ndarray
    facts: np.ndarray

    def foreground(self, index: np.ndarray) -> np.ndarray:
        """Masks of some pictures, bool [len(index), 64, 64]."""
        return np.unpackbits(self.masks[index], axis=1).reshape(-1, SIZE, SIZE).astype(bool)


def make_scenes(folder: Path, split: str, identities: int, processes: int = 2) -> None:
    """Draw a split into `folder`/`split`; does nothing if it is already there."""
    out = folder / split
    if (out / "facts.npy").exists():
        return
    out.mkdir(parents=True, exist_ok=True)
    starts = list(range(0, identities, _CHUNK))
    with ProcessPoolExecutor(processes) as pool:
        chunks = list(
            pool.map(_draw_chunk, [split] * len(starts), starts, [min(_CHUNK, identities - s) for s in starts])
        )
    for name, parts in zip(("pictures", "masks", "facts"), zip(*chunks, strict=True), strict=True):
        np.save(out / f"{name}.npy", np.concatenate(parts))


def load_scenes(folder: Path, split: str) -> Scenes:
    arrays = [np.load(folder / split / f"{name}.npy", mmap_mode="r") for name in ("pictures", "masks", "facts")]
    return Scenes(*arrays)


def _draw_chunk(split: str, start: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    pictures = np.empty((2 * count, SIZE, SIZE, 3), np.uint8)
    masks = np.empty((2 * count, SIZE * SIZE // 8), np.uint8)
    facts = np.empty((2 * count, 5), np.int16)
    for i in range(count):
        seed = f"{split}/{start + i}"
        who = random_identity(seed)
        for j, background in enumerate(rng_for("backgrounds", seed).choice(len(BACKGROUNDS), size=2, replace=False)):
            row = 2 * i + j
            pictures[row], mask = draw(who, BACKGROUNDS[background], f"{seed}/{j}")
            masks[row] = np.packbits(mask.reshape(-1))
            facts[row] = (
                CLASSES.index(who.macro_class),
                background,
                _COLOUR_NAMES.index(who.body),
                PATTERNS.index(who.pattern),
                _COLOUR_NAMES.index(who.trim),
            )
    return pictures, masks, facts
