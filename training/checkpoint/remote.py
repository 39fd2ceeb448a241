"""Checkpoints at a URL: each rank uploads its files, and the manifest comes last.

Object stores cannot rename, so a checkpoint without a manifest is none; what is deleted loses its
manifest first. Files are written on this machine's disk first, and a checkpoint that is loaded is
downloaded to it, once for all processes of the machine.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from koe.errors import ContractError, StorageError
from koe.remote import abort_uploads
from training.checkpoint.manifest import (
    MANIFEST,
    FileMark,
    Manifest,
    parse_manifest,
    require_files,
    step_name,
    steps_of,
)
from training.file_locks import AT_ONCE, EXCLUSIVE, SHARED, lock, locked
from training.places import RemoteFolder
from training.work_folder import WorkFolder, delete_unused, lock_of, work_room

_ARRIVED = ".arrived"  # in a download that is complete and checked
_THREADS = 4  # that up- or download files
_TRIES = 2
_SECONDS_BETWEEN_LOOKS = 0.05


class RemoteCheckpoints:
    """A `CheckpointStore` at a URL."""

    def __init__(self, url: str) -> None:
        self._remote = RemoteFolder(url)
        self.place = self._remote.url
        self._work: WorkFolder | None = None
        self._fetched: list[tuple[Path, BinaryIO]] = []

    def steps(self) -> list[int]:
        return sorted(steps for steps, files in self._listed().items() if MANIFEST in files)

    def place_of(self, steps: int) -> str:
        return f"{self.place}/{step_name(steps)}"

    def manifest(self, steps: int) -> Manifest:
        name = f"{step_name(steps)}/{MANIFEST}"
        return parse_manifest(self.place_of(steps), lambda: self._remote.read(name))

    def complete(self, steps: int) -> Manifest | None:
        try:
            manifest = self.manifest(steps)
        except ContractError:
            return None
        found = self._remote.sizes(step_name(steps))
        whole = all(found.get(name) == m.num_bytes for name, m in manifest.files.items())
        return manifest if whole else None

    def fetch(self, steps: int, hashed: bool = False) -> Path:
        manifest = self.manifest(steps)
        key = hashlib.sha256(f"{self.place_of(steps)}\n".encode() + manifest.as_json()).hexdigest()
        folder = work_room() / key[:32]
        while True:
            found = lock(lock_of(folder), SHARED)
            assert found is not None
            if (folder / _ARRIVED).exists():
                self._fetched.append((folder, found))
                return folder
            found.close()
            with locked(lock_of(folder), EXCLUSIVE | AT_ONCE) as mine:
                if mine and not (folder / _ARRIVED).exists():
                    self._download(steps, manifest, folder)
            if not mine:  # another process downloads it
                time.sleep(_SECONDS_BETWEEN_LOOKS)

    def release(self) -> None:
        while self._fetched:
            folder, held = self._fetched.pop()
            held.close()
            delete_unused(folder)

    def begin(self, steps: int) -> None:
        if steps in self._listed():
            self.discard(steps)

    def draft(self, steps: int) -> Path:
        self._work = self._work or WorkFolder()
        folder = self._work.path / step_name(steps)
        folder.mkdir(exist_ok=True)
        return folder

    def put(self, steps: int, names: Iterable[str]) -> None:
        draft = self.draft(steps)
        with ThreadPoolExecutor(_THREADS) as threads:
            uploads = [
                threads.submit(self._remote.upload, draft / name, f"{step_name(steps)}/{name}")
                for name in names
            ]
        for upload in uploads:
            upload.result()

    def commit(self, steps: int, manifest: Manifest) -> None:
        found = self._listed().get(steps, {})
        for name, expected in manifest.files.items():
            if found.get(name) != expected.num_bytes:
                raise StorageError(
                    f"{self.place_of(steps)}/{name} is not there as its rank wrote it",
                    f"it has {found.get(name)} bytes, not {expected.num_bytes}",
                    "See that nothing else writes there; the run resumes from its last checkpoint.",
                )
        self._remote.write(f"{step_name(steps)}/{MANIFEST}", manifest.as_json())

    def end(self, steps: int) -> None:
        shutil.rmtree(self.draft(steps), ignore_errors=True)

    def reduce(self, steps: int, manifest: Manifest) -> None:
        folder = step_name(steps)
        if self.manifest(steps) != manifest:
            self._remote.write(f"{folder}/{MANIFEST}", manifest.as_json())
        for name in self._remote.sizes(folder):
            if name != MANIFEST and name not in manifest.files:
                self._remote.remove(f"{folder}/{name}")

    def discard(self, steps: int) -> None:
        folder = step_name(steps)
        self._remote.remove(f"{folder}/{MANIFEST}")
        for name in self._listed().get(steps, {}):
            self._remote.remove(f"{folder}/{name}")

    def sweep(self) -> None:
        abort_uploads(self._remote.system, self._remote.base)
        for steps, files in self._listed().items():
            if MANIFEST not in files:
                self.discard(steps)

    def read(self, name: str) -> bytes | None:
        try:
            return self._remote.read(name)
        except FileNotFoundError:
            return None

    def write(self, name: str, data: bytes) -> None:
        self._remote.write(name, data)

    def remove(self, name: str) -> None:
        self._remote.remove(name)

    def close(self) -> None:
        self.release()
        if self._work:
            self._work.close()

    def _listed(self) -> dict[int, dict[str, int]]:
        """List the files of all checkpoints with their sizes, as they are now."""
        found: dict[int, dict[str, int]] = {}
        for path, size in self._remote.sizes().items():
            folder, _, name = path.partition("/")
            steps = steps_of(folder)
            if steps is not None and name:
                found.setdefault(steps, {})[name] = size
        return found

    def _download(self, steps: int, manifest: Manifest, folder: Path) -> None:
        """Fetch all files, and check them; the caller holds the lock of the folder."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            with ThreadPoolExecutor(_THREADS) as threads:
                work = [
                    threads.submit(self._download_file, steps, name, expected, folder)
                    for name, expected in manifest.files.items()
                ]
            for done in work:
                done.result()
            (folder / MANIFEST).write_bytes(manifest.as_json())
            (folder / _ARRIVED).touch()
        except OSError as error:
            raise StorageError(
                f"{self.place_of(steps)} cannot be kept in {folder}",
                str(error),
                "Free the disk, or set KOE_CACHE to a larger one; then start again.",
            ) from error
        finally:
            if not (folder / _ARRIVED).exists():
                shutil.rmtree(folder, ignore_errors=True)

    def _download_file(self, steps: int, name: str, expected: FileMark, folder: Path) -> None:
        where = self.place_of(steps)
        for left in reversed(range(_TRIES)):
            try:
                self._remote.download(f"{step_name(steps)}/{name}", folder / name)
                require_files(folder, {name: expected}, where)
                return
            except FileNotFoundError as error:
                raise ContractError(f"{where}/{name} is missing", str(error)) from error
            except ContractError:
                if not left:
                    raise
