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

from koe.errors import ContractError, StorageError
from training.checkpoint.manifest import RANDOM_STATES, STATE, random_state_file, read_manifest
from training.checkpoint.tensor_files import MODEL, checkpoint_tensors, model_tensors, read_tensors
from training.model.distributed import Ranks


def load_checkpoint(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, ranks: Ranks
) -> tuple[dict[str, Any], bool]:
    """Load weights, moments and this rank's random state in place, at any world size.

    Returns the caller's state, and whether random states were loaded, which they are only at the
    world size that wrote them. Raises: ConfigError when the model has another shape; ContractError
    when a file holds more than tensors; StorageError.
    """
    files = read_manifest(path).files
    random_states = [name for name in files if name.startswith(RANDOM_STATES)]
    same_world = len(random_states) == ranks.world
    with _reading(path):
        read_tensors(checkpoint_tensors(model, optimizer), path)
        state = json.loads((path / STATE).read_bytes())
        if same_world:
            random_state = path / random_state_file(ranks.rank)
            _set_random_state(torch.load(random_state, weights_only=True), ranks.device)
    return state, same_world


def load_weights(path: Path, model: nn.Module) -> None:
    """Load only the weights, in the model's dtype; no process group is needed.

    Raises: as `load_checkpoint`.
    """
    with _reading(path):
        read_tensors(model_tensors(model), path, MODEL, cast=True)


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
