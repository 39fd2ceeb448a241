"""One process works on a run directory at a time; the kernel frees it when that process dies."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from pipeline.errors import ConfigError
from pipeline.storage import Storage

LOCK = "run.lock"


@contextmanager
def only_one(storage: Storage) -> Iterator[None]:
    """Hold the run directory for the time of a run.

    Two runs at once would do every unit twice, and sweep each other's unfinished files away. On an
    object store, and on a network file system that knows no locks, nothing is held.
    Raises: ConfigError naming who holds it.
    """
    if not storage.is_local:
        yield
        return
    path = storage.local_path(LOCK)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise ConfigError(
                f"{storage.root} is in use",
                _describe(file.read()),
                "Wait until it is done (`koe status --watch`), or stop it.",
            ) from error
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL):
                raise
        file.truncate(0)
        file.write(json.dumps(_myself()))
        file.flush()
        yield


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
    except json.JSONDecodeError:  # it has the lock and has not written its name yet
        return "another process has just begun to work on it"
    return (
        f"`{holder['command']}`, process {holder['process']} on {holder['machine']}, works on it "
        f"since {holder['since']}"
    )
