"""What the sections of `pipeline.yaml` are built from: strict models, paths, a stage's workers.

A section is declared beside the code that it configures: `stages/settings.py`,
`stages/sources/settings.py`, `training/config.py`. `pipeline/config/models.py` only composes them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo

from koe.stage import Resources


class Strict(BaseModel):
    """A frozen section of the configuration that refuses unknown keys and numbers like nan.

    The docstring of a field is its description in `docs/config.md` and in the schema.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )


def _absolute(path: str, info: ValidationInfo) -> str:
    folder = _folder(info)
    if folder is None or "://" in path:
        return path
    return os.path.normpath(folder / Path(path).expanduser())


def _absolute_if_local(name: str, info: ValidationInfo) -> str:
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
    """GPUs that Ray reserves for each worker; may be a fraction."""

    @property
    def resources(self) -> Resources:
        return Resources(self.cpus_per_worker, self.gpus_per_worker, self.workers)

    def content(self) -> dict[str, Any]:
        """Return the keys that decide what a stage makes: all but its workers' resources."""
        return self.model_dump(mode="json", exclude=set(WorkerConfig.model_fields))
