"""Ctrl-C during a run: once to stop after the units in flight, twice to stop at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pipeline.execution.runner import Stop


@contextmanager
def interruptible(say: Callable[[str], None]) -> Iterator[Stop]:
    """Turn the first SIGINT into a request to stop, which engines check between units.

    `say` is called at once, whatever the main thread is doing. The second SIGINT raises
    KeyboardInterrupt, a third ends the process. Outside the main thread nothing changes.
    """
    stop, pressed = Stop(), threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def press(signum: int, frame: object) -> None:
        if stop.requested:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            raise KeyboardInterrupt
        stop.requested = True
        pressed.set()

    def announce() -> None:
        pressed.wait()
        if stop.requested:
            say(f"{_in_flight(stop.in_flight)}; press Ctrl-C again to stop now")

    # A handler runs between any two instructions, when the console may be in the middle of a
    # write: therefore another thread prints the message.
    announcer = threading.Thread(target=announce, daemon=True)
    announcer.start()
    before = signal.signal(signal.SIGINT, press)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
        pressed.set()
        announcer.join()


def _in_flight(units: int) -> str:
    if not units:
        return "stopping, no unit is in flight"
    return f"finishing {units} unit{'s' * (units != 1)} in flight"
