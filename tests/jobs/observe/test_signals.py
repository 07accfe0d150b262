"""Stop requests by signals and from other threads: graceful while shards are in flight, else at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable

import pytest

from persres.jobs.observe.signals import StopRequest, stop_on_signals


@pytest.fixture(autouse=True)
def sigint_enabled():
    """pytest in the background ignores SIGINT; these tests must not."""
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in previous.items():
        signal.signal(number, handler)


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_first_signal_sets_the_request_and_second_interrupts(number, exit_code):
    with stop_on_signals() as stop, stop.graceful():
        assert not stop
        send(number)
        assert stop and stop.exit_code == exit_code
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGTERM)
    assert stop.exit_code == exit_code, "the first one decides"


def test_first_signal_outside_graceful_interrupts():
    with stop_on_signals() as stop, pytest.raises(KeyboardInterrupt):
        send(signal.SIGTERM)
    assert stop.exit_code == 143
    with stop_on_signals() as stop:
        with stop.graceful():
            pass
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_handlers_of_a_library_are_replaced_and_restored():
    with stop_on_signals() as stop:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as ray.init does
        with stop.graceful():
            send(signal.SIGTERM)
        assert stop and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_ignored_sigint_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with stop_on_signals() as stop, stop.graceful():
        send(signal.SIGINT)
        assert not stop
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_handlers_are_not_installed_outside_the_main_thread():
    seen: list[StopRequest] = []

    def work() -> None:
        with stop_on_signals() as stop, stop.graceful():
            seen.append(stop)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(seen) == 1 and not seen[0]


def test_set_from_another_thread_acts_as_a_first_signal():
    with stop_on_signals() as stop:
        with stop.graceful():
            thread = threading.Thread(target=stop.set)
            thread.start()
            thread.join()
            wait_until(lambda: bool(stop))
            assert stop.exit_code == 143
            stop.set()  # has no effect, unlike a second signal
        assert stop.received is signal.SIGTERM


def test_set_outside_graceful_interrupts_a_sleeping_main_thread():
    with stop_on_signals() as stop, pytest.raises(KeyboardInterrupt):
        threading.Timer(0.05, stop.set).start()
        time.sleep(30)


def test_set_without_handlers_only_sets_the_request():
    stop = StopRequest()
    stop.set()
    assert stop and stop.exit_code == 143


def wait_until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.01)
