"""Commands that write a run for other programs: `koe export, export-data`."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from pipeline.cli.common import DEFAULT_CONFIG, ConfigOption, SetOption, say
from pipeline.config.load import load_config


def export(
    folder: Annotated[
        str, typer.Argument(help="The new folder for model and tokenizer, or its URL.")
    ],
    config: ConfigOption = DEFAULT_CONFIG,
    step: Annotated[
        int | None,
        typer.Option(
            "--step", "--checkpoint", help="The step of the checkpoint; the newest by default."
        ),
    ] = None,
    best: Annotated[
        bool, typer.Option("--best", help="The checkpoint of the lowest validation loss.")
    ] = False,
    ema: Annotated[
        bool, typer.Option("--ema", help="The averaged weights; see train.ema_decay.")
    ] = False,
    dtype: Annotated[
        Literal["bf16", "fp32"], typer.Option(help="The data type of the weights.")
    ] = "bf16",
    adapter: Annotated[
        bool, typer.Option("--adapter", help="The adapter alone, for peft; see train.adapter.")
    ] = False,
    gguf: Annotated[bool, typer.Option("--gguf", help="Also write a file for llama.cpp.")] = False,
    push: Annotated[
        str | None,
        typer.Option(
            metavar="OWNER/NAME",
            help="Then upload the folder to the Hugging Face hub; a new repository is private.",
        ),
    ] = None,
    overrides: SetOption = None,
) -> None:
    """Write a checkpoint as a Hugging Face folder with its tokenizer."""
    from pipeline.jobs.exports import export_run

    settings = load_config(config, overrides)
    url = export_run(
        settings,
        folder,
        step,
        dtype,
        best=best,
        average=ema,
        adapter=adapter,
        gguf=gguf,
        repository=push,
    )
    say(f"wrote {folder}")
    if url is not None:
        say(f"uploaded it to {url}")


def export_data(
    folder: Annotated[
        str, typer.Argument(help="The new folder for the Parquet files, or its URL.")
    ],
    config: ConfigOption = DEFAULT_CONFIG,
    labels: Annotated[
        Literal["all", "response"] | None,
        typer.Option(help="Which tokens are labelled; by default those of train.loss_on."),
    ] = None,
    overrides: SetOption = None,
) -> None:
    """Write the documents of the shards with labels, for other trainers."""
    from pipeline.jobs.exports import export_data as write

    for split, count in write(load_config(config, overrides), folder, labels).items():
        say(f"wrote {count:,} documents of the split {split} to {folder}")
