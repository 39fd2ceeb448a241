"""The tensors of a checkpoint in files: PyTorch's distributed checkpoints (DCP) without pickles.

DCP plans which rank writes which part of which tensor, and reads the parts into any other
sharding. Its index of the parts, `.metadata`, is a pickle, which can run code when it is read; here
the index is JSON. DCP's planners and storage are called directly, because `dcp.save` warns at
every save of a process without a process group, and a thread cannot silence a warning safely.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import SavePlan, WriteItem
from torch.distributed.checkpoint.storage import WriteResult
from torch.nn.parallel import DistributedDataParallel

from koe.errors import ConfigError, ContractError
from training.checkpoint.manifest import MOMENT_FILES
from training.model.average import WeightAverage

INDEX = "tensors.json"
MODEL, OPTIMIZER = "model.", "optimizer."
AVERAGE = "ema."  # of the weights
MOMENTS = ("exp_avg", "exp_avg_sq", "step")

State = dict[str, torch.Tensor]
Plans = list[SavePlan]


@dataclass(frozen=True)
class _Place:
    """Where a part is stored, in the fields that DCP's reader expects."""

    relative_path: str
    offset: int
    length: int
    transform_descriptors: None = None


class _StagingPlanner(DefaultSavePlanner):
    """Plans with the tensors in use, and writes the copies that `stage` makes of them."""

    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._copies: dict[MetadataIndex, torch.Tensor] = {}

    def stage(self) -> None:
        for item in self.plan.items:
            part = super().resolve_data(item)
            assert isinstance(part, torch.Tensor)
            self._copies[item.index] = part.detach().to("cpu", copy=True)
        self.state_dict = {}

    def resolve_data(self, write_item: WriteItem) -> torch.Tensor:
        return self._copies[write_item.index]


class _Reader(FileSystemReader):
    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return _read_index(Path(self.path))


class StagedTensors:
    """The part of a state that this rank writes into `folder`, copied to the CPU.

    `state`: name to tensor or DTensor, the same names on all ranks. What several ranks hold is
    written, and copied, by one of them. `all_gather` gives every rank's plan to each.
    """

    def __init__(
        self, state: State, folder: Path, rank: int, all_gather: Callable[[SavePlan], Plans]
    ) -> None:
        self._rank = rank
        self._planner = _StagingPlanner()
        # Nothing needs to be copied ahead: everything is on the CPU already.
        self._storage = FileSystemWriter(folder, per_thread_copy_ahead=0)
        self._planner.set_up_planner(state, is_coordinator=rank == 0)
        self._storage.set_up_storage_writer(rank == 0)
        plans = all_gather(self._storage.prepare_local_plan(self._planner.create_local_plan()))
        # This depends on the plans alone, so every rank computes the same; `index` finds gaps.
        plans, self._metadata = self._planner.create_global_plan(plans)
        plans = self._storage.prepare_global_plan(plans)
        self._plan = self._planner.finish_plan(plans[rank])
        self._planner.stage()

    def write(self) -> list[WriteResult]:
        """Write and sync this rank's part; the results are for `index`.

        Moments get a file of their own, so that a checkpoint can be reduced to its weights.
        """
        prefix = self._plan.storage_data
        moments = [item for item in self._plan.items if item.index.fqn.startswith(OPTIMIZER)]
        weights = [item for item in self._plan.items if not item.index.fqn.startswith(OPTIMIZER)]
        results = self._write(weights, prefix)
        return results + self._write(
            moments, replace(prefix, prefix=f"__{self._rank}{MOMENT_FILES}")
        )

    def _write(self, items: list[WriteItem], prefix: Any) -> list[WriteResult]:
        if not items:
            return []
        plan = replace(self._plan, items=items, storage_data=prefix)
        return self._storage.write_data(plan, self._planner).wait()

    def index(self, results: list[WriteResult]) -> bytes:
        """Return the index of all parts that the ranks have written, as JSON.

        Raises: ContractError when one is missing.
        """
        places = {result.index: result.storage_data for result in results}
        tensors = {}
        for name, tensor in self._metadata.state_dict_metadata.items():
            assert isinstance(tensor, TensorStorageMetadata)
            parts = []
            for chunk in tensor.chunks:
                place = places.get(MetadataIndex(name, chunk.offsets))
                if place is None:
                    raise ContractError(
                        f"no rank has written the part of {name} at {list(chunk.offsets)}"
                    )
                parts.append(
                    {
                        "offsets": list(chunk.offsets),
                        "sizes": list(chunk.sizes),
                        "file": place.relative_path,
                        "offset": place.offset,
                        "length": place.length,
                    }
                )
            dtype = str(tensor.properties.dtype).removeprefix("torch.")
            tensors[name] = {"dtype": dtype, "size": list(tensor.size), "parts": parts}
        return json.dumps({"tensors": tensors}).encode()


