"""The command line. Exit codes: 0 done, 1 failed but resumable, 2 wrong use or config, 130 stopped."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import sys
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from pipeline.config import PipelineConfig
from pipeline.config_file import load_config
from pipeline.errors import ConfigError, KoeError
from pipeline.ledger import Ledger
from pipeline.plan import Plan, load_plan
from pipeline.storage import Storage

app = typer.Typer(
    name="koe",
    help="From speech clips and instruction samples to shards and a trained model.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # without boxes `koe --help` fits 24 lines
)
out = Console()
err = Console(stderr=True)

ConfigOption = Annotated[Path, typer.Option("--config", "-c", help="The run's configuration.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="Override a key: encode.threshold_ovrl=2.8")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON only, on stdout.")]
DEFAULT_CONFIG = Path("pipeline.yaml")


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(help="Where to write the corpus.")],
    clips: Annotated[int, typer.Option(min=24, help="Speech clips.")] = 300,
    samples: Annotated[int, typer.Option(min=20, help="Instruction samples.")] = 2000,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Write a small corpus of Japanese speech and text, and a config."""
    from pipeline.demo.corpus import write_demo
    from pipeline.progress import counting

    with counting(err, "synthesising speech") as report:
        written = write_demo(
            folder, num_clips=clips, num_instructions=samples, seed=seed, progress=report
        )
    err.print(written.describe(), markup=False)
    err.print(f"Next: koe run -c {folder / 'pipeline.yaml'}", markup=False)


