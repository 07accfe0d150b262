"""Signals: orderly while something is in flight, at once everywhere else and the second time."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable

import pytest

from persres.jobs.observe.signals import StopRequest, heeding_signals


@pytest.fixture(autouse=True)
def heard():
    """A test run in the background ignores Ctrl-C; these tests must not."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_is_noted_and_the_second_ends_it(number, exit_code):
    with heeding_signals() as stop, stop.orderly():
        assert not stop
        send(number)
        assert stop and stop.exit_code == exit_code
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGTERM)
    assert stop.exit_code == exit_code, "the first one tells why"


def test_where_nothing_is_in_flight_the_first_signal_ends_it():
    with heeding_signals() as stop, pytest.raises(KeyboardInterrupt):
        send(signal.SIGTERM)
    assert stop.exit_code == 143
    with heeding_signals() as stop:
        with stop.orderly():
            pass
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_handlers_that_a_library_put_in_place_are_replaced_and_put_back():
    with heeding_signals() as stop:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as ray.init does
        with stop.orderly():
            send(signal.SIGTERM)
        assert stop and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_process_that_ignores_ctrl_c_goes_on_doing_so():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with heeding_signals() as stop, stop.orderly():
        send(signal.SIGINT)
        assert not stop
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_in_another_thread_there_are_no_signals():
    seen: list[StopRequest] = []

    def work() -> None:
        with heeding_signals() as stop, stop.orderly():
            seen.append(stop)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(seen) == 1 and not seen[0]


def test_asked_from_another_thread_it_is_as_if_a_signal_had_come():
    with heeding_signals() as stop:
        with stop.orderly():
            asking = threading.Thread(target=stop.ask)
            asking.start()
            asking.join()
            wait_until(lambda: bool(stop))
            assert stop.exit_code == 143
            stop.ask()  # once is enough, and the second is not taken for impatience
        assert stop.received is signal.SIGTERM


def test_asked_where_nothing_is_in_flight_it_wakes_and_ends_the_main_thread():
    with heeding_signals() as stop, pytest.raises(KeyboardInterrupt):
        threading.Timer(0.05, stop.ask).start()
        time.sleep(30)


def test_asked_where_no_signal_is_heeded_it_is_only_noted():
    stop = StopRequest()
    stop.ask()
    assert stop and stop.exit_code == 143


def wait_until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.01)
