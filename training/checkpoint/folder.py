"""Checkpoint folders on disk: committed by a manifest with hashes, found again, deleted."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

from koe.atomic import sync
from koe.errors import ConfigError, ContractError, StorageError

FORMAT = 2
MANIFEST = "manifest.json"  # the commit marker: written last, lists all files and their hashes
STATE = "state.json"  # what the trainer adds to tensors and random states
RANDOM_STATES = "rng-"  # begins the name of each rank's
_PREFIX = "step-"
_HASHING_THREADS = 8  # one thread hashes 1 to 2 GB/s, and a 3B checkpoint has 46 GB


@dataclass(frozen=True)
class Progress:
    """How far a run has come, and on which data."""

    steps: int  # optimizer steps done
    data_steps: int  # batches consumed, including those of skipped steps
    tokens: int  # in those batches, without padding
    shards: str  # fingerprint of the shards' index
    rows_per_step: int

    def after(self, applied: bool, tokens: int) -> Progress:
        """Return the progress after one more batch, whose update was applied or not."""
        return replace(
            self,
            steps=self.steps + applied,
            data_steps=self.data_steps + 1,
            tokens=self.tokens + tokens,
        )


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint whose files match their hashes."""

    path: Path
    progress: Progress


class FileMark(NamedTuple):
    """What a complete file is recognised by."""

    sha256: str
    num_bytes: int


class Manifest(NamedTuple):
    """Progress of a checkpoint, and the marks of its files by name."""

    progress: Progress
    files: dict[str, FileMark]


def step_folder(folder: Path, steps: int) -> Path:
    """Name the checkpoint after `steps` steps."""
    return folder / f"{_PREFIX}{steps:08d}"


def random_state_file(rank: int) -> str:
    """Name the file of a rank's random state."""
    return f"{RANDOM_STATES}{rank:05d}.pt"


def latest(
    folder: Path, warn: Callable[[str], None], at_most: float = math.inf
) -> Checkpoint | None:
    """Find the newest complete checkpoint of `at_most` steps; `warn` is told of corrupt ones."""
    for steps, path in reversed(_found(folder)):
        if steps > at_most:
            continue
        try:
            return Checkpoint(path, _verify(path))
        except ContractError as error:
            warn(f"skipping a corrupt checkpoint: {error}")
    return None


def read(path: Path) -> Checkpoint:
    """Read a checkpoint's manifest without hashing its files.

    For ranks that follow rank 0, which has hashed them. Raises: ContractError.
    """
    return Checkpoint(path, read_manifest(path).progress)


def read_manifest(path: Path) -> Manifest:
    """Read the manifest of the checkpoint at `path`.

    Raises: ContractError when there is none, or it has another format.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            raise ContractError(
                f"{path} has format {manifest['format']}", f"this koe reads {FORMAT}"
            )
        files = {
            name: FileMark(entry["sha256"], entry["bytes"])
            for name, entry in manifest["files"].items()
        }
        return Manifest(Progress(**manifest["progress"]), files)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ContractError(f"{path} has no readable {MANIFEST}", repr(error)) from error


def require_same_data(checkpoint: Checkpoint, shards: str, rows_per_step: int, other: bool) -> None:
    """Refuse to continue with other rows than those that the checkpoint would have seen next.

    `other` allows changed shards. Raises: ConfigError.
    """
    found = checkpoint.progress
    if found.shards != shards and not other:
        raise ConfigError(
            f"checkpoint {checkpoint.path} was trained on other shards",
            f"their fingerprint was {found.shards[:12]}, that of these shards is {shards[:12]}",
            "Set train.resume_on_other_shards: true to go on with them, or train into another "
            "folder.",
        )
    if found.rows_per_step != rows_per_step:
        raise ConfigError(
            f"checkpoint {checkpoint.path} was trained with {found.rows_per_step} rows per step",
            f"workers x micro_batch_rows x accumulation_steps is now {rows_per_step}, and the "
            "position in the data is counted in steps",
            f"Choose the three so that their product is {found.rows_per_step}.",
        )


def empty_draft(folder: Path, final: Path) -> None:
    """Make the empty draft of `final`, and delete what killed runs have left behind.

    Raises: OSError.
    """
    for left in folder.glob(f".{_PREFIX}*.tmp"):
        shutil.rmtree(left)
    sweep(folder)
    draft_of(final).mkdir(parents=True)


def draft_of(final: Path) -> Path:
    """Name the folder that becomes `final` when it is complete."""
    return final.with_name(f".{final.name}.tmp")


def write_synced(path: Path, data: bytes) -> None:
    """Write a file and force it to disk. Raises: OSError."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def mark(path: Path) -> FileMark:
    """Hash a file. Raises: OSError."""
    with open(path, "rb") as file:
        return FileMark(
            hashlib.file_digest(file, "sha256").hexdigest(), os.fstat(file.fileno()).st_size
        )


