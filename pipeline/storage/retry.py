"""Retry of transient errors: which pauses, for how long, and when the log hears of it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from ...core.timing import STORE_RETRY_LOG_S

_BACKOFF = wait_random_exponential(multiplier=0.25, max=20)  # seconds; random, from 0 to a bound that doubles

_log = logging.getLogger(__name__)
T = TypeVar("T")


def with_retry(
    operation: Callable[[], T],
    *,
    retry_s: float,
    is_transient: Callable[[BaseException], bool],
    describe: Callable[[BaseException], str],
) -> T:
    """Return what `operation` returns; retry it while its errors are transient and `retry_s` is not over.

    Args:
        retry_s: seconds from the first try; the last try begins when they are over. 0: a single try.
        is_transient: whether an error is worth another try.
        describe: an error as one line for the log, which names it when a retry has lasted long.

    Raises:
        Exception: the last error, unchanged.
    """

    def backoff(state: RetryCallState) -> float:
        return min(_BACKOFF(state), max(0.0, retry_s - (state.seconds_since_start or 0.0)))

    return Retrying(
        retry=retry_if_exception(is_transient),
        stop=stop_after_delay(retry_s),
        wait=backoff,
        before_sleep=_LongWaitLog(describe, retry_s),
        reraise=True,
    )(operation)


class _LongWaitLog:
    """Logs a retry that has lasted `STORE_RETRY_LOG_S`, and again each time its duration has tripled."""

    def __init__(self, describe: Callable[[BaseException], str], retry_s: float) -> None:
        self._describe, self._retry_s = describe, retry_s
        self._next_s = STORE_RETRY_LOG_S

    def __call__(self, state: RetryCallState) -> None:
        waited = state.seconds_since_start or 0.0
        error = state.outcome.exception() if state.outcome else None
        if waited < self._next_s or error is None:
            return
        self._next_s = 3 * waited
        _log.warning(
            "waiting for the store for %.0f s, retrying for %.0f s in all: %s",
            waited,
            self._retry_s,
            self._describe(error),
        )