@app.command()
def run(
    config: ConfigOption = DEFAULT_CONFIG,
    from_stage: Annotated[str | None, typer.Option("--from", help="First stage to run.")] = None,
    to_stage: Annotated[str | None, typer.Option("--to", help="Last stage to run.")] = None,
    only: Annotated[str | None, typer.Option("--only", help="The one stage to run.")] = None,
    overrides: SetOption = None,
    force: Annotated[
        list[str] | None, typer.Option("--force", help="Do a stage's units again.")
    ] = None,
) -> None:
    """Run the pipeline, or go on with it.

    Stages: ingest, score, encode, tokenize, interleave, train. What is done is not done again.
    """
    from pipeline import views
    from pipeline.job import run_job
    from pipeline.selection import select_stages
    from pipeline.stats import run_stats
    from pipeline.stats_view import stats_view

    settings = load_config(config, overrides)
    selection = select_stages(from_stage, to_stage, only, force or [])
    try:
        report = run_job(settings, selection, err)
    except KeyboardInterrupt:
        command = shlex.join(["koe", *sys.argv[1:]])
        err.print(
            f"koe: interrupted, what is done stays done. Go on with: {command}",
            style="yellow", markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip
        raise typer.Exit(130) from None
    plan, ledger = _opened(settings)
    out.print(stats_view(report.stats or run_stats(plan, ledger)))
    if report.training is not None:
        out.print(views.training_view(report.training.last_rows[-5:]))
    if report.failed:
        err.print(
            f"{len(report.failed)} units failed (listed above). Run the same command again: "
            "only they and what depends on them are done.",
            style="red",
        )
        raise typer.Exit(1)


@app.command()
def plan(
    config: ConfigOption = DEFAULT_CONFIG,
    clips: Annotated[
        int, typer.Option(help="Clips to measure every stage on; 0: only list the units.")
    ] = 200,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the units, and measure on a few clips what a run will cost."""
    from dataclasses import asdict

    from pipeline.estimate import estimate_run
    from pipeline.job import plan_run
    from pipeline.plan_view import estimate_view, plan_rows, plan_view

    settings = load_config(config, overrides)
    planned = plan_run(settings, err)
    estimates = []
    if clips:
        estimates = estimate_run(
            settings, planned, clips, lambda what: err.print(what, markup=False, style="dim")
        )
    if as_json:
        stages = [{**asdict(item), "per_second": item.rates()} for item in estimates]
        _print_json({"sources": plan_rows(planned), "stages": stages})
        return
    out.print(plan_view(planned))
    if estimates:
        cpus = settings.ray.num_cpus or os.cpu_count() or 1
        out.print(estimate_view(estimates, cpus))


@app.command()
def status(
    config: ConfigOption = DEFAULT_CONFIG,
    watch: Annotated[bool, typer.Option("--watch", help="Follow until all is done.")] = False,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between readings.")] = 2.0,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what is done and left of every stage, and the time left."""
    from pipeline.status import StatusReader, follow, status_table

    _, ledger = _opened(load_config(config, overrides))
    reader = StatusReader(ledger)
    if as_json:
        _print_json(reader.read())
    elif watch:
        with contextlib.suppress(KeyboardInterrupt):
            follow(reader, out, interval)
    else:
        out.print(status_table(reader.read()))


@app.command()
def stats(
    config: ConfigOption = DEFAULT_CONFIG,
    what_if: Annotated[
        str, typer.Option("--what-if", help="Thresholds of ovrl: clips and hours above each.")
    ] = "2.0,2.5,3.0,3.5",
    overrides: SetOption = None,
    as_json: JsonOption = False,
    html: Annotated[
        Path | None, typer.Option("--html", help="Write a page with charts and sound here.")
    ] = None,
    html_clips: Annotated[
        int, typer.Option(min=0, help="Best, worst and borderline clips on the page, of each.")
    ] = 6,
) -> None:
    """Show where every clip went, and what clips and shards are like."""
    from pipeline.progress import counting
    from pipeline.stats import full_stats
    from pipeline.stats_view import stats_view

    thresholds = _numbers("--what-if", what_if)
    settings = load_config(config, overrides)
    plan, ledger = _opened(settings)
    with counting(err, "reading units") as report:
        found = full_stats(plan, ledger, thresholds, report)
    if html is not None:
        from pipeline.report import write_data_report

        with counting(err, "decoding clips") as report:
            page = write_data_report(settings, plan, ledger, found, html, html_clips, report)
        err.print(f"wrote {page}", markup=False)
    if as_json:
        _print_json(found)
    else:
        out.print(stats_view(found))


@app.command()
def inspect(
    place: Annotated[str, typer.Argument(help="SHARD or SHARD:ROW, as train-00000:12.")],
    config: ConfigOption = DEFAULT_CONFIG,
    raw: Annotated[
        bool, typer.Option("--raw", help="Token ids, the special ones by name.")
    ] = False,
    wav: Annotated[
        Path | None, typer.Option("--wav", help="Write original and reconstruction here.")
    ] = None,
) -> None:
    """Decode a row: documents, text, codes, scores, source files."""
    from pipeline import views
    from pipeline.files import text_decoder, write_wavs
    from pipeline.inspection import find_shard, read_documents

    name, _, row = place.rpartition(":") if ":" in place else (place, "", "0")
    if not row.isdigit():
        raise ConfigError(
            f"{place} does not name a row", remedy="Write SHARD:ROW, as train-00000:12."
        )
    settings = load_config(config)
    ledger, shard = find_shard(name, Path(settings.run_dir))
    documents = read_documents(ledger, shard, int(row))
    decode = (lambda ids: "") if raw else text_decoder(settings)
    out.print(views.documents_view(documents, decode, raw))
    if wav is not None:
        for path in write_wavs(settings, documents, wav):
            err.print(f"wrote {path}", markup=False)


@app.command()
def verify(config: ConfigOption = DEFAULT_CONFIG, overrides: SetOption = None) -> None:
    """Read everything again and prove that it is right.

    Hashes, schemas, books, rows, grammar of the documents, and provenance.
    """
    from pipeline.verify import verify_run

    verify_run(
        *_opened(load_config(config, overrides)),
        on_proof=lambda proof: out.print(
            f"[green]proved[/] {proof.what} ({proof.count:,} {proof.unit})", highlight=False
        ),
    )


@app.command()
def score(
    files: Annotated[list[Path], typer.Argument(help="Audio files.")],
    windows: Annotated[str, typer.Option(help="reference | all")] = "reference",
    threshold: Annotated[float, typer.Option(help="keep: ovrl above it.")] = 2.5,
    as_json: JsonOption = False,
) -> None:
    """Score audio files with DNSMOS."""
    from pipeline.files import score_paths

    _print_files(score_paths(files, windows, threshold), as_json)


@app.command()
def encode(
    files: Annotated[list[Path], typer.Argument(help="Audio files.")],
    config: ConfigOption = DEFAULT_CONFIG,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Encode audio files to SNAC codes, with the config's codec."""
    from pipeline.files import encode_paths

    _print_files(encode_paths(files, load_config(config, overrides)), as_json)


@app.command()
def train(
    config: ConfigOption = DEFAULT_CONFIG,
    resume: Annotated[bool, typer.Option(help="Go on from the newest checkpoint.")] = True,
    overrides: SetOption = None,
    replay: Annotated[
        str | None, typer.Option(help="Run the step of an event (E0003) again, and stop.")
    ] = None,
    report: Annotated[
        bool, typer.Option("--report", help="Write the run's report.html, and stop.")
    ] = False,
) -> None:
    """Train on the shards: on local GPUs, CPUs, or a Ray cluster."""
    from pipeline import job, views

    settings = load_config(config, overrides)
    if report:
        from training.report import write_report

        out.print(f"wrote {write_report(job.training_folder(settings))}", markup=False)
    elif replay:
        out.print(views.replay_view(job.replay_event(settings, replay)))
    else:
        result = job.run_training(settings, err, resume=resume)
        out.print(views.training_view(result.last_rows[-5:]))


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(help="A new folder for model and tokenizer.")],
    config: ConfigOption = DEFAULT_CONFIG,
    checkpoint: Annotated[int | None, typer.Option(help="Its step; the newest if none.")] = None,
    dtype: Annotated[Literal["bf16", "fp32"], typer.Option(help="Of the weights.")] = "bf16",
    overrides: SetOption = None,
) -> None:
    """Write a checkpoint as a Hugging Face folder with its tokenizer."""
    from pipeline.job import export_model

    export_model(load_config(config, overrides), folder, checkpoint, dtype)
    err.print(f"wrote {folder}", markup=False)


def _opened(settings: PipelineConfig) -> tuple[Plan, Ledger]:
    storage = Storage(settings.run_dir)
    planned = load_plan(storage)
    if planned is None:
        raise ConfigError(
            f"{settings.run_dir} holds no run", remedy="Start one with `koe run -c CONFIG`."
        )
    return planned, Ledger(storage)


def _numbers(option: str, text: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or not all(map(isfinite, numbers)):
        raise ConfigError(f"{option} {text} is no list of numbers", remedy="Write 2.0,2.5,3.0.")
    return numbers


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def _print_files(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        _print_json(rows)
    else:
        from pipeline import views

        out.print(views.files_view(rows))
    if any("error" in row for row in rows):
        raise typer.Exit(1)


def main() -> None:
    """Entry point of `koe`: turns typed errors into one message and an exit code."""
    try:
        app()  # exits with 2 on wrong use and 130 on Ctrl-C by itself
    except ConfigError as error:
        err.print(f"koe: {error}", style="red", markup=False, soft_wrap=True)
        sys.exit(2)
    except KoeError as error:
        err.print(f"koe: {error}", style="red", markup=False, soft_wrap=True)
        sys.exit(1)
