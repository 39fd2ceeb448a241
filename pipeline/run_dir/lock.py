"""One process works on a run directory at a time; the kernel releases its lock when it dies."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from typing import Any, TextIO

from koe.dataflow import LOCK
from koe.errors import ConfigError, StorageError
from pipeline.run_dir.storage import Storage


@contextmanager
def run_lock(storage: Storage) -> Iterator[None]:
    """Lock the run directory for the duration of a run.

    Two runs at once would do every unit twice, and delete each other's unfinished files. On an
    object store, and on a network file system without locks, nothing is locked.
    Raises: ConfigError naming who holds it, StorageError where the folder cannot be created or written to.
    """
    if not storage.is_local:
        yield
        return
    with ExitStack() as held:
        try:
            path = storage.local_path(LOCK)
            path.parent.mkdir(parents=True, exist_ok=True)
            _take(held.enter_context(path.open("a+", encoding="utf-8")), storage.root)
        except OSError as error:
            raise StorageError(
                f"{storage.root} cannot be used as the run directory",
                error.strerror or str(error),
                "Set run_dir to a folder that can be created and written to, or restore access to it.",
            ) from error
        yield


def _take(file: TextIO, root: str) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        raise ConfigError(
            f"{root} is in use",
            _describe(file.read()),
            "Wait until it is done (`koe status --watch`), or stop it.",
        ) from error
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL):
            raise
    file.truncate(0)
    file.write(json.dumps(_myself()))
    file.flush()


def _myself() -> dict[str, Any]:
    return {
        "process": os.getpid(),
        "machine": platform.node(),
        "command": " ".join(["koe", *sys.argv[1:]]),
        "since": datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def _describe(text: str) -> str:
    try:
        holder = json.loads(text)
    except json.JSONDecodeError:  # the holder has not written its name yet
        return "another process has just begun to work on it"
    return (
        f"`{holder['command']}`, process {holder['process']} on {holder['machine']}, has been using "
        f"it since {holder['since']}"
    )
