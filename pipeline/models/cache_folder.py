"""Where this machine keeps what can be had again: base models that were fetched, digests of folders."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

CACHE_VARIABLE = "PERSRES_CACHE"


def cache_folder() -> Path:
    """`PERSRES_CACHE`, or the user's cache folder; it need not exist yet.

    It belongs on a disk of this machine, for its locks tell processes of one machine apart.
    """
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named).expanduser().absolute()
    return platformdirs.user_cache_path("persres-batch", appauthor=False)
