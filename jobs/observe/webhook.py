"""The webhook that is notified of how a run ended: one POST of JSON, in the form that incoming webhooks of chats show.

The URL is a secret as a rule: whoever has it can write into the chat. So it comes from the environment of the process,
and no message, log, record or error contains more of it than its host.
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
from ...core.timing import WEBHOOK_DEADLINE_S, WEBHOOK_TIMEOUT_S
from ...pipeline.run.states import SUBMIT_OUTCOMES

if TYPE_CHECKING:
    import requests

URL_VARIABLE = "PERSRES_WEBHOOK"
"""The environment variable with the URL."""
STATES_VARIABLE = "PERSRES_WEBHOOK_ON"
"""The environment variable with the states to notify of, such as "failed,refused"."""

DEFAULT_STATES = frozenset[str](SUBMIT_OUTCOMES) - {"idle"}

MAX_ATTEMPTS = 4
MAX_REDIRECTS = 3
_REDIRECTS_WITH_BODY = (307, 308)  # any other redirect turns the POST into a GET
_TRANSIENT_STATUS = (408, 425, 429)  # and 500 and above


class _TransientFailure(Exception):
    """The server did not accept the message, and may do so later."""


class _Rejected(Exception):
    """The server does not accept the message."""


@dataclass(frozen=True, slots=True)
class Webhook:
    """A webhook and the states that it is notified of.

    Args:
        url: an http:// or https:// URL, left out of the object's repr.
        states: some of `SUBMIT_OUTCOMES`.
        timeout_s: of one attempt.
        max_pause_s: between two attempts.

    Raises:
        InvalidInput: the URL is not a valid http:// or https:// one, or a state is unknown.
    """

    url: str = field(repr=False)
    states: frozenset[str] = DEFAULT_STATES
    timeout_s: float = WEBHOOK_TIMEOUT_S
    max_pause_s: float = 5.0

    def __post_init__(self) -> None:
        if not _is_http_url(self.url):
            raise InvalidInput(
                "the webhook's URL is not a valid http:// or https:// URL (not shown, because it may be a secret)",
                fix=f"set {URL_VARIABLE} to the whole URL that your chat or monitoring gives you",
            )
        if unknown := sorted(self.states - set(SUBMIT_OUTCOMES)):
            raise InvalidInput(
                f"{STATES_VARIABLE} names {', '.join(unknown)}",
                fix=f"give some of {', '.join(SUBMIT_OUTCOMES)}, separated by commas",
            )

    @property
    def host(self) -> str:
        """The part of the URL that is not secret."""
        return urlsplit(self.url).hostname or ""

    def notify(self, state: str, message: Mapping[str, Any]) -> str | None:
        """Post a message about a run that ended in this state, if the state is one of `states`.

        Returns:
            Why the message could not be delivered, without the URL; None if it was delivered, or not to be sent.
        """
        import requests  # not at the top: the import takes a tenth of a second

        if state not in self.states:
            return None
        retrying = Retrying(
            retry=retry_if_exception_type((_TransientFailure, requests.RequestException)),
            stop=stop_after_attempt(MAX_ATTEMPTS) | stop_after_delay(WEBHOOK_DEADLINE_S),
            wait=wait_random_exponential(multiplier=min(0.5, self.max_pause_s), max=self.max_pause_s),
            reraise=True,
        )
        try:
            with requests.Session() as session:
                retrying(self._post, session, message)
        except (_TransientFailure, _Rejected) as error:
            return f"the webhook at {self.host} was not notified: {error}"
        except (requests.RequestException, OSError, ValueError) as error:  # whose text contains the URL
            return f"the webhook at {self.host} was not notified: {_words_of(type(error).__name__)}"
        return None

    def _post(self, session: requests.Session, message: Mapping[str, Any]) -> None:
        url = self.url
        for _ in range(MAX_REDIRECTS + 1):
            # Only the status matters: with `stream` the body, however long, is not read.
            response = session.post(url, json=message, timeout=self.timeout_s, allow_redirects=False, stream=True)
            with response:
                status, target = response.status_code, response.headers.get("Location", "")
            if status not in _REDIRECTS_WITH_BODY:
                _raise_for_status(status)
                return
            url = _redirected(url, target)
        raise _Rejected(f"it redirects more than {MAX_REDIRECTS} times")


def find_webhook(
    url: str | None, *, on_cluster: bool = False, environment: Mapping[str, str] = os.environ
) -> Webhook | None:
    """The webhook of this process: at `url`, or else at the environment's URL; None if there is neither.

    Args:
        on_cluster: the run is to be a job of a cluster, whose own environment has its webhook. That of this process is
            notified only if the job cannot be submitted, or is lost.

    Raises:
        InvalidInput: as for `Webhook`; or there is a `url` for a job, whose command everybody can read.
    """
    if url and on_cluster:
        raise InvalidInput(
            "--webhook cannot be used for a cluster's job: the dashboard would show the URL to everybody",
            fix=f"set {URL_VARIABLE} in the environment of the cluster's nodes",
        )
    url = url or environment.get(URL_VARIABLE)
    if not url:
        return None
    listed = environment.get(STATES_VARIABLE, "").strip()
    states = frozenset(filter(None, (name.strip() for name in listed.split(",")))) if listed else DEFAULT_STATES
    return Webhook(url.strip(), states)


def _is_http_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        valid_port = parts.port is None or parts.port > 0
    except ValueError:
        return False
    valid_characters = url.isprintable() and not re.search(r"\s", url)
    return valid_characters and parts.scheme in ("http", "https") and bool(parts.hostname) and valid_port


def _raise_for_status(status: int) -> None:
    if 200 <= status < 300:
        return
    if status >= 500 or status in _TRANSIENT_STATUS:
        raise _TransientFailure(f"it answers {status}")
    redirects = 300 <= status < 400
    raise _Rejected(f"it answers {status}" + (", a redirect that would lose the message" if redirects else ""))


def _redirected(url: str, target: str) -> str:
    """The URL that a redirect leads to, which must not be less encrypted than `url`."""
    redirected = urljoin(url, target)
    if not target or not _is_http_url(redirected):
        raise _Rejected("it redirects to what is not an http:// or https:// URL")
    if urlsplit(url).scheme == "https" and urlsplit(redirected).scheme != "https":
        raise _Rejected("it redirects from https to http")
    return redirected


def _words_of(name: str) -> str:
    """ "ConnectTimeout" as "connect timeout"."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()
