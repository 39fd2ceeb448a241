"""One run works on a run directory at a time: by flock on a disk, by a heartbeat on an object store."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import datetime
from io import FileIO
from pathlib import Path
from typing import Any

from koe.dataflow import LOCK
from koe.errors import ConfigError, StorageError
from koe.secrets import scrub
from koe.store_errors import storage_errors
from pipeline.run_dir.shared_lock import PACE, Held, Lease, describe, take
from pipeline.run_dir.storage import Storage


@contextmanager
def run_lock(storage: Storage, say: Callable[[str], None] = lambda _: None) -> Iterator[Storage]:
    """Lock the run directory for the duration of a run; yield the storage to write to it.

    Two runs at once would do every unit twice, and delete each other's unfinished files. A network
    file system without locks is not locked; a store without conditional writes keeps two runs apart
    unless they begin at the same moment, which is said. The storage refuses to write once the lock is lost.
    Raises: ConfigError naming who holds it, StorageError where the folder cannot be created or written to.
    """
    lock = _local_lock if storage.is_local else _shared_lock
    with lock(storage, say) as locked:
        yield locked


@contextmanager
def _local_lock(storage: Storage, say: Callable[[str], None]) -> Iterator[Storage]:
    """Hold a lock of the kernel's, which releases it when the process dies."""
    del say
    path = storage.local_path(LOCK)
    with ExitStack() as held:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # without a buffer, which would fail once more when it is closed, on a full disk
            _take(held.enter_context(path.open("a+b", buffering=0)), storage.root)
        except (FileExistsError, NotADirectoryError) as error:
            raise ConfigError(
                f"{storage.root} cannot be the run directory",
                f"{_file_in(path)} is a file",
                "Set run_dir to a folder.",
            ) from error
        except OSError as error:
            raise StorageError(
                f"{storage.root} cannot be used as the run directory",
                error.strerror or str(error),
                "Set run_dir to a folder that can be created and written to, or restore access to it.",
            ) from error
        yield storage


def _file_in(path: Path) -> Path:
    """Return the first part of a path that is there and is no folder."""
    return next(part for part in (*reversed(path.parents), path) if not part.is_dir())


@contextmanager
def _shared_lock(storage: Storage, say: Callable[[str], None]) -> Iterator[Storage]:
    held = take(storage.cell(LOCK), storage.root, _myself(), PACE)
    try:
        if not held.is_atomic:
            say(
                f"note: {storage.root} has no conditional writes: two runs that begin at the same "
                "moment are not kept apart"
            )
        yield replace(storage, fence=held)
    finally:
        _release(held, storage.root, say)


def _release(held: Held, root: str, say: Callable[[str], None]) -> None:
    try:
        with storage_errors(f"the lock of {root} could not be released"):
            held.release()
    except StorageError as error:  # the run is over, and its work is stored
        say(f"note: {error.what} because {error.why}: it is free {PACE.stale:g} seconds from now")


def worker_storage(root: str, token: str) -> Storage:
    """Return the storage of a worker whose run holds the lock with this token; empty for no such lock."""
    storage = Storage(root)
    if storage.is_local or not token:
        return storage
    return replace(storage, fence=Lease(lambda: storage.cell(LOCK), root, token, PACE))


def _take(file: FileIO, root: str) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        raise ConfigError(
            f"{root} is in use",
            _describe(file.read().decode(errors="replace")),
            "Wait until it is done (`koe status --watch`), or stop it.",
        ) from error
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL):
            raise
    file.truncate(0)
    file.write(json.dumps(_myself()).encode())


def _myself() -> dict[str, Any]:
    return {
        "process": os.getpid(),
        "machine": platform.node(),
        "command": scrub(" ".join(["koe", *sys.argv[1:]])),
        "since": datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def _describe(text: str) -> str:
    try:
        return describe(json.loads(text))
    except json.JSONDecodeError:  # the holder has not written its name yet
        return describe({})
