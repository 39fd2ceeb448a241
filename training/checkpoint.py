"""Checkpoints that are whole or are not there: written aside, hashed, then renamed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import nn

from pipeline.errors import ConfigError, ContractError, StorageError
from training.distributed import Ranks

FORMAT = 1
MANIFEST = "manifest.json"  # the commit marker: written last, names all files and their hashes
_PREFIX = "step-"


@dataclass(frozen=True)
class Progress:
    """How far a run has come, and on which data."""

    steps: int  # optimizer steps done
    tokens: int  # seen in them, padding not counted
    shards: str  # fingerprint of the shards' index
    rows_a_step: int


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint whose files match their hashes."""

    path: Path
    progress: Progress


def step_folder(folder: Path, steps: int) -> Path:
    """Name the checkpoint after `steps` steps."""
    return folder / f"{_PREFIX}{steps:08d}"


def save(
    folder: Path,
    progress: Progress,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    ranks: Ranks,
    *,
    keep: int,
) -> Path:
    """Write a checkpoint and delete all but the newest `keep`; called by every rank.

    The ranks share `folder`. A kill at any moment leaves the earlier checkpoints as they were.
    Raises: StorageError.
    """
    final = step_folder(folder, progress.steps)
    draft = folder / f".{final.name}.tmp"
    try:
        if ranks.is_main:
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir(parents=True)
        ranks.wait()
        _write(draft / f"rng-{ranks.rank:05d}.pt", _random_state(ranks.device))
        ranks.wait()
        if ranks.is_main:
            hashes = {
                "model.pt": _write(draft / "model.pt", model.state_dict()),
                "optimizer.pt": _write(draft / "optimizer.pt", optimizer.state_dict()),
            }
            for path in sorted(draft.glob("rng-*.pt")):
                hashes[path.name] = _sha256(path)
            _commit(draft, final, progress, hashes)
            _delete_old(final, keep)
        ranks.wait()
    except OSError as error:
        raise StorageError(
            f"checkpoint {final} cannot be written",
            str(error),
            "Free or mount the disk and start again: the run resumes from the checkpoint before.",
        ) from error
    return final


def latest(folder: Path, warn: Callable[[str], None]) -> Checkpoint | None:
    """Find the newest whole checkpoint; `warn` is told about every torn one passed over."""
    for path in sorted(folder.glob(f"{_PREFIX}*"), reverse=True):
        try:
            return Checkpoint(path, _verify(path))
        except ContractError as error:
            warn(f"passing over a torn checkpoint: {error}")
    return None


def read(path: Path) -> Checkpoint:
    """Read what a checkpoint says of itself; its files are not hashed.

    For ranks that follow rank 0, which has hashed them. Raises: ContractError.
    """
    return Checkpoint(path, _manifest(path)[0])


def load(
    checkpoint: Path, model: nn.Module, optimizer: torch.optim.Optimizer, ranks: Ranks
) -> bool:
    """Load weights, moments and random state of this rank into place.

    Returns whether a random state of this rank was there (it is not after a change of world
    size). Raises: ConfigError when the model has another shape.
    """
    try:
        model.load_state_dict(_read(checkpoint / "model.pt"))
        optimizer.load_state_dict(_read(checkpoint / "optimizer.pt"))
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"checkpoint {checkpoint} does not fit the model",
            str(error).replace("\n", " "),
            "Restore the model's settings, or train into another folder.",
        ) from error
    random_state = checkpoint / f"rng-{ranks.rank:05d}.pt"
    if not random_state.exists():
        return False
    state = _read(random_state)
    torch.set_rng_state(state["cpu"])
    if ranks.device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], ranks.device)
    return True


def require_same_data(checkpoint: Checkpoint, shards: str, rows_a_step: int, other: bool) -> None:
    """Refuse to continue on other rows than those the checkpoint would have seen next.

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
    if found.rows_a_step != rows_a_step:
        raise ConfigError(
            f"checkpoint {checkpoint.path} was trained with {found.rows_a_step} rows a step",
            f"workers x micro_batch_rows x accumulation_steps now make {rows_a_step}, and the "
            "place in the data is counted in steps",
            f"Choose the three so that their product is {found.rows_a_step}.",
        )


def _random_state(device: torch.device) -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


class _HashingFile:
    """Hashes what is written through it, so that large files are not read again."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._hash = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self._hash.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def _write(path: Path, state: Any) -> str:
    with open(path, "wb") as file:
        hashing = _HashingFile(file)
        torch.save(state, hashing)  # pyright: ignore[reportArgumentType]
        file.flush()
        os.fsync(file.fileno())
    return hashing.hexdigest()


def _read(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _commit(draft: Path, final: Path, progress: Progress, hashes: dict[str, str]) -> None:
    manifest = {"format": FORMAT, "progress": asdict(progress), "sha256": hashes}
    with open(draft / MANIFEST, "w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    _fsync_folder(draft)
    if final.exists():  # only a torn one: resuming starts after the newest whole one
        shutil.rmtree(final)
    draft.rename(final)
    _fsync_folder(final.parent)


def _delete_old(newest: Path, keep: int) -> None:
    folder = newest.parent
    found = sorted(folder.glob(f"{_PREFIX}*"))
    later = [path for path in found if path.name > newest.name]  # torn, or they would be newest
    for path in [*later, *found[: max(0, len(found) - len(later) - keep)]]:
        doomed = folder / f".{path.name}.deleted"  # a kill while deleting leaves nothing torn
        path.rename(doomed)
    for doomed in folder.glob(f".{_PREFIX}*.deleted"):
        shutil.rmtree(doomed)


def _manifest(path: Path) -> tuple[Progress, dict[str, str]]:
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        progress = Progress(**manifest["progress"])
        hashes = manifest["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ContractError(f"{path} has no readable {MANIFEST}", repr(error)) from error
    if manifest.get("format") != FORMAT:
        raise ContractError(
            f"{path} has format {manifest.get('format')}", f"this koe reads {FORMAT}"
        )
    return progress, hashes


def _verify(path: Path) -> Progress:
    progress, hashes = _manifest(path)
    for name, expected in hashes.items():
        try:
            found = _sha256(path / name)
        except OSError as error:
            raise ContractError(f"{path / name} cannot be read", str(error)) from error
        if found != expected:
            raise ContractError(
                f"{path / name} is damaged", f"its sha256 is {found[:12]}, not {expected[:12]}"
            )
    return progress


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
