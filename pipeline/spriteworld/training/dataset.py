"""The data set: drawn images with masks and labels, on disk; two images of every identity, on different backgrounds.

Shapes: images uint8 [n, 64, 64, 3], masks as packed bits [n, 512], labels int16 [n, 5]. Images 2i and 2i+1 show the
same identity.
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
    """A split of the data set. The columns of `labels`: class, background, body colour, pattern, trim colour."""

    images: np.ndarray
    masks: np.ndarray
    labels: np.ndarray

    def foreground(self, index: np.ndarray) -> np.ndarray:
        """Masks of some images, bool [len(index), 64, 64]."""
        return np.unpackbits(self.masks[index], axis=1).reshape(-1, SIZE, SIZE).astype(bool)


def make_scenes(folder: Path, split: str, identities: int, processes: int = 2) -> None:
    """Draw a split and save it to `folder`/`split`, unless it exists."""
    out = folder / split
    if (out / "labels.npy").exists():
        return
    out.mkdir(parents=True, exist_ok=True)
    starts = list(range(0, identities, _CHUNK))
    with ProcessPoolExecutor(processes) as pool:
        chunks = list(
            pool.map(_draw_chunk, [split] * len(starts), starts, [min(_CHUNK, identities - s) for s in starts])
        )
    for name, parts in zip(("images", "masks", "labels"), zip(*chunks, strict=True), strict=True):
        np.save(out / f"{name}.npy", np.concatenate(parts))


def load_scenes(folder: Path, split: str) -> Scenes:
    arrays = [np.load(folder / split / f"{name}.npy", mmap_mode="r") for name in ("images", "masks", "labels")]
    return Scenes(*arrays)


def _draw_chunk(split: str, start: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    images = np.empty((2 * count, SIZE, SIZE, 3), np.uint8)
    masks = np.empty((2 * count, SIZE * SIZE // 8), np.uint8)
    labels = np.empty((2 * count, 5), np.int16)
    for i in range(count):
        seed = f"{split}/{start + i}"
        who = random_identity(seed)
        for j, background in enumerate(rng_for("backgrounds", seed).choice(len(BACKGROUNDS), size=2, replace=False)):
            row = 2 * i + j
            images[row], mask = draw(who, BACKGROUNDS[background], f"{seed}/{j}")
            masks[row] = np.packbits(mask.reshape(-1))
            labels[row] = (
                CLASSES.index(who.macro_class),
                background,
                _COLOUR_NAMES.index(who.body),
                PATTERNS.index(who.pattern),
                _COLOUR_NAMES.index(who.trim),
            )
    return images, masks, labels
