"""Commands of the models: `koe score, encode, train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from koe.errors import ConfigError
from pipeline.cli.common import (
    DEFAULT_CONFIG,
    ConfigOption,
    JsonOption,
    SetOption,
    ending_early,
    err,
    out,
    print_json,
)
from pipeline.config.load import load_config
from stages.settings import EncodeConfig, ScoreConfig, Windows

_SCORE, _ENCODE = ScoreConfig(), EncodeConfig()


def score(
    files: Annotated[list[Path], typer.Argument(help="Audio files.")],
    windows: Annotated[
        Windows, typer.Option(help="Which windows of a clip are scored.")
    ] = _SCORE.windows,
    threshold: Annotated[
        float, typer.Option(help="Mark clips with a higher ovrl as kept.")
    ] = _ENCODE.threshold_ovrl,
    as_json: JsonOption = False,
) -> None:
    """Score audio files with DNSMOS."""
    from pipeline.jobs.single_files import score_paths

    _print_files(score_paths(files, windows, threshold), as_json)


def encode(
    files: Annotated[list[Path], typer.Argument(help="Audio files.")],
    config: ConfigOption = DEFAULT_CONFIG,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Encode audio files into SNAC codes.

    The codec is that of the configuration.
    """
    from pipeline.jobs.single_files import encode_paths

    _print_files(encode_paths(files, load_config(config, overrides)), as_json)


def train(
    config: ConfigOption = DEFAULT_CONFIG,
    resume: Annotated[bool, typer.Option(help="Continue from the newest checkpoint.")] = True,
    overrides: SetOption = None,
    replay: Annotated[
        str | None, typer.Option(help="Repeat the step of an event, as in E0003, and stop.")
    ] = None,
    report: Annotated[
        bool, typer.Option("--report", help="Write the report of the training run, and stop.")
    ] = False,
    find_rate: Annotated[
        bool, typer.Option("--find-rate", help="Test which learning rates are safe, and stop.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Train on the shards, on GPUs, CPUs or a Ray cluster."""
    from pipeline.jobs import train as job
    from pipeline.terminal import results as views

    settings = load_config(config, overrides)
    if report + bool(replay) + find_rate > 1:
        raise ConfigError(
            "--report, --replay and --find-rate exclude each other", remedy="Give one of them."
        )
    if as_json and not find_rate:
        raise ConfigError("--json is given without --find-rate", "only that prints JSON")
    if report:
        from training.report import write_report

        page = write_report(job.training_place(settings))
        out.print(f"wrote {page}", markup=False, highlight=False, soft_wrap=True)
    elif find_rate:
        findings, page = job.find_rate(settings, err)
        if as_json:
            print_json(findings)
        else:
            out.print(views.rate_view(findings))
            out.print(f"wrote {page}", markup=False, highlight=False, soft_wrap=True)
    elif replay:
        out.print(views.replay_view(job.replay_event(settings, replay)))
    else:
        with ending_early(config, overrides):
            result = job.run_training(settings, err, resume=resume)
        out.print(views.training_view(result.last_rows[-5:]))


def _print_files(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print_json(rows)
    else:
        from pipeline.terminal import results as views

        out.print(views.files_view(rows))
    if any("error" in row for row in rows):
        raise typer.Exit(1)
