"""Run ids. They sort by time, because of several results of a concept the one of the latest run counts."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from ...core.errors import InvalidInput
from ..catalog import layout
from ..catalog.store import CatalogStore

RUN_ID = re.compile(r"\d{8}T\d{6}Z-[0-9a-z]+")
_FORMAT = "%Y%m%dT%H%M%SZ"
_STAMP = re.compile(r"\d{8}T\d{6}Z")


def new_run_id(store: CatalogStore) -> str:
    """A new run id for this catalog, such as "20261122T190501Z-3fa9c1".

    It sorts after every earlier run of the catalog, even if this machine's clock is behind the one that named them:
    otherwise the earlier commits would take precedence over the new ones.

    Raises:
        StoreError: the catalog cannot be listed.
        InvalidInput: an object of the catalog bears an id that no id of a time can follow.
    """
    existing, now, suffix = store.run_ids(), datetime.now(UTC), secrets.token_hex(3)
    try:
        run_id = later_run_id(existing, now, suffix)
    except ValueError:
        run_id = ""
    if existing and existing[-1] > run_id:
        raise InvalidInput(
            f"{_object_of(store, existing[-1])} is of run {existing[-1]}, after which no other run could be: "
            "its id is no time",
            fix="remove it, and whatever else has this id; or submit to another catalog",
        )
    return run_id


def require_run_id(text: str) -> str:
    """Return `text` if it is a run id.

    Raises:
        InvalidInput: it is not, and would not sort by time.
    """
    if not (RUN_ID.fullmatch(text) and _is_time(text[:16])):
        raise InvalidInput(f"{text!r} is not a run id", fix="give one such as 20261122T190501Z-3fa9c1, the time in UTC")
    return text


def later_run_id(existing: Iterable[str], now: datetime, suffix: str) -> str:
    """A run id of `now` and `suffix`; its time is at least one second after the latest of `existing`.

    Raises:
        ValueError: the latest of `existing` has no possible time, or the last possible one.
    """
    stamps = [run_id[:16] for run_id in existing if _STAMP.fullmatch(run_id[:16])]
    stamp = now.astimezone(UTC).strftime(_FORMAT)
    if stamps and max(stamps) >= stamp:
        try:
            after = datetime.strptime(max(stamps), _FORMAT) + timedelta(seconds=1)
        except OverflowError as error:
            raise ValueError(f"no time is after {max(stamps)}") from error
        stamp = after.strftime(_FORMAT)
    return f"{stamp}-{suffix}"


def _is_time(stamp: str) -> bool:
    try:
        datetime.strptime(stamp, _FORMAT)
    except ValueError:
        return False
    return True


def _object_of(store: CatalogStore, run_id: str) -> str:
    """The address of an object of a run, or of what it lies in."""
    folders = (layout.RUNS, layout.COMMITS, layout.INDEX)
    paths = (path for folder in folders for path in store.list(folder) if path.startswith(f"{folder}{run_id}"))
    return store.url(next(paths, ""))
