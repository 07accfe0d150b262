"""Asking a store again: when, how often, and who gets to hear of it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

_PAUSES = wait_random_exponential(multiplier=0.25, max=20)  # seconds; at random from 0 to a bound that doubles
_WORTH_A_WORD_S = 10.0

_log = logging.getLogger(__name__)
T = TypeVar("T")


def ask(
    operation: Callable[[], T],
    *,
    patience_s: float,
    is_passing: Callable[[BaseException], bool],
    said: Callable[[BaseException], str],
) -> T:
    """What `operation` returns, tried again while its errors are passing ones and patience lasts.

    Args:
        patience_s: seconds from the first try; the last one begins when they are over. 0: one try.
        is_passing: whether an error is worth another try.
        said: an error in words, for the log, which hears of it when a store keeps one waiting for long.

    Raises:
        Exception: the last error, as it is.
    """

    def pause(state: RetryCallState) -> float:
        return min(_PAUSES(state), max(0.0, patience_s - (state.seconds_since_start or 0.0)))

    return Retrying(
        retry=retry_if_exception(is_passing),
        stop=stop_after_delay(patience_s),
        wait=pause,
        before_sleep=_Word(said, patience_s),
        reraise=True,
    )(operation)


class _Word:
    """A line in the log for a wait of ten seconds, another when it has become three times as long, and so on."""

    def __init__(self, said: Callable[[BaseException], str], patience_s: float) -> None:
        self._said, self._patience_s = said, patience_s
        self._next_s = _WORTH_A_WORD_S

    def __call__(self, state: RetryCallState) -> None:
        waited = state.seconds_since_start or 0.0
        error = state.outcome.exception() if state.outcome else None
        if waited < self._next_s or error is None:
            return
        self._next_s = 3 * waited
        _log.warning(
            "waiting for the store for %.0f s, asking again until %.0f s have passed: %s",
            waited,
            self._patience_s,
            self._said(error),
        )
