"""One unit, or a part of one, in a process of its own, so that only this process dies of it."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from koe.errors import StageError
from pipeline.execution.attempts import GRACE_SECONDS
from pipeline.execution.last_words import Doing, LastWords, Left, doing, how_it_exited, read_left
from pipeline.execution.runner import Superseded, UnitResult, Work

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Died:
    """The process died: what it left, and how it ended."""

    left: Left
    how: str


def run_isolated(work: Work, unit: str, what: Doing) -> UnitResult | Died:
    """Take a unit through the work in a new process."""
    return in_new_process(_unit, work.root, what, work, unit)


def in_new_process(function: Callable[..., Any], root: str, what: Doing, *args: Any) -> Any | Died:
    """Call a function of a module in a new process; return its result, or how the process died.

    The deadline of `what` ends it. Ctrl-C leaves it alone, as it does the workers of Ray; when this
    process ends, it ends too.
    Raises: StageError where it ends before it has begun, which no unit is to blame for.
    """
    context = multiprocessing.get_context("spawn")  # a fork would inherit locks that threads hold
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(
        target=_call, args=(theirs, os.getpid(), root, what, function, args), daemon=True
    )
    words, result = None, None
    try:
        process.start()
        theirs.close()
        with contextlib.suppress(EOFError):  # it died: its exit code says more
            words = ours.recv()
            if what.deadline is None or ours.poll(what.deadline + GRACE_SECONDS):
                result = ours.recv()
            else:
                process.kill()
        process.join()
    finally:
        if process.is_alive():
            process.kill()
            process.join()
        ours.close()
    if result is not None:
        if isinstance(result, BaseException):
            raise result
        return result[0]
    if words is None:
        raise StageError(
            "a process cannot be started",
            f"it ended before it began {what.stage} {what.unit}: {how_it_exited(process.exitcode or 0)}",
            "What it printed stands above. Free memory and disk, then run the same command again: it resumes.",
        )
    left = read_left(Path(words))
    for path in (Path(words), Path(words).with_suffix(".text")):
        path.unlink(missing_ok=True)
    return Died(left, left.how or how_it_exited(process.exitcode or 0))


def _call(
    connection: Connection,
    parent: int,
    root: str,
    what: Doing,
    function: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _end_with(parent)
    words = LastWords(root, catches=True)
    connection.send(str(words.path))
    try:
        with doing(words, what):
            result = (function(*args),)
    except Exception as error:  # raised again in the parent
        result = error
    words.close()
    connection.send(result)


def _end_with(parent: int) -> None:
    """End this process when its parent does, however that ends; the kernel prefers it when short of memory."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        with contextlib.suppress(OSError):  # not every container has it
            Path("/proc/self/oom_score_adj").write_text("1000")
    if os.getppid() != parent:  # it ended before this was asked for
        os._exit(1)


def _unit(work: Work, unit: str) -> UnitResult:
    parent = os.getppid()

    def confirm() -> None:
        if os.getppid() != parent:
            raise Superseded(f"the run that began {unit} has ended")

    return work.open()(unit, confirm)
