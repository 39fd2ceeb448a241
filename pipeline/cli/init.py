"""`koe init`: the first files of a new project."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from koe.atomic import atomically
from koe.errors import ConfigError, StorageError
from pipeline.cli.common import say


def init(
    folder: Annotated[Path, typer.Argument(help="The folder to write them into.")] = Path(),
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
                "Name a folder that can be created and written to.",
            ) from error
        say(f"wrote {path}")
    config = str(folder / CONFIG)
    steps = {
        f"edit {shlex.quote(config)}": "name your sources, and the folder of the codec's weights",
        shlex.join(["koe", "plan", "-c", config]): "list the units, and estimate what a run costs",
        shlex.join(["koe", "run", "-c", config]): "run the pipeline",
    }
    say("Next:")
    for command, purpose in steps.items():
        say(f"  {command}    # {purpose}")
