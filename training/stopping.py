"""What asks a training to end before its last step, and how a process hears of it.

A signal, or the end of `train.max_hours`, is only a request: each step ends with a look at it, which
all ranks take together, and then a checkpoint is written. The second SIGTERM or Ctrl-C ends the
process at once, even where its main thread waits for a rank that will never answer.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import IntEnum
from typing import NoReturn

# Programs that pass signals on (torchrun, timeout, srun) make two of one that reaches all processes.
_SAME_SIGNAL_SECONDS = 1.0
_LET_GO_SECONDS = 5.0  # at most, from the second signal to the end
# "Temporary failure; the user is invited to retry" (sysexits.h): the code of "not done, go on".
UNFINISHED = 75


class Why(IntEnum):
    """What was asked for; of several requests, and of several ranks, the largest counts."""

    GO_ON = 0
    TIME = 1
    NOTICE = 2
    HANGUP = 3
    INTERRUPT = 4
    TERMINATE = 5

    @property
    def exit_code(self) -> int:
        """The code to end with: 128 and the signal's number, but UNFINISHED where it was planned."""
        return _EXIT_CODES[self]

    @property
    def reason(self) -> str:
        """Why the training ends, as a clause."""
        return _REASONS[self]


_EXIT_CODES = {
    Why.GO_ON: 0,
    Why.TIME: UNFINISHED,
    Why.NOTICE: UNFINISHED,
    Why.HANGUP: 128 + signal.SIGHUP,
    Why.INTERRUPT: 128 + signal.SIGINT,
    Why.TERMINATE: 128 + signal.SIGTERM,
}
_REASONS = {
    Why.GO_ON: "nothing asked for it",
    Why.TIME: "train.max_hours have passed",
    Why.NOTICE: "SIGUSR1 announced the end of its time",
    Why.HANGUP: "its terminal was closed (SIGHUP)",
    Why.INTERRUPT: "Ctrl-C was pressed (SIGINT)",
    Why.TERMINATE: "it was told to end (SIGTERM)",
}
_SIGNALS = {
    signal.SIGUSR1: Why.NOTICE,
    signal.SIGHUP: Why.HANGUP,
    signal.SIGINT: Why.INTERRUPT,
    signal.SIGTERM: Why.TERMINATE,
}
_AT_ONCE = (signal.SIGINT, signal.SIGTERM)  # what ends the process when it comes again


class Request:
    """What a training was asked for so far; may be asked and read in any thread."""

    def __init__(self) -> None:
        self._why = Why.GO_ON

    def ask(self, why: Why) -> bool:
        """Add a request; return whether it changes anything."""
        changes = why > self._why
        self._why = max(why, self._why)
        return changes

    def read(self) -> Why:
        return self._why


def never() -> Why:
    """Answer for a process that nothing asks to stop."""
    return Why.GO_ON


@contextmanager
def listening(
    max_hours: float | None,
    hear: Callable[[Why], None] = lambda why: None,
    say: Callable[[str], None] = lambda text: None,
    let_go: Callable[[], None] = lambda: None,
) -> Iterator[Callable[[], Why]]:
    """Take signals, and the end of `max_hours` from now, for requests, which the yielded function tells.

    `hear` is called with each new request, `say` with what a person should know of it, and `let_go`
    before the process ends at once, all of them in a thread. Signals that this process was started to ignore stay ignored, and outside the main thread
    no signal is heard: then only the hours count.
    """
    request = Request()
    ears, mouth = socket.socketpair()
    mouth.setblocking(False)
    listener = threading.Thread(
        target=_listen, args=(ears, request, max_hours, hear, say, let_go), daemon=True
    )
    listener.start()
    try:
        with _caught(mouth):
            yield request.read
    finally:
        mouth.close()  # which ends the thread
        listener.join()
        ears.close()


@contextmanager
def _caught(mouth: socket.socket) -> Iterator[None]:
    """Write the number of each signal to a socket, at once, whatever the main thread is doing.

    Python calls a handler only when the main thread gets to it, but writes to this socket before
    (https://docs.python.org/3/library/signal.html#signal.set_wakeup_fd).
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    written_before = signal.set_wakeup_fd(mouth.fileno(), warn_on_full_buffer=False)
    before = {number: signal.signal(number, lambda *_: None) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            # None: a handler that is not Python's, which cannot be given back
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        signal.set_wakeup_fd(written_before)


def _listen(
    ears: socket.socket,
    request: Request,
    max_hours: float | None,
    hear: Callable[[Why], None],
    say: Callable[[str], None],
    let_go: Callable[[], None],
) -> None:
    """Turn what comes out of the socket into requests, until its other end is closed."""
    until = None if max_hours is None else time.monotonic() + 3600 * max_hours
    urgent: float | None = None  # when SIGINT or SIGTERM first came
    while True:
        left = None if until is None else max(0.0, until - time.monotonic())
        if not select.select([ears], [], [], left)[0]:
            until = None
            _take(Why.TIME, request, hear, say)
            continue
        data = ears.recv(1)
        if not data:
            return
        number, now = data[0], time.monotonic()
        if number in _AT_ONCE:
            if urgent is not None and now - urgent > _SAME_SIGNAL_SECONDS:
                _end_at_once(number, say, let_go)
            urgent = urgent or now
        if number in _SIGNALS:
            _take(_SIGNALS[signal.Signals(number)], request, hear, say)


def _take(
    why: Why, request: Request, hear: Callable[[Why], None], say: Callable[[str], None]
) -> None:
    if not request.ask(why):
        return
    tell = (
        f"stopping after the step in progress because {why.reason}; Ctrl-C or SIGTERM once more "
        "ends it at once"
    )
    # Whatever fails, as a console that is gone, the next signal must be heard.
    with suppress(Exception):
        hear(why)
    with suppress(Exception):
        say(tell)


def _end_at_once(number: int, say: Callable[[str], None], let_go: Callable[[], None]) -> NoReturn:
    def end() -> NoReturn:
        os._exit(128 + number)

    threading.Timer(_LET_GO_SECONDS, end).start()
    with suppress(Exception):
        say(f"ended at once by {signal.Signals(number).name}; the last checkpoint is whole")
    with suppress(Exception):
        let_go()
    end()
