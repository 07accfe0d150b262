"""Messages over real connections: what is retried, what is not, and that the URL stays secret."""

from __future__ import annotations

import socket

import pytest

from persres.core.errors import InvalidInput
from persres.jobs.observe.webhook import MAX_ATTEMPTS, Webhook, find_webhook

from ...support.webhook_receiver import webhook_receiver

MESSAGE = {"text": "done", "run_id": "20261123T030000Z-3fa9c1"}


def quick(url: str, **changes) -> Webhook:
    return Webhook(url, **{"timeout_s": 0.4, "max_pause_s": 0.01, **changes})


def test_message_arrives_as_json():
    with webhook_receiver() as receiver:
        assert quick(receiver.url).notify("ended", MESSAGE) is None
        assert receiver.messages == [MESSAGE]


def test_states_that_are_not_listed_are_not_sent():
    with webhook_receiver() as receiver:
        assert quick(receiver.url).notify("idle", MESSAGE) is None
        assert quick(receiver.url, states=frozenset({"failed"})).notify("ended", MESSAGE) is None
        assert receiver.requests == []
        assert quick(receiver.url, states=frozenset({"idle"})).notify("idle", MESSAGE) is None
        assert receiver.messages == [MESSAGE]


@pytest.mark.parametrize("answers", [[500, 503], [429], [1.0], [502, 1.0]])
def test_transient_failures_are_retried(answers):
    with webhook_receiver(answers) as receiver:
        assert quick(receiver.url).notify("ended", MESSAGE) is None
        assert receiver.messages == [MESSAGE]
        assert len(receiver.requests) == len(answers) + 1


@pytest.mark.parametrize("answer", [400, 403, 404, 410])
def test_rejection_is_not_retried(answer):
    with webhook_receiver([answer]) as receiver:
        warning = quick(receiver.url).notify("ended", MESSAGE)
        assert warning == f"the webhook at 127.0.0.1 was not notified: it answers {answer}"
        assert len(receiver.requests) == 1


def test_server_that_stays_broken_is_retried_a_few_times():
    with webhook_receiver([500] * 10) as receiver:
        warning = quick(receiver.url).notify("ended", MESSAGE)
        assert warning and "it answers 500" in warning and "hunter2" not in warning
        assert len(receiver.requests) == MAX_ATTEMPTS


def test_refused_connection_is_a_warning_without_the_url():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and never listens
        warning = quick(f"http://127.0.0.1:{taken.getsockname()[1]}/services/hunter2").notify("ended", MESSAGE)
    assert warning == "the webhook at 127.0.0.1 was not notified: connection error"


def test_unknown_host_is_a_warning_without_the_url():
    warning = quick("https://no-such-host.invalid/hunter2").notify("failed", MESSAGE)
    assert warning and "no-such-host.invalid" in warning and "hunter2" not in warning


def test_redirect_that_keeps_the_message_is_followed():
    with webhook_receiver() as target, webhook_receiver() as receiver:
        receiver.responses = [(307, target.url), (308, "/elsewhere"), 200]
        assert quick(receiver.url).notify("ended", MESSAGE) is None
        assert target.messages == [MESSAGE] and receiver.messages == []
        assert quick(receiver.url).notify("ended", MESSAGE) is None
        assert receiver.messages == [MESSAGE]
        assert receiver.requests[-1] == ("POST", "/elsewhere")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ((302, "/elsewhere"), "would lose the message"),
        ((303, "http://127.0.0.1:1/"), "would lose the message"),
        ((307, "file:///etc/passwd"), "not an http:// or https://"),
        ((307, "gopher://127.0.0.1/"), "not an http:// or https://"),
        ((307, ""), "not an http:// or https://"),
    ],
)
def test_other_redirects_are_not_followed(answer, reason):
    with webhook_receiver([answer]) as receiver:
        warning = quick(receiver.url).notify("ended", MESSAGE)
        assert warning and reason in warning and "hunter2" not in warning
        assert receiver.requests == [("POST", "/services/hunter2")]


def test_redirects_are_followed_a_few_times():
    with webhook_receiver([(307, "/round")] * 10) as receiver:
        warning = quick(receiver.url).notify("ended", MESSAGE)
        assert warning and "redirects more than" in warning
        assert len(receiver.requests) == 4


@pytest.mark.parametrize(
    "url", ["", " ", "hunter2", "ftp://host/hunter2", "file:///hunter2", "https://", "http://host:x/", "http://a/\nb"]
)
def test_invalid_url_is_rejected_without_showing_it(url):
    with pytest.raises(InvalidInput) as refused:
        Webhook(url)
    assert "hunter2" not in str(refused.value) and "PERSRES_WEBHOOK" in str(refused.value)


def test_repr_does_not_contain_the_url():
    assert "hunter2" not in repr(Webhook("https://hooks.example.com/services/hunter2"))


def test_option_overrides_the_environment():
    environment = {"PERSRES_WEBHOOK": "https://one.example.com/", "PERSRES_WEBHOOK_ON": "failed, held"}
    assert find_webhook(None, environment={}) is None
    assert find_webhook(None, environment={"PERSRES_WEBHOOK": ""}) is None
    found = find_webhook(None, environment=environment)
    assert found and (found.host, found.states) == ("one.example.com", {"failed", "held"})
    found = find_webhook("https://two.example.com/", environment=environment)
    assert found and found.host == "two.example.com"
    with pytest.raises(InvalidInput, match="PERSRES_WEBHOOK_ON names broken"):
        find_webhook(None, environment=environment | {"PERSRES_WEBHOOK_ON": "broken"})


def test_option_is_rejected_for_a_job_of_a_cluster():
    with pytest.raises(InvalidInput, match="cannot be used for a cluster's job") as refused:
        find_webhook("https://hooks.example.com/hunter2", on_cluster=True, environment={})
    assert "hunter2" not in str(refused.value)
    assert find_webhook(None, on_cluster=True, environment={"PERSRES_WEBHOOK": "https://hooks.example.com/"})