def commit(final: Path, manifest: Manifest) -> None:
    """Turn the draft into `final`; a kill at any moment leaves it complete or absent.

    Raises: StorageError when a file of another rank is not visible here; OSError.
    """
    draft = draft_of(final)
    for name, expected in manifest.files.items():
        path = draft / name
        if not path.exists() or path.stat().st_size != expected.num_bytes:
            raise StorageError(
                f"{path} is not here as its rank wrote it",
                "the ranks do not share the folder, or the nodes see different states of it",
                "Put the run's folder on a file system that all nodes mount.",
            )
    files = {name: {"sha256": m.sha256, "bytes": m.num_bytes} for name, m in manifest.files.items()}
    content = {"format": FORMAT, "progress": asdict(manifest.progress), "files": files}
    write_synced(draft / MANIFEST, json.dumps(content, indent=1).encode())
    sync(draft)
    if final.exists():  # corrupt, or abandoned by a rollback
        discard(final)
    draft.rename(final)
    sync(final.parent)
    sweep(final.parent)


def delete_old(newest: Path, keep: int, keep_back_steps: int) -> None:
    """Delete all checkpoints but the newest `keep` and one to roll back to.

    The one to roll back to is the newest that is at least `keep_back_steps` older than `newest`.
    The oldest that is younger is kept as well: it takes that place once it is old enough. Corrupt
    checkpoints and those later than `newest` are deleted. Raises: OSError.
    """
    folder, last = newest.parent, _steps(newest)
    found = _found(folder)
    complete = [steps for steps, path in found if steps <= last and _looks_complete(path)]
    old = [steps for steps in complete if steps <= last - keep_back_steps]
    young = [steps for steps in complete if steps > last - keep_back_steps]
    kept = {*complete[-keep:], *old[-1:], *young[:1]}
    for steps, path in found:
        if steps not in kept:
            discard(path)
    sweep(folder)


def _steps(path: Path) -> int:
    return int(path.name.removeprefix(_PREFIX))


def _found(folder: Path) -> list[tuple[int, Path]]:
    """List the checkpoints in `folder` by their steps, including corrupt ones."""
    paths = [p for p in folder.glob(f"{_PREFIX}*") if p.name.removeprefix(_PREFIX).isdecimal()]
    return sorted((_steps(path), path) for path in paths)


def _verify(path: Path) -> Progress:
    progress, files = read_manifest(path)
    with ThreadPoolExecutor(_HASHING_THREADS) as threads:
        list(threads.map(lambda name: _require(path / name, files[name]), files))
    return progress


def _require(path: Path, expected: FileMark) -> None:
    try:
        num_bytes = path.stat().st_size
        found = mark(path) if num_bytes == expected.num_bytes else None
    except OSError as error:
        raise ContractError(f"{path} cannot be read", str(error)) from error
    if found is None:
        raise ContractError(
            f"{path} is damaged", f"it has {num_bytes:,} bytes, not {expected.num_bytes:,}"
        )
    if found != expected:
        raise ContractError(
            f"{path} is damaged", f"its sha256 is {found.sha256[:12]}, not {expected.sha256[:12]}"
        )


def _looks_complete(path: Path) -> bool:
    """Check manifest and sizes only; hashing would read all checkpoints every time."""
    try:
        files = read_manifest(path).files
        return all((path / name).stat().st_size == m.num_bytes for name, m in files.items())
    except (ContractError, OSError):
        return False


def discard(path: Path) -> None:
    """Rename a checkpoint away at once, so that a kill while deleting leaves no half of it."""
    path.rename(path.with_name(f".{path.name}.deleted"))


def sweep(folder: Path) -> None:
    """Delete what was discarded, now or by a process that was killed before it could delete it."""
    for doomed in folder.glob(f".{_PREFIX}*.deleted"):
        shutil.rmtree(doomed)
