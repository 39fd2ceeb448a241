"""Logs of a run at a URL: written on this machine, and copied as they grow.

Objects cannot be appended to, so a file that has changed is uploaded as a whole.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from koe.errors import StorageError
from training.places import Place, RemoteFolder, local_folder
from training.work_folder import WorkFolder

# Long logs are not copied all the time: at most a twentieth of the time goes into it.
_PAUSE_FACTOR = 20
_NOT_COPIED = ("wandb", "ray")


class Mirror:
    """A folder of this process whose files are copied to a URL, in a thread where training goes on.

    A copy in the thread that fails is told to `warn` and made again later; one that a checkpoint
    relies on (`copy`) raises StorageError.
    """

    def __init__(self, url: str, every_seconds: float, warn: Callable[[str], None]) -> None:
        self._remote, self._every, self._warn = RemoteFolder(url), every_seconds, warn
        self.url = self._remote.url
        self._work = WorkFolder()
        self.folder = self._work.path
        self._copied: dict[str, tuple[int, int]] = {}
        self._copying = threading.Lock()
        self._thread = ThreadPoolExecutor(1, "mirror")
        self._pending: Future[None] | None = None
        self._next = 0.0  # on time.monotonic()

    def fetch(self, names: Iterable[str]) -> None:
        """Bring files here that are going to be appended to. Raises: StorageError."""
        fetch(self._remote, names, self.folder)

    def copy(self) -> None:
        """Upload every file that has changed since it was. Raises: StorageError."""
        with self._copying:
            started = time.monotonic()
            for path in sorted(self.folder.rglob("*")):
                name = path.relative_to(self.folder)
                if path.is_file() and name.parts[0] not in _NOT_COPIED:
                    self._copy(path, name.as_posix())
            ended = time.monotonic()
            self._next = ended + max(self._every, _PAUSE_FACTOR * (ended - started))

    def soon(self) -> None:
        """Copy in the thread, unless that is going on."""
        if self._pending is None or self._pending.done():
            self._pending = self._thread.submit(self._copy_or_warn)

    def sometimes(self) -> None:
        """Copy in the thread if the last copy is long enough ago."""
        if time.monotonic() >= self._next:
            self.soon()

    def close(self) -> None:
        """Copy for the last time. Raises: StorageError."""
        try:
            self._thread.shutdown()
            self.copy()
        finally:
            self._work.close()

    def abandon(self) -> None:
        """Delete the local folder without another copy."""
        self._thread.shutdown()
        self._work.close()

    def _copy(self, path: Path, name: str) -> None:
        try:
            status = path.stat()
            state = (status.st_size, status.st_mtime_ns)
            if self._copied.get(name) != state:
                self._remote.upload(path, name)
                self._copied[name] = state
        except FileNotFoundError:  # replaced or deleted meanwhile
            return

    def _copy_or_warn(self) -> None:
        try:
            self.copy()
        except StorageError as error:
            self._warn(f"the logs will be copied later: {error}")


def fetch(remote: RemoteFolder, names: Iterable[str], folder: Path) -> None:
    """Download those of the files that exist. Raises: StorageError."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            remote.download(name, path)
        except FileNotFoundError:
            path.unlink(missing_ok=True)


@contextmanager
def local_copy(place: Place, names: Iterable[str]) -> Iterator[Path]:
    """Yield a local folder with the named files of a place, as far as they exist.

    Raises: StorageError.
    """
    folder = local_folder(place)
    if folder is not None:
        yield folder
        return
    work = WorkFolder()
    try:
        fetch(RemoteFolder(str(place)), names, work.path)
        yield work.path
    finally:
        work.close()
