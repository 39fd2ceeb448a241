"""Checkpoints in a local folder that all ranks share: each is renamed into place when complete."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from koe.atomic import atomically, sync
from koe.errors import ContractError, StorageError
from training.checkpoint.manifest import (
    MANIFEST,
    PREFIX,
    Manifest,
    read_manifest,
    require_files,
    step_name,
    steps_of,
    write_synced,
)


class LocalCheckpoints:
    """A `CheckpointStore` in a folder."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def steps(self) -> list[int]:
        found = (steps_of(path.name) for path in self.place.glob(f"{PREFIX}*"))
        return sorted(steps for steps in found if steps is not None)

    def place_of(self, steps: int) -> Path:
        return self.place / step_name(steps)

    def manifest(self, steps: int) -> Manifest:
        return read_manifest(self.place_of(steps))

    def complete(self, steps: int) -> Manifest | None:
        path = self.place_of(steps)
        try:
            found = self.manifest(steps)
            sizes = {name: (path / name).stat().st_size for name in found.files}
        except (ContractError, OSError):
            return None
        return found if sizes == {name: m.num_bytes for name, m in found.files.items()} else None

    def fetch(self, steps: int, hashed: bool = False) -> Path:
        path, manifest = self.place_of(steps), self.manifest(steps)
        if not hashed:
            require_files(path, manifest.files, path)
        return path

    def release(self) -> None:
        """Do nothing: a checkpoint is read where it lies."""

    def begin(self, steps: int) -> None:
        for left in self.place.glob(f".{PREFIX}*.tmp"):
            shutil.rmtree(left)
        self.sweep()
        self.draft(steps).mkdir(parents=True)

    def draft(self, steps: int) -> Path:
        return self.place / f".{step_name(steps)}.tmp"

    def put(self, steps: int, names: Iterable[str]) -> None:
        """Do nothing: all ranks write to one folder."""

    def commit(self, steps: int, manifest: Manifest) -> None:
        draft, final = self.draft(steps), self.place_of(steps)
        for name, expected in manifest.files.items():
            path = draft / name
            if not path.exists() or path.stat().st_size != expected.num_bytes:
                raise StorageError(
                    f"{path} is not here as its rank wrote it",
                    "the ranks do not share the folder, or the nodes see different states of it",
                    "Put the run's folder on a file system that all nodes mount, or on an object "
                    "store.",
                )
        write_synced(draft / MANIFEST, manifest.as_json())
        sync(draft)
        if final.exists():  # corrupt, or abandoned by a rollback
            self.discard(steps)
        draft.rename(final)
        sync(self.place)
        self.sweep()

    def end(self, steps: int) -> None:
        """Do nothing: the next `begin` deletes a draft that was not committed."""

    def reduce(self, steps: int, manifest: Manifest) -> None:
        path = self.place_of(steps)
        if self.manifest(steps) != manifest:
            with atomically(path / MANIFEST) as file:
                file.write(manifest.as_json())
        for left in path.iterdir():
            if left.name != MANIFEST and left.name not in manifest.files:
                left.unlink()

    def discard(self, steps: int) -> None:
        path = self.place_of(steps)
        path.rename(path.with_name(f".{path.name}.deleted"))

    def sweep(self) -> None:
        for doomed in self.place.glob(f".{PREFIX}*.deleted"):
            shutil.rmtree(doomed)

    def close(self) -> None:
        """Do nothing."""

    def read(self, name: str) -> bytes | None:
        path = self.place / name
        return path.read_bytes() if path.exists() else None

    def write(self, name: str, data: bytes) -> None:
        with atomically(self.place / name) as file:
            file.write(data)

    def remove(self, name: str) -> None:
        (self.place / name).unlink()
