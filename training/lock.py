"""One training works on a folder of checkpoints and logs at a time, however it was started."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from koe.cells import conditional_cell
from koe.folder_lock import local_lock, shared_lock
from koe.shared_lock import PACE
from training.places import Place, RemoteFolder, local_folder

LOCK = "train.lock"


@contextmanager
def training_lock(place: Place, say: Callable[[str], None]) -> Iterator[None]:
    """Lock the folder or URL of a training; one process of all its ranks does.

    Two at once would write into each other's logs and delete each other's checkpoints.
    Raises: ConfigError naming who holds it; StorageError.
    """
    folder = local_folder(place)
    if folder is not None:
        role = "the folder of a training"
        with local_lock(folder / LOCK, str(place), role, "Choose a folder"):
            yield
        return
    remote = RemoteFolder(str(place))
    cell = conditional_cell(remote.system, f"{remote.base}/{LOCK}")
    with shared_lock(cell, str(place), say, PACE):
        yield
