"""The command line. Exit codes: 0 done, 1 failed but resumable, 2 wrong use or config, 130 stopped,
75, 129 or 143 a training that was told to stop.

This module imports next to nothing, so that Ctrl-C is heard while the commands are being imported.
"""

from __future__ import annotations

import os
import signal
from types import FrameType


def main() -> None:
    """Run `koe`: the entry point of the command."""
    # where a shell has had SIGINT ignored, or a caller handles it, that stays
    hears_interrupts = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if hears_interrupts:
        signal.signal(signal.SIGINT, _leave)
    from pipeline.cli.app import run_app

    if hears_interrupts:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run_app()


def _leave(signum: int, frame: FrameType | None) -> None:
    """End without a traceback: nothing has begun, and an exception could be lost in an import."""
    os.write(2, b"koe: interrupted.\n")
    os._exit(130)
