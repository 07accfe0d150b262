"""What a run says while it waits for another run that holds its catalog."""

from __future__ import annotations

import time
from collections.abc import Callable

from ...core.terminal_text import utc_text
from ...core.timing import WAIT_NOTICE_INTERVAL_S
from ...pipeline.catalog.lease import LeaseState


class HolderNotices:
    """Reports who holds the catalog that a run waits for: first, when it changes, and every minute."""

    def __init__(self, notice: Callable[[str], None]) -> None:
        self._notice = notice
        self._token = ""
        self._noticed_at = float("-inf")

    def __call__(self, holder: LeaseState) -> None:
        if holder.token == self._token and time.monotonic() - self._noticed_at < WAIT_NOTICE_INTERVAL_S:
            return
        self._token, self._noticed_at = holder.token, time.monotonic()
        since = utc_text(holder.acquired_at)
        self._notice(f"waiting for run {holder.run_id} of {holder.owner}, which has held the catalog since {since}")
