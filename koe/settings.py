"""What the sections of `pipeline.yaml` are built from: strict models, paths, a stage's workers.

A section is declared beside the code that it configures: `stages/settings.py`,
`stages/sources/settings.py`, `training/config.py`. `pipeline/config/models.py` only composes them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from koe.secrets import without_credentials
from koe.stage import Resources

_SMALLEST_PART = 1e-4  # Ray counts resources in ten-thousandths


class Strict(BaseModel):
    """A frozen section of the configuration that refuses unknown keys and numbers like nan.

    The docstring of a field is its description in `docs/config.md` and in the schema.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )


def _absolute(path: str, info: ValidationInfo) -> str:
    if not path.strip():
        raise ValueError("a path must not be empty")
    without_credentials(path)
    folder = _folder(info)
    if folder is None or "://" in path:
        return path
    return os.path.normpath(folder / Path(path).expanduser())


def _absolute_if_local(name: str, info: ValidationInfo) -> str:
    without_credentials(name)
    folder = _folder(info)
    if folder is None:
        return name
    path = folder / Path(name).expanduser()
    is_local = path.exists() or name.startswith((".", "/", "~"))
    return os.path.normpath(path) if is_local else name


def _folder(info: ValidationInfo) -> Path | None:
    """Return the folder that relative paths start from; None where no file is being read."""
    return (info.context or {}).get("folder")


# Validated with `context={"folder": Path}` both become absolute, so that a worker's working
# directory does not matter. A name is that of a package or of a model on the Hugging Face hub; where
# a field's default is a name, `validate_default=True` lets a folder beside the file stand for it.
PathOrUrl = Annotated[str, AfterValidator(_absolute)]
PathOrName = Annotated[str, AfterValidator(_absolute_if_local)]


class WorkerConfig(Strict):
    """Resources of one stage's workers."""

    workers: int | None = Field(default=Resources.workers, ge=1)
    """Workers of this stage; null: Ray grows the pool while the stage is the bottleneck."""
    cpus_per_worker: float = Field(default=Resources.cpus, gt=0)
    """CPUs that Ray reserves for each worker; may be a fraction."""
    gpus_per_worker: float = Field(default=Resources.gpus, ge=0)
    """GPUs that Ray reserves for each worker, which sees no others: a part of one, such as 0.25 for four
    workers on a GPU, or a whole number. Of a stage on CUDA, 0 stands for one GPU, or for an equal part
    where there are fewer GPUs than such stages."""
    memory_gigabytes_per_worker: float = Field(default=1.0, ge=0)
    """Memory that Ray reserves for each worker, in gigabytes (10^9 bytes); 0: none. The default is
    what one was measured to need at its most, with some room."""
    resources_per_worker: dict[str, Annotated[float, Field(gt=0)]] = Field(default={})
    """Other resources that Ray reserves for each worker, by the names given to `ray start
    --resources`: the stage then runs on the nodes that have them."""

    @field_validator("gpus_per_worker")
    @classmethod
    def _as_ray_reserves(cls, found: float) -> float:
        if found > 1 and found != int(found):
            raise ValueError(f"{found:g} is neither a part of one GPU nor a whole number of GPUs")
        if 0 < found < _SMALLEST_PART:
            raise ValueError(f"{found:g} of a GPU: Ray reserves no part below {_SMALLEST_PART:g}")
        return found

    @field_validator("resources_per_worker")
    @classmethod
    def _not_those_with_a_key(cls, found: dict[str, float]) -> dict[str, float]:
        keys = {"CPU": "cpus_per_worker", "GPU": "gpus_per_worker",
                "memory": "memory_gigabytes_per_worker"}  # fmt: skip
        for name in found:
            if name in keys:
                raise ValueError(f"{name} has a key of its own, {keys[name]}")
        return found

    @property
    def resources(self) -> Resources:
        return self.resources_with(gpu=False)

    def resources_with(self, gpu: bool) -> Resources:
        """Return what a worker needs; with `gpu` it computes on one, and is given one by default."""
        by_default = gpu and not self.gpus_per_worker
        return Resources(
            cpus=self.cpus_per_worker,
            gpus=1.0 if by_default else self.gpus_per_worker,
            shares_gpu=by_default,
            workers=self.workers,
            memory=self.memory_gigabytes_per_worker * 1e9,
            others=self.resources_per_worker,
        )

    def with_gpus(self, gpus: float) -> Self:
        """Return the section with a said part of a GPU for each worker."""
        return self.model_copy(update={"gpus_per_worker": gpus})

    def content(self) -> dict[str, Any]:
        """Return the keys that decide what a stage makes: all but its workers' resources."""
        return self.model_dump(mode="json", exclude=set(WorkerConfig.model_fields))
