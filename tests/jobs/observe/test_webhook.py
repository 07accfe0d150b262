"""Messages over real connections: what is tried again, what is not, and that the address stays a secret."""

from __future__ import annotations

import socket

import pytest

from persres.core.errors import InvalidInput
from persres.jobs.observe.webhook import TRIES, Webhook, webhook_of

from ...support.web_receiver import web_receiver

MESSAGE = {"text": "done", "run_id": "20261123T030000Z-3fa9c1"}


def quick(url: str, **changes) -> Webhook:
    return Webhook(url, **{"timeout_s": 0.4, "longest_pause_s": 0.01, **changes})


def test_a_message_arrives_as_json():
    with web_receiver() as receiver:
        assert quick(receiver.url).tell("ended", MESSAGE) is None
        assert receiver.messages == [MESSAGE]


def test_states_that_nobody_wants_to_hear_of_are_not_told():
    with web_receiver() as receiver:
        assert quick(receiver.url).tell("nothing", MESSAGE) is None
        assert quick(receiver.url, states=frozenset({"failed"})).tell("ended", MESSAGE) is None
        assert receiver.requests == []
        assert quick(receiver.url, states=frozenset({"nothing"})).tell("nothing", MESSAGE) is None
        assert receiver.messages == [MESSAGE]


@pytest.mark.parametrize("answers", [[500, 503], [429], [1.0], [502, 1.0]])
def test_what_fails_in_passing_is_tried_again(answers):
    with web_receiver(answers) as receiver:
        assert quick(receiver.url).tell("ended", MESSAGE) is None
        assert receiver.messages == [MESSAGE]
        assert len(receiver.requests) == len(answers) + 1


@pytest.mark.parametrize("answer", [400, 403, 404, 410])
def test_a_no_is_not_asked_again(answer):
    with web_receiver([answer]) as receiver:
        warning = quick(receiver.url).tell("ended", MESSAGE)
        assert warning == f"the webhook at 127.0.0.1 was not told: it answers {answer}"
        assert len(receiver.requests) == 1


def test_a_server_that_stays_broken_is_given_up():
    with web_receiver([500] * 10) as receiver:
        warning = quick(receiver.url).tell("ended", MESSAGE)
        assert warning and "it answers 500" in warning and "hunter2" not in warning
        assert len(receiver.requests) == TRIES


def test_nobody_there_is_a_warning_without_the_address():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and never listens
        warning = quick(f"http://127.0.0.1:{taken.getsockname()[1]}/services/hunter2").tell("ended", MESSAGE)
    assert warning == "the webhook at 127.0.0.1 was not told: connection error"


def test_a_name_that_there_is_not_is_a_warning_too():
    warning = quick("https://no-such-host.invalid/hunter2").tell("failed", MESSAGE)
    assert warning and "no-such-host.invalid" in warning and "hunter2" not in warning


def test_a_redirect_that_keeps_the_message_is_followed():
    with web_receiver() as target, web_receiver() as receiver:
        receiver.answers = [(307, target.url), (308, "/elsewhere"), 200]
        assert quick(receiver.url).tell("ended", MESSAGE) is None
        assert target.messages == [MESSAGE] and receiver.messages == []
        assert quick(receiver.url).tell("ended", MESSAGE) is None
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
def test_other_redirects_are_not(answer, reason):
    with web_receiver([answer]) as receiver:
        warning = quick(receiver.url).tell("ended", MESSAGE)
        assert warning and reason in warning and "hunter2" not in warning
        assert receiver.requests == [("POST", "/services/hunter2")]


def test_redirects_without_end_end():
    with web_receiver([(307, "/round")] * 10) as receiver:
        warning = quick(receiver.url).tell("ended", MESSAGE)
        assert warning and "redirects more than" in warning
        assert len(receiver.requests) == 4


@pytest.mark.parametrize(
    "url", ["", " ", "hunter2", "ftp://host/hunter2", "file:///hunter2", "https://", "http://host:x/", "http://a/\nb"]
)
def test_an_address_that_is_none_is_refused_unseen(url):
    with pytest.raises(InvalidInput) as refused:
        Webhook(url)
    assert "hunter2" not in str(refused.value) and "PERSRES_WEBHOOK" in str(refused.value)


def test_nothing_prints_the_address():
    assert "hunter2" not in repr(Webhook("https://hooks.example.com/services/hunter2"))


def test_the_environment_names_it_and_the_option_goes_before():
    environment = {"PERSRES_WEBHOOK": "https://one.example.com/", "PERSRES_WEBHOOK_ON": "failed, held"}
    assert webhook_of(None, environment={}) is None
    assert webhook_of(None, environment={"PERSRES_WEBHOOK": ""}) is None
    found = webhook_of(None, environment=environment)
    assert found and (found.host, found.states) == ("one.example.com", {"failed", "held"})
    found = webhook_of("https://two.example.com/", environment=environment)
    assert found and found.host == "two.example.com"
    with pytest.raises(InvalidInput, match="PERSRES_WEBHOOK_ON names broken"):
        webhook_of(None, environment=environment | {"PERSRES_WEBHOOK_ON": "broken"})


def test_an_address_does_not_go_to_a_cluster_where_everybody_could_read_it():
    with pytest.raises(InvalidInput, match="does not travel") as refused:
        webhook_of("https://hooks.example.com/hunter2", on_cluster=True, environment={})
    assert "hunter2" not in str(refused.value)
    assert webhook_of(None, on_cluster=True, environment={"PERSRES_WEBHOOK": "https://hooks.example.com/"})
