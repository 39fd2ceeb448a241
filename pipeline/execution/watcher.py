"""Says on stderr why a run of the plain engine ended: the process itself can no longer.

faulthandler ends a process at a deadline without the interpreter, since a library may hold its
lock. So this small process waits until the other one is gone, and reads what it left.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def watched(words: Path) -> Iterator[None]:
    """Have the words of this process read out if it misses a deadline before the block ends."""
    watcher = subprocess.Popen(
        [sys.executable, "-m", "pipeline.execution.watcher", str(words)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is not for it
    )
    try:
        yield
    finally:
        watcher.kill()
        watcher.communicate()


def main() -> None:
    from pipeline.execution.last_words import DEADLINE, read_left

    sys.stdin.buffer.read()  # until the other process ends
    left = read_left(Path(sys.argv[1]))
    if left.doing is not None and DEADLINE in left.how:
        where = f"{left.doing.stage} {left.doing.unit}"
        sys.stderr.write(
            f"{left.traceback}\nkoe: {where} {left.how}, and the run ended because of it. Run the "
            "same command again: this attempt is counted, and the unit is done last.\n"
        )


if __name__ == "__main__":
    main()
