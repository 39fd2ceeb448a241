"""One run works on a run directory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from koe.dataflow import LOCK
from koe.folder_lock import local_lock, shared_lock
from koe.shared_lock import PACE, Lease
from pipeline.run_dir.storage import Storage


@contextmanager
def run_lock(storage: Storage, say: Callable[[str], None] = lambda _: None) -> Iterator[Storage]:
    """Lock the run directory for the duration of a run; yield the storage to write to it.

    Two runs at once would do every unit twice, and delete each other's unfinished files. The storage
    refuses to write once the lock is lost. Raises: the errors of `koe.folder_lock`.
    """
    if storage.is_local:
        path = storage.local_path(LOCK)
        with local_lock(path, storage.root, "the run directory", "Set run_dir to a folder"):
            yield storage
    else:
        with shared_lock(storage.cell(LOCK), storage.root, say, PACE) as held:
            yield replace(storage, fence=held)


def worker_storage(root: str, token: str) -> Storage:
    """Return the storage of a worker whose run holds the lock with this token; empty for no such lock."""
    storage = Storage(root)
    if storage.is_local or not token:
        return storage
    return replace(storage, fence=Lease(lambda: storage.cell(LOCK), root, token, PACE))
