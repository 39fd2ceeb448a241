"""Folders of running processes in this machine's cache: one that dies leaves nothing for long."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path

from koe.cache import cache_folder
from koe.errors import ConfigError
from training.file_locks import AT_ONCE, EXCLUSIVE, lock, locked

LOCK = ".lock"


def work_room() -> Path:
    """Return the folder of all of them, without those whose processes have died.

    Each folder is locked by the file of its name with `LOCK` behind it, while it is in use.
    Raises: ConfigError when it cannot be made.
    """
    room = cache_folder() / "work"
    try:
        room.mkdir(parents=True, exist_ok=True)
        for lock_path in room.glob(f"*{LOCK}"):
            delete_unused(lock_path.with_suffix(""))
    except OSError as error:
        raise ConfigError(
            f"nothing can be written to {room}",
            str(error),
            "Set KOE_CACHE to a folder on a local disk.",
        ) from error
    return room


def lock_of(folder: Path) -> Path:
    """Name the lock of a folder."""
    return folder.with_name(folder.name + LOCK)


def delete_unused(folder: Path) -> None:
    """Delete a folder that no process has locked."""
    with locked(lock_of(folder), EXCLUSIVE | AT_ONCE) as unused:
        if unused:
            shutil.rmtree(folder, ignore_errors=True)
            lock_of(folder).unlink(missing_ok=True)


class WorkFolder:
    """A new folder of this process, which `close` deletes."""

    def __init__(self) -> None:
        self.path = work_room() / uuid.uuid4().hex
        self._lock = lock(lock_of(self.path), EXCLUSIVE)
        self.path.mkdir()

    def close(self) -> None:
        if self._lock:
            self._lock.close()
            self._lock = None
            delete_unused(self.path)
