"""One process works on a folder at a time: by flock on a disk, by a heartbeat on an object store."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from io import FileIO
from pathlib import Path
from typing import Any

from koe.cells import Cell
from koe.errors import ConfigError, StorageError
from koe.secrets import scrub
from koe.shared_lock import Held, Pace, describe, take
from koe.store_errors import storage_errors


@contextmanager
def local_lock(path: Path, folder: str, role: str, remedy: str) -> Iterator[None]:
    """Hold a lock of the kernel's, which releases it when the process dies.

    `folder` is named in messages, with its role (`the run directory`) and what to do where it cannot
    have that. A network file system without locks is not locked.
    Raises: ConfigError naming who holds it, StorageError where it cannot be created or written to.
    """
    with ExitStack() as held:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # without a buffer, which would fail once more when it is closed, on a full disk
            _take(held.enter_context(path.open("a+b", buffering=0)), folder)
        except (FileExistsError, NotADirectoryError) as error:
            raise ConfigError(
                f"{folder} cannot be {role}", f"{_file_in(path)} is a file", f"{remedy}."
            ) from error
        except OSError as error:
            raise StorageError(
                f"{folder} cannot be used as {role}",
                error.strerror or str(error),
                f"{remedy} that can be created and written to, or restore access to it.",
            ) from error
        yield


@contextmanager
def shared_lock(cell: Cell, folder: str, say: Callable[[str], None], pace: Pace) -> Iterator[Held]:
    """Hold the lock in a cell of an object store, and keep it alive.

    A store without conditional writes keeps two processes apart unless they begin at the same moment,
    which is said. Raises: ConfigError naming who holds it, StorageError.
    """
    held = take(cell, folder, _myself(), pace)
    try:
        if not held.is_atomic:
            say(
                f"note: {folder} has no conditional writes: two runs that begin at the same "
                "moment are not kept apart"
            )
        yield held
    finally:
        _release(held, folder, say)


def _release(held: Held, folder: str, say: Callable[[str], None]) -> None:
    try:
        with storage_errors(f"the lock of {folder} could not be released"):
            held.release()
    except StorageError as error:  # the run is over, and its work is stored
        say(
            f"note: {error.what} because {error.why}: it is free {held.pace.stale:g} seconds from now"
        )


def _file_in(path: Path) -> Path:
    """Return the first part of a path that is there and is no folder."""
    return next(part for part in (*reversed(path.parents), path) if not part.is_dir())


def _take(file: FileIO, folder: str) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        raise ConfigError(
            f"{folder} is in use",
            _describe(file.read().decode(errors="replace")),
            "Wait until it is done (`koe status --watch`), or stop it.",
        ) from error
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL):
            raise
    file.truncate(0)
    file.write(json.dumps(_myself()).encode())


def _myself() -> dict[str, Any]:
    program = Path(sys.argv[0])
    name = f"python -m {program.parent.name}" if program.name == "__main__.py" else "koe"
    return {
        "process": os.getpid(),
        "machine": platform.node(),
        "command": scrub(" ".join([name, *sys.argv[1:]])),
        "since": datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def _describe(text: str) -> str:
    try:
        return describe(json.loads(text))
    except json.JSONDecodeError:  # the holder has not written its name yet
        return describe({})