def model_tensors(model: nn.Module) -> State:
    """Return the weights by their names in a checkpoint; a tied weight is stored once.

    Those that an adapter leaves as they are (see `training/adapter.py`) are not part of it.
    """
    if isinstance(model, DistributedDataParallel):
        model = model.module
    return {
        MODEL + name: weight for name, weight in model.named_parameters() if weight.requires_grad
    }


def average_tensors(average: WeightAverage) -> State:
    """Return the average of the weights by the names of its tensors in a checkpoint, not copied."""
    return {AVERAGE + name: tensor for name, tensor in average.tensors.items()}


def checkpoint_tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer, average: WeightAverage | None = None
) -> State:
    """Return all tensors of a checkpoint by name, not copied; missing AdamW moments are made."""
    tensors = model_tensors(model)
    names = {parameter: name.removeprefix(MODEL) for name, parameter in tensors.items()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            moments = optimizer.state[parameter]
            if not moments:  # as AdamW itself does at a parameter's first gradient
                on = parameter.device if group.get("fused") or group.get("capturable") else "cpu"
                moments["step"] = torch.zeros((), dtype=torch.float32, device=on)
                moments["exp_avg"] = torch.zeros_like(parameter.detach())
                moments["exp_avg_sq"] = torch.zeros_like(parameter.detach())
            for moment in MOMENTS:
                tensors[f"{OPTIMIZER}{names[parameter]}.{moment}"] = moments[moment]
    return tensors | (average_tensors(average) if average else {})


def has_average(folder: Path) -> bool:
    """Return whether the files in `folder` hold an average of the weights. Raises: ContractError."""
    return any(name.startswith(AVERAGE) for name in _read_index(folder).state_dict_metadata)


def read_tensors(
    state: State, folder: Path, prefix: str | tuple[str, ...], cast: bool = False
) -> None:
    """Fill the tensors of `state` in place, plain or DTensors, from the files in `folder`.

    `state` must name all tensors there that begin with `prefix`, or one of several; with `cast` it
    may have them in other dtypes. Raises: ConfigError when names, shapes or dtypes differ; ContractError for a
    corrupt index; OSError; pickle.UnpicklingError when a file holds more than tensors.
    """
    reader = _Reader(folder)
    metadata = reader.read_metadata()
    _require_fit(state, metadata, folder, prefix, cast)
    planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    planner.set_up_planner(state, metadata, is_coordinator=True)
    reader.set_up_storage_reader(metadata, is_coordinator=True)
    reader.read_data(planner.create_local_plan(), planner).wait()


def _require_fit(
    state: State, metadata: Metadata, folder: Path, prefix: str | tuple[str, ...], cast: bool
) -> None:
    saved = {
        name: tensor
        for name, tensor in metadata.state_dict_metadata.items()
        if name.startswith(prefix) and isinstance(tensor, TensorStorageMetadata)
    }
    differences = [f"it lacks {name}" for name in state if name not in saved]
    differences += [f"the model lacks {name}" for name in saved if name not in state]
    for name, tensor in saved.items():
        if name not in state:
            continue
        has, wants = (tensor.size, tensor.properties.dtype), (state[name].shape, state[name].dtype)
        if has[0] != wants[0] or (has[1] != wants[1] and not cast):
            differences.append(
                f"{name} is {list(has[0])} {has[1]} there, {list(wants[0])} {wants[1]} in the model"
            )
    if differences:
        raise ConfigError(
            f"checkpoint {folder} does not fit the model",
            f"{differences[0]} ({len(differences)} differences)",
            "Restore the model's settings, or train into another folder.",
        )


def _read_index(folder: Path) -> Metadata:
    path = folder / INDEX
    try:
        listed = json.loads(path.read_bytes())["tensors"]
        tensors: dict[str, Any] = {}
        places: dict[MetadataIndex, _Place] = {}
        for name, tensor in listed.items():
            chunks = []
            for part in tensor["parts"]:
                chunk = ChunkStorageMetadata(torch.Size(part["offsets"]), torch.Size(part["sizes"]))
                chunks.append(chunk)
                places[MetadataIndex(name, chunk.offsets)] = _place(part)
            properties = TensorProperties(dtype=_dtype(tensor["dtype"]))
            tensors[name] = TensorStorageMetadata(properties, torch.Size(tensor["size"]), chunks)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ContractError(f"{path} is not an index of tensors", repr(error)) from error
    return Metadata(tensors, storage_data=places)


def _place(part: dict[str, Any]) -> _Place:
    name = part["file"]
    if Path(name).name != name:
        raise ValueError(f"{name} is not in the checkpoint's folder")
    return _Place(name, int(part["offset"]), int(part["length"]))


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"{name} is not a dtype")
    return found
