"""The files of the weights of one part of a model, a folder with config.json: which are read, and what is in them.

Weights are read from safetensors only, since loading a pickle can run any code.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open

Library = Literal["diffusers", "transformers"]
"""The library that saved a part, which decides the names of its files."""

WEIGHTS = ".safetensors"
VARIANTS = ("fp32", "fp16", "bf16", "ema", "non_ema")
"""Suffixes of the same weights in another precision or from another point of training, the preferred first."""

_INDEX = ".safetensors.index"
COPY_AGAIN = "copy the folder again"
_STEM: Mapping[Library, str] = {"diffusers": "diffusion_pytorch_model", "transformers": "model"}
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_MAX_POINTER_BYTES = 1024


class UnusableWeights(Exception):
    """A file of a model that cannot be used, or a part without weights; `fix`: what to do about it."""

    def __init__(self, message: str, fix: str) -> None:
        super().__init__(message)
        self.message, self.fix = message, fix


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """What a header says about one weight; `dtype` is safetensors' name, such as "F16"."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """The files of a part's weights.

    Attributes:
        folder: the part's.
        entry: the one weights file, or the index of several.
        variant: its suffix, None for the plain name.
    """

    folder: Path
    entry: str
    variant: str | None

    def stored(self) -> dict[str, StoredWeight]:
        """All weights by name, from the headers. Of several files, those that the index names, each in its file.

        Raises:
            UnusableWeights: a file is damaged, or the index names others than safetensors files beside it.
        """
        if not is_index(self.entry):
            return read_header(self.folder / self.entry)
        places = check_index(self.folder / self.entry)
        found: dict[str, StoredWeight] = {}
        for part in sorted(set(places.values())):
            header = read_header(self.folder / part)
            found |= {name: weight for name, weight in header.items() if places.get(name) == part}
        return found

    def load(self) -> dict[str, Any]:
        """As `stored`, with the weights themselves: tensors on the CPU."""
        from safetensors.torch import load_file  # torch takes seconds to import

        if not is_index(self.entry):
            return load_file(self.folder / self.entry)
        places, found = check_index(self.folder / self.entry), {}
        for part in sorted(set(places.values())):
            tensors = load_file(self.folder / part)
            found |= {name: tensor for name, tensor in tensors.items() if places.get(name) == part}
        return found


def is_index(name: str) -> bool:
    """Whether a file is the index of weights in several files."""
    return _INDEX in name and name.endswith(".json")


def weights_entry(names: Collection[str], library: Library) -> tuple[str, str | None] | None:
    """The file with which a library begins to read a part's weights, and its variant; None if there is none.

    The plain name comes first, then `VARIANTS` in their order.

    Args:
        names: of the files directly in the part's folder.
    """
    for variant in (None, *VARIANTS):
        for entry in entry_names(library, variant):
            if entry in names:
                return entry, variant
    return None


def entry_names(library: Library, variant: str | None = None) -> tuple[str, str]:
    """The names of the one weights file of a part, and of the index of several, in the order in which they are read."""
    infix = f".{variant}" if variant else ""
    single, index = f"{_STEM[library]}{infix}{WEIGHTS}", f"{_STEM[library]}{_INDEX}{infix}.json"
    return (index, single) if library == "diffusers" else (single, index)


def find_weights(folder: Path, library: Library) -> WeightFiles:
    """The files of the weights in a part's folder.

    Raises:
        UnusableWeights: there are none of the name that the library reads.
    """
    names = {path.name for path in folder.iterdir() if path.is_file()} if folder.is_dir() else set()
    found = weights_entry(names, library)
    if found is not None:
        return WeightFiles(folder, *found)
    others = sorted(name for name in names if name.endswith(WEIGHTS))
    has = f"but {others[0]}" if others else "nothing else either"
    reason = f"no weights (*.safetensors) in {folder.name}: no {_STEM[library]}{WEIGHTS}, {has}"
    rename = ", or rename the file" if others else ""
    raise UnusableWeights(reason, fix=f"save the part with `save_pretrained`, which names its weights so{rename}")


def read_index(file: Path) -> dict[str, str]:
    """The file of each weight, by an index: names of safetensors files in its folder. They need not be there.

    Raises:
        UnusableWeights: the index is damaged, or names something else.
    """
    try:
        content = json.loads(file.read_text("utf-8"))
        places = dict(content["weight_map"])
        is_valid = bool(places) and all(isinstance(text, str) for text in chain.from_iterable(places.items()))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise damaged(file, error) from error
    if not is_valid:
        raise damaged(file, ValueError("its weight_map names no files"))
    for part in set(places.values()):
        if not part.endswith(WEIGHTS):
            reason = f"{file.name} names {part!r}, which is no {WEIGHTS} file"
            fix = "save the part with `save_pretrained(safe_serialization=True)`: reading a pickle can run any code"
            raise UnusableWeights(reason, fix=fix)
        if part != os.path.basename(part) or "\\" in part:
            raise _outside(file, part)
    return places


def check_index(index: Path) -> dict[str, str]:
    """As `read_index`; the files have to be there, too.

    Raises:
        UnusableWeights: the index is damaged, or names what is missing or no safetensors file in its folder.
    """
    places = read_index(index)
    for part in sorted(set(places.values())):
        file = index.parent / part
        if not file.is_file():
            raise missing_part(index, part)
        # In the cache of the Hub all files are links into one folder; then so is the index.
        if file.resolve().parent not in (index.parent.resolve(), index.resolve().parent):
            raise _outside(index, part)
    return places


def missing_part(index: Path, part: str) -> UnusableWeights:
    """What to say about a file that an index names and that is not there."""
    return UnusableWeights(f"{index.name} names {part!r}, which is not there", fix=COPY_AGAIN)


def _outside(index: Path, part: str) -> UnusableWeights:
    fix = "copy the file into the folder, and name it in the index by its name alone"
    return UnusableWeights(f"{index.name} names {part!r}, which lies outside of its folder", fix=fix)


def require_metadata(index: Path) -> None:
    """Check that an index has the object "metadata", without which diffusers does not read it.

    Raises:
        UnusableWeights: it has not.
    """
    if not isinstance(json.loads(index.read_text("utf-8")).get("metadata"), dict):
        raise UnusableWeights(f"{index.name} has no object 'metadata'", fix='add it: `"metadata": {}` is enough')


def read_header(file: Path) -> dict[str, StoredWeight]:
    """The weights in a safetensors file, by name. Reads the header alone, and checks the file's length by it.

    Raises:
        UnusableWeights: the file is damaged, cut off, or the pointer of a Git LFS file.
    """
    try:
        with safe_open(file, framework="numpy") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118  (no mapping)
            return {name: StoredWeight(tuple(one.get_shape()), one.get_dtype()) for name, one in slices.items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise damaged(file, error) from error


def check_file(file: Path) -> None:
    """Check that a model's file is whole as far as that can be seen at once: weights, an index, a Git LFS pointer.

    Raises:
        UnusableWeights: it is not.
    """
    if file.name.endswith(WEIGHTS):
        read_header(file)
    elif is_index(file.name):
        check_index(file)
    elif is_lfs_pointer(file):
        raise damaged(file)


def is_lfs_pointer(file: Path) -> bool:
    """Whether Git left a pointer in place of a file, as it does without its extension LFS."""
    with suppress(OSError):
        if file.stat().st_size <= _MAX_POINTER_BYTES:
            with file.open("rb") as opened:
                return opened.read(len(_LFS_POINTER)) == _LFS_POINTER
    return False


def damaged(file: Path, error: Exception | None = None) -> UnusableWeights:
    """What to say about a file that cannot be read."""
    if is_lfs_pointer(file):
        reason = f"{file.name} is a Git LFS pointer, not the file itself"
        return UnusableWeights(reason, fix="run `git lfs install` and `git lfs pull` in the repository's folder")
    text = (str(error).splitlines() or [type(error).__name__])[0]
    return UnusableWeights(f"{file.name} is damaged or cut off: {text}", fix=COPY_AGAIN)
