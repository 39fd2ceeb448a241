import os
import signal
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.training.started import no_signal_ignored, until
from training.stopping import UNFINISHED, Why, listening

__all__ = ["no_signal_ignored"]
pytestmark = pytest.mark.usefixtures("no_signal_ignored")

WHY = {
    signal.SIGUSR1: Why.NOTICE,
    signal.SIGHUP: Why.HANGUP,
    signal.SIGINT: Why.INTERRUPT,
    signal.SIGTERM: Why.TERMINATE,
}


@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # it holds for all examples
)
@given(st.lists(st.sampled_from(list(WHY)), min_size=1, max_size=6))
def test_the_hardest_of_the_signals_that_come_together_counts(numbers):
    heard, said = [], []
    before = {number: signal.getsignal(number) for number in WHY}
    with listening(None, heard.append, said.append) as asked:
        assert asked() is Why.GO_ON
        for number in numbers:
            signal.raise_signal(number)
        hardest = max(WHY[number] for number in numbers)
        until(lambda: asked() is hardest)
    assert heard == sorted(set(heard)), "each request is passed on once, and only harder ones"
    assert heard[-1] is hardest
    assert len(said) == len(heard)
    assert {number: signal.getsignal(number) for number in WHY} == before
    assert signal.set_wakeup_fd(-1) == -1


def test_every_reason_has_its_exit_code():
    codes = {why: why.exit_code for why in Why}
    assert codes == {
        Why.GO_ON: 0,
        Why.TIME: 75,
        Why.NOTICE: 75,
        Why.HANGUP: 129,
        Why.INTERRUPT: 130,
        Why.TERMINATE: 143,
    }
    assert os.EX_TEMPFAIL == UNFINISHED
    assert len({why.reason for why in Why}) == len(Why)


def test_a_signal_that_the_process_was_started_to_ignore_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with listening(None) as asked:
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGUSR1)
            until(lambda: asked() is not Why.GO_ON)
            assert asked() is Why.NOTICE
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("in_main_thread", [True, False])
def test_the_hours_count_in_any_thread_and_signals_in_the_main_one(in_main_thread):
    before = signal.getsignal(signal.SIGTERM)
    found = []

    def listen():
        with listening(1e-7) as asked:
            until(lambda: asked() is Why.TIME)
            found.append(signal.getsignal(signal.SIGTERM) == before)

    if in_main_thread:
        listen()
    else:
        thread = threading.Thread(target=listen)
        thread.start()
        thread.join()
    assert found == [not in_main_thread]


def test_a_console_that_is_gone_does_not_keep_a_signal_from_being_heard():
    def gone(text):
        raise OSError(5, "Input/output error")

    with listening(None, say=gone) as asked:
        signal.raise_signal(signal.SIGHUP)
        until(lambda: asked() is Why.HANGUP)
        signal.raise_signal(signal.SIGTERM)
        until(lambda: asked() is Why.TERMINATE)
