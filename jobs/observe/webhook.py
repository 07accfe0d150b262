"""Telling somebody else's server how a run ended: one POST of JSON, which a chat's incoming webhook can show as it is.

Such an address is a secret as a rule: whoever has it can write into the chat. So it comes from the environment of the
process that runs, and no message, log, record or error repeats more of it than its host.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, stop_after_delay, wait_random_exponential

from ...core.errors import InvalidInput
from ...pipeline.timing import WEBHOOK_DEADLINE_S, WEBHOOK_TIMEOUT_S

if TYPE_CHECKING:
    import requests

ADDRESS = "PERSRES_WEBHOOK"
"""The environment's name for the address."""
STATES = "PERSRES_WEBHOOK_ON"
"""The environment's name for the states to tell, such as "failed,refused"."""

ALL_STATES = ("ended", "nothing", "failed", "stopped", "refused", "held")
TOLD_BY_DEFAULT = frozenset(ALL_STATES) - {"nothing"}

TRIES = 4
REDIRECTS = 3
_KEEP_THE_MESSAGE = (307, 308)  # any other redirect would make a GET of it
_COME_AGAIN = (408, 425, 429)


class _NotNow(Exception):
    """The server did not take the message this time."""


class _Refused(Exception):
    """The server will not take the message however often it is sent."""


@dataclass(frozen=True, slots=True)
class Webhook:
    """Where to tell how runs end, and which ends.

    Args:
        url: an http:// or https:// address. It is left out of the object's representation.
        states: of `ALL_STATES`.
        timeout_s: for so long a server may be silent before it is asked again.
        longest_pause_s: between two tries.

    Raises:
        InvalidInput: the address is no such address, or a state has no such name.
    """

    url: str = field(repr=False)
    states: frozenset[str] = TOLD_BY_DEFAULT
    timeout_s: float = WEBHOOK_TIMEOUT_S
    longest_pause_s: float = 5.0

    def __post_init__(self) -> None:
        if not _is_web_address(self.url):
            raise InvalidInput(
                "the webhook's address is not an http:// or https:// one (it is not shown, for it may be a secret)",
                fix=f"set {ADDRESS} to the whole address that your chat or monitoring gives you",
            )
        if unknown := sorted(self.states - set(ALL_STATES)):
            raise InvalidInput(
                f"{STATES} names {', '.join(unknown)}", fix=f"give some of {', '.join(ALL_STATES)}, with commas"
            )

    @property
    def host(self) -> str:
        """What may be said of the address."""
        return urlsplit(self.url).hostname or ""

    def tell(self, state: str, message: Mapping[str, Any]) -> str | None:
        """Post a message about a run that ended in this state, if somebody wants to hear of it.

        Returns:
            Why the message could not be delivered, in words without the address; None if it was, or is not wanted.
        """
        import requests  # not before it is needed: it takes a tenth of a second

        if state not in self.states:
            return None
        retrying = Retrying(
            retry=retry_if_exception_type((_NotNow, requests.RequestException)),
            stop=stop_after_attempt(TRIES) | stop_after_delay(WEBHOOK_DEADLINE_S),
            wait=wait_random_exponential(multiplier=min(0.5, self.longest_pause_s), max=self.longest_pause_s),
            reraise=True,
        )
        try:
            with requests.Session() as session:
                retrying(self._post, session, message)
        except (_NotNow, _Refused) as error:
            return f"the webhook at {self.host} was not told: {error}"
        except (requests.RequestException, OSError, ValueError) as error:
            # Its own text names the address.
            return f"the webhook at {self.host} was not told: {_in_words(type(error).__name__)}"
        return None

    def _post(self, session: requests.Session, message: Mapping[str, Any]) -> None:
        url = self.url
        for _ in range(REDIRECTS + 1):
            # Of the answer only the status matters: with `stream` its body, however long, is not read.
            with session.post(url, json=message, timeout=self.timeout_s, allow_redirects=False, stream=True) as answer:
                status, target = answer.status_code, answer.headers.get("Location", "")
            if status not in _KEEP_THE_MESSAGE:
                _require_taken(status)
                return
            url = _redirected(url, target)
        raise _Refused(f"it redirects more than {REDIRECTS} times")


def webhook_of(
    url: str | None, *, on_cluster: bool = False, environment: Mapping[str, str] = os.environ
) -> Webhook | None:
    """The webhook of this process: at the address given, or at the environment's; None if there is neither.

    Args:
        on_cluster: the run is to be a job of a cluster, whose own environment names its webhook. That of this process
            is told only if the job cannot be handed over, or is lost.

    Raises:
        InvalidInput: as for `Webhook`; or an address is given for a job, whose command everybody can read.
    """
    if url and on_cluster:
        raise InvalidInput(
            "--webhook does not travel to a cluster: its dashboard would show the address to everybody",
            fix=f"set {ADDRESS} in the environment of the cluster's nodes",
        )
    url = url or environment.get(ADDRESS)
    if not url:
        return None
    wanted = environment.get(STATES, "").strip()
    states = frozenset(filter(None, (word.strip() for word in wanted.split(",")))) if wanted else TOLD_BY_DEFAULT
    return Webhook(url.strip(), states)


def _is_web_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        port_is_a_number = parts.port is None or parts.port > 0
    except ValueError:
        return False
    plain = url.isprintable() and not re.search(r"\s", url)
    return plain and parts.scheme in ("http", "https") and bool(parts.hostname) and port_is_a_number


def _require_taken(status: int) -> None:
    if 200 <= status < 300:
        return
    if status >= 500 or status in _COME_AGAIN:
        raise _NotNow(f"it answers {status}")
    redirects = 300 <= status < 400
    raise _Refused(f"it answers {status}" + (", a redirect that would lose the message" if redirects else ""))


def _redirected(url: str, target: str) -> str:
    """Where a redirect leads: anywhere on the web, but never from an encrypted connection to one that is not."""
    found = urljoin(url, target)
    if not target or not _is_web_address(found):
        raise _Refused("it redirects to what is not an http:// or https:// address")
    if urlsplit(url).scheme == "https" and urlsplit(found).scheme != "https":
        raise _Refused("it redirects from https to http")
    return found


def _in_words(name: str) -> str:
    """ "ConnectTimeout" as "connect timeout"."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()
