"""Loads a checkpoint back into a model and its optimizer."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from koe.errors import ConfigError, ContractError, StorageError
from training.adapter import require_same_adapter
from training.checkpoint.manifest import RANDOM_STATES, STATE, random_state_file, read_manifest
from training.checkpoint.tensor_files import (
    AVERAGE,
    MODEL,
    OPTIMIZER,
    average_tensors,
    checkpoint_tensors,
    has_average,
    model_tensors,
    read_tensors,
)
from training.model.average import WeightAverage
from training.model.distributed import Ranks


def load_checkpoint(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    ranks: Ranks,
    average: WeightAverage | None = None,
) -> tuple[dict[str, Any], bool]:
    """Load weights, moments and this rank's random state in place, at any world size.

    `average` begins anew with the weights if the checkpoint has none. Returns the caller's state,
    and whether random states were loaded, which they are only at the world size that wrote them.
    Raises: ConfigError when the model has another shape; ContractError when there are only weights,
    or a file holds more than tensors; StorageError.
    """
    manifest = read_manifest(path)
    if manifest.weights_only:
        raise ContractError(
            f"checkpoint {path} holds weights only, so no run can go on from it",
            "train.keep_weights_only has deleted its moments and random states",
            "Export it with `koe export --step`, and name the folder in train.base_model of "
            "another run; or go on from a newer checkpoint.",
        )
    random_states = [name for name in manifest.files if name.startswith(RANDOM_STATES)]
    same_world = len(random_states) == ranks.world
    with _reading(path):
        state = _read_state(path, model)
        read_tensors(checkpoint_tensors(model, optimizer), path, (MODEL, OPTIMIZER))
        if average:
            _read_average(average, path)
        if same_world:
            random_state = path / random_state_file(ranks.rank)
            _set_random_state(torch.load(random_state, weights_only=True), ranks.device)
    return state, same_world


def read_state(path: Path) -> dict[str, Any]:
    """Read the caller's state alone. Raises: StorageError."""
    with _reading(path):
        return json.loads((path / STATE).read_bytes())


def load_weights(path: Path, model: nn.Module, average: bool = False) -> None:
    """Load only the weights, or their `average`, in the model's dtype; it needs no process group.

    Raises: as `load_checkpoint`; ConfigError when the checkpoint has no average.
    """
    tensors, prefix = model_tensors(model), MODEL
    with _reading(path):
        _read_state(path, model)
        if average:
            if not has_average(path):
                raise ConfigError(
                    f"checkpoint {path} holds no average of the weights",
                    "train.ema_decay was null when it was written",
                    "Take the weights themselves: leave out --ema.",
                )
            prefix = AVERAGE
            tensors = {AVERAGE + name.removeprefix(MODEL): t for name, t in tensors.items()}
        read_tensors(tensors, path, prefix, cast=True)


def _read_average(average: WeightAverage, path: Path) -> None:
    if has_average(path):
        read_tensors(average_tensors(average), path, AVERAGE)
    else:
        average.restart()


def _read_state(path: Path, model: nn.Module) -> dict[str, Any]:
    state = read_state(path)
    require_same_adapter(model, state, path)
    return state


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except pickle.UnpicklingError as error:
        raise ContractError(f"checkpoint {path} holds more than tensors", str(error)) from error
    except OSError as error:
        raise StorageError(
            f"checkpoint {path} cannot be read",
            str(error),
            "Mount the disk on all nodes and start again.",
        ) from error


def _set_random_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
