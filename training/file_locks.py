"""Locks between the processes of a machine: the kernel releases those of a process that dies."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

SHARED, EXCLUSIVE = fcntl.LOCK_SH, fcntl.LOCK_EX
AT_ONCE = fcntl.LOCK_NB  # added to one of them: give up where it would have to wait


def lock(path: Path, how: int) -> BinaryIO | None:
    """Lock a file, which is made, and may be deleted meanwhile; closing what is returned unlocks it.

    None where that would have to wait and must not.
    """
    while True:
        file = path.open("ab")
        try:
            fcntl.flock(file, how)
            if os.fstat(file.fileno()).st_ino == path.stat().st_ino:
                return file
        except BlockingIOError:
            file.close()
            return None
        except FileNotFoundError:
            pass
        except BaseException:
            file.close()
            raise
        file.close()


@contextmanager
def locked(path: Path, how: int) -> Iterator[bool]:
    """Hold a lock; yields False where that would have to wait and must not."""
    file = lock(path, how)
    try:
        yield file is not None
    finally:
        if file:
            file.close()
