"""`koe init`: the first files of a project of one's own."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from koe.atomic import atomically
from koe.errors import ConfigError, StorageError
from pipeline.cli.common import err


def init(
    folder: Annotated[Path, typer.Argument(help="Where to write them.")] = Path(),
) -> None:
    """Write a pipeline.yaml to start from, and its JSON schema."""
    from pipeline.config.reference import CONFIG, SCHEMA, packaged_config, schema_text

    texts = {folder / CONFIG: packaged_config(), folder / SCHEMA: schema_text()}
    if present := [str(path) for path in texts if path.exists()]:
        raise ConfigError(
            f"{' and '.join(present)} already {'exists' if len(present) == 1 else 'exist'}",
            "koe init does not overwrite files",
            "Name another folder, or remove what is there first.",
        )
    for path, text in texts.items():
        try:
            with atomically(path) as file:
                file.write(text.encode())
        except OSError as error:
            raise StorageError(
                f"{path} cannot be written",
                error.strerror or str(error),
                "Name a folder that can be made and written to.",
            ) from error
        err.print(f"wrote {path}", markup=False, highlight=False, soft_wrap=True)
    config = str(folder / CONFIG)
    steps = {
        f"edit {shlex.quote(config)}": "name your sources, and the folder of the codec's weights",
        shlex.join(["koe", "plan", "-c", config]): "list the units, and estimate what a run costs",
        shlex.join(["koe", "run", "-c", config]): "run the pipeline",
    }
    err.print("Next:", markup=False)
    for command, purpose in steps.items():
        err.print(f"  {command}    # {purpose}", markup=False, highlight=False, soft_wrap=True)
