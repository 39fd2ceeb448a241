"""What commits a checkpoint: its manifest, which lists all files and their hashes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

from koe.errors import ContractError
from training.places import Place

FORMAT = 2
MANIFEST = "manifest.json"  # the commit marker, written last
STATE = "state.json"  # what the trainer adds to tensors and random states
RANDOM_STATES = "rng-"  # begins the name of each rank's
MOMENT_FILES = "_moments_"  # in the names of the files that hold only the optimizer's tensors
PREFIX = "step-"
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


class FileMark(NamedTuple):
    """What a complete file is recognised by."""

    sha256: str
    num_bytes: int


class Manifest(NamedTuple):
    """Progress of a checkpoint, the marks of its files by name, and what it is kept for."""

    progress: Progress
    files: dict[str, FileMark]
    validation_loss: float | None = None  # nats per token, of these weights; None: not measured
    permanent: bool = False  # never deleted to make room
    weights_only: bool = False  # it can be exported, but no run can go on from it

    def as_json(self) -> bytes:
        files = {name: {"sha256": m.sha256, "bytes": m.num_bytes} for name, m in self.files.items()}
        content = {
            "format": FORMAT,
            "progress": asdict(self.progress),
            "validation_loss": self.validation_loss,
            "permanent": self.permanent,
            "weights_only": self.weights_only,
            "files": files,
        }
        return json.dumps(content, indent=1, allow_nan=False).encode()

    def reduced(self) -> Manifest | None:
        """Return the manifest of the weights alone, without moments and random states.

        None where moments lie in one file with the weights, as an earlier version of koe wrote them.
        """
        if self.weights_only:
            return self
        if not any(MOMENT_FILES in name for name in self.files):
            return None
        kept = {
            name: m
            for name, m in self.files.items()
            if MOMENT_FILES not in name and not name.startswith(RANDOM_STATES)
        }
        return self._replace(files=kept, weights_only=True)


def step_name(steps: int) -> str:
    """Name the folder of the checkpoint after `steps` steps."""
    return f"{PREFIX}{steps:08d}"


def steps_of(name: str) -> int | None:
    """Return the steps of a checkpoint by the name of its folder; None for another folder."""
    number = name.removeprefix(PREFIX)
    return int(number) if name.startswith(PREFIX) and number.isdecimal() else None


def random_state_file(rank: int) -> str:
    """Name the file of a rank's random state."""
    return f"{RANDOM_STATES}{rank:05d}.pt"


def parse_manifest(place: Place, read: Callable[[], bytes]) -> Manifest:
    """Read the manifest of the checkpoint at `place` by `read`.

    Raises: ContractError when there is none, or it has another format.
    """
    try:
        manifest = json.loads(read())
        if manifest["format"] != FORMAT:
            raise ContractError(
                f"{place} has format {manifest['format']}", f"this koe reads {FORMAT}"
            )
        files = {
            name: FileMark(entry["sha256"], entry["bytes"])
            for name, entry in manifest["files"].items()
        }
        if strange := [name for name in files if Path(name).name != name]:
            raise ValueError(f"{strange[0]} is not in the checkpoint's folder")
        loss = manifest.get("validation_loss")
        return Manifest(
            Progress(**manifest["progress"]),
            files,
            validation_loss=None if loss is None else float(loss),
            permanent=manifest.get("permanent", False) is True,
            weights_only=manifest.get("weights_only", False) is True,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ContractError(f"{place} has no readable {MANIFEST}", repr(error)) from error


def read_manifest(path: Path) -> Manifest:
    """Read the manifest of a checkpoint in a local folder. Raises: ContractError."""
    return parse_manifest(path, (path / MANIFEST).read_bytes)


def mark(path: Path) -> FileMark:
    """Hash a file. Raises: OSError."""
    with open(path, "rb") as file:
        return FileMark(
            hashlib.file_digest(file, "sha256").hexdigest(), os.fstat(file.fileno()).st_size
        )


def require_files(folder: Path, files: dict[str, FileMark], name: Place) -> None:
    """Compare all files with their marks; `name` is what messages call the folder.

    Raises: ContractError naming one that differs.
    """
    with ThreadPoolExecutor(_HASHING_THREADS) as threads:
        list(
            threads.map(lambda file: _require(folder / file, files[file], f"{name}/{file}"), files)
        )


def _require(path: Path, expected: FileMark, name: str) -> None:
    try:
        num_bytes = path.stat().st_size
        found = mark(path) if num_bytes == expected.num_bytes else None
    except OSError as error:
        raise ContractError(f"{name} cannot be read", str(error)) from error
    if found is None:
        raise ContractError(
            f"{name} is damaged", f"it has {num_bytes:,} bytes, not {expected.num_bytes:,}"
        )
    if found != expected:
        raise ContractError(
            f"{name} is damaged", f"its sha256 is {found.sha256[:12]}, not {expected.sha256[:12]}"
        )


def write_synced(path: Path, data: bytes) -> None:
    """Write a file and force it to disk. Raises: OSError."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
