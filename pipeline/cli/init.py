"""`koe init`: the first files of a new project."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from koe.atomic import atomically
from koe.errors import ConfigError, StorageError
from pipeline.cli.common import say

# With fewer clips than this, what the published ratio leaves out is missed: a million clips are
# about a quarter of a million rows, which the published 6.4 million rows of training read ten
# times and more.
LARGE_CORPUS_CLIPS = 1_000_000

# What differs in the file for a smaller corpus: as published, and instead.
_NATURAL = (
    ("# except `interleave.ratio`, and is written", "# and is written"),
    (
        """\
  ratio:                      # natural, or rows of text to rows of speech at places of the run
    - [0.0, {text: 2, speech: 1}]
    - [1.0, {text: 1, speech: 1}]
""",
        """\
  ratio: natural              # keeps all of the corpora; or rows of text to rows of speech at places
                              # of the run, which leaves out what does not fit, as in the published
                              # [[0.0, {text: 2, speech: 1}], [1.0, {text: 1, speech: 1}]]
""",
    ),
)


def init(
    folder: Annotated[Path, typer.Argument(help="The folder to write them into.")] = Path(),
    clips: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="About how many speech clips the corpus has: from "
            f"{LARGE_CORPUS_CLIPS:,} on, interleave.ratio is the published one; with fewer, or "
            "without this option, it is natural, which leaves out nothing.",
        ),
    ] = None,
) -> None:
    """Write a pipeline.yaml to start from, and its JSON schema."""
    from pipeline.config.reference import CONFIG, SCHEMA, packaged_config, schema_text

    config_text = packaged_config()
    if clips is None or clips < LARGE_CORPUS_CLIPS:
        config_text = with_natural_ratio(config_text)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file", remedy="Name the folder to write into.")
    texts = {folder / CONFIG: config_text, folder / SCHEMA: schema_text()}
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


def with_natural_ratio(published: str) -> str:
    """Return the text of the packaged pipeline.yaml with `interleave.ratio: natural`."""
    for before, after in _NATURAL:
        assert before in published, f"the packaged pipeline.yaml has no {before!r}"
        published = published.replace(before, after)
    return published
