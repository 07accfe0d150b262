"""Run ids. They sort by time, because of several results of a concept the one of the latest run counts."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from ...core.errors import InvalidInput
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
    """
    return later_run_id(store.run_ids(), datetime.now(UTC), secrets.token_hex(3))


def require_run_id(text: str) -> str:
    """Return `text` if it is a run id.

    Raises:
        InvalidInput: it is not, and would not sort by time.
    """
    if not RUN_ID.fullmatch(text):
        raise InvalidInput(f"{text!r} is not a run id", fix="give one such as 20261122T190501Z-3fa9c1, the time in UTC")
    return text


def later_run_id(existing: Iterable[str], now: datetime, suffix: str) -> str:
    """A run id of `now` and `suffix`; its time is at least one second after the latest of `existing`."""
    stamps = [run_id[:16] for run_id in existing if _STAMP.fullmatch(run_id[:16])]
    stamp = now.astimezone(UTC).strftime(_FORMAT)
    if stamps and max(stamps) >= stamp:
        after = datetime.strptime(max(stamps), _FORMAT) + timedelta(seconds=1)
        stamp = after.strftime(_FORMAT)
    return f"{stamp}-{suffix}"
