"""Names for runs that sort by time, because a reader believes the latest run."""

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
    """A name for a new run of this catalog, such as "20261122T190501Z-3fa9c1".

    It sorts after every run the catalog has seen, also when this machine's clock is behind the one that made them:
    otherwise the new run's commits would lose to the old ones.

    Raises:
        StoreError: the catalog cannot be listed.
    """
    return later_run_id(store.run_ids(), datetime.now(UTC), secrets.token_hex(3))


def require_run_id(text: str) -> str:
    """A run id that somebody else has made.

    Raises:
        InvalidInput: it is none, and would not sort by time among the others.
    """
    if not RUN_ID.fullmatch(text):
        raise InvalidInput(f"{text!r} is not a run's id", fix="give one like 20261122T190501Z-3fa9c1, the time in UTC")
    return text


def later_run_id(existing: Iterable[str], now: datetime, suffix: str) -> str:
    """`now` and `suffix` as a run id, moved on to one second after the latest of `existing` where that is later."""
    stamps = [run_id[:16] for run_id in existing if _STAMP.fullmatch(run_id[:16])]
    stamp = now.astimezone(UTC).strftime(_FORMAT)
    if stamps and max(stamps) >= stamp:
        after = datetime.strptime(max(stamps), _FORMAT) + timedelta(seconds=1)
        stamp = after.strftime(_FORMAT)
    return f"{stamp}-{suffix}"
