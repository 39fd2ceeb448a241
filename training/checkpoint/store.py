"""Where checkpoints lie: what every such place can do."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from training.checkpoint.manifest import Manifest
from training.places import Place


class CheckpointStore(Protocol):
    """The checkpoints of a run by their steps, and small records beside them.

    One process at a time writes; ranks of a run write one checkpoint together. `place` is for
    messages. Raises: OSError, StorageError.
    """

    @property
    def place(self) -> Place: ...

    def steps(self) -> list[int]:
        """List the checkpoints that were committed, in ascending order, corrupt ones too."""
        ...

    def place_of(self, steps: int) -> Place:
        """Name a checkpoint."""
        ...

    def manifest(self, steps: int) -> Manifest:
        """Read a manifest. Raises: ContractError when it is not readable."""
        ...

    def complete(self, steps: int) -> Manifest | None:
        """Return the manifest if all files have the sizes that it names, None otherwise."""
        ...

    def fetch(self, steps: int, hashed: bool = False) -> Path:
        """Return a local folder of the files, whose hashes are checked.

        With `hashed` another rank has just done so, which counts where all ranks read the same
        files. The folder stays until `release`. Raises: ContractError for a file that is damaged or missing.
        """
        ...

    def release(self) -> None:
        """Say that what was fetched is not needed any more."""
        ...

    def begin(self, steps: int) -> None:
        """Prepare to write a checkpoint, on rank 0, before any rank asks for its `draft`."""
        ...

    def draft(self, steps: int) -> Path:
        """Return the local folder that this rank writes its files to."""
        ...

    def put(self, steps: int, names: Iterable[str]) -> None:
        """Hand over files of this rank's draft, so that `commit` sees them."""
        ...

    def commit(self, steps: int, manifest: Manifest) -> None:
        """Make a checkpoint valid, on rank 0: a kill at any moment leaves it complete or absent.

        Raises: StorageError when a file that the manifest names is not there.
        """
        ...

    def end(self, steps: int) -> None:
        """Tidy up this rank's draft, committed or not."""
        ...

    def reduce(self, steps: int, manifest: Manifest) -> None:
        """Give a checkpoint a manifest of fewer files, then delete the others.

        A kill leaves the one manifest or the other, and the next call deletes what is in neither.
        """
        ...

    def discard(self, steps: int) -> None:
        """Delete a checkpoint in a way that a kill leaves no half of it that looks complete."""
        ...

    def sweep(self) -> None:
        """Delete what killed processes have left behind, while nothing is being written."""
        ...

    def close(self) -> None:
        """Delete what only this process needs."""
        ...

    def read(self, name: str) -> bytes | None:
        """Read a record; None where there is none."""
        ...

    def write(self, name: str, data: bytes) -> None:
        """Write a record, complete or not at all."""
        ...

    def remove(self, name: str) -> None:
        """Delete a record."""
        ...
