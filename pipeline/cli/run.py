"""Commands that make a run: `koe demo, run, plan, status`."""

from __future__ import annotations

import contextlib
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from koe.dataflow import SET_ASIDE as SET_ASIDE_FILE
from koe.dataflow import stage_names
from koe.errors import ConfigError
from koe.numbers import counted
from pipeline.cli.common import (
    DEFAULT_CONFIG,
    ConfigOption,
    JsonOption,
    SetOption,
    ending_early,
    err,
    open_run,
    out,
    print_json,
    say,
)
from pipeline.config.load import load_config
from pipeline.execution.runner import SET_ASIDE, UnitResult
from pipeline.execution.selection import select_stages
from pipeline.run_dir.set_aside import RETRY


def demo(
    folder: Annotated[Path, typer.Argument(help="The folder to write the corpus into.")],
    clips: Annotated[
        int | None,
        typer.Option(min=24, help="Number of speech clips; by default all that the package holds."),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(min=20, help="Number of instruction samples; by default all of the package."),
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Seed that decides how strongly clips are degraded.")
    ] = 0,
) -> None:
    """Write a small corpus of real Japanese data, and a configuration."""
    from pipeline.demo.corpus import write_demo

    written = write_demo(folder, num_clips=clips, num_samples=samples, seed=seed)
    say(written.describe())
    command = shlex.join(["koe", "run", "-c", str(folder / "pipeline.yaml")])
    say(f"Next: {command}")


def _stages(incomplete: str) -> list[str]:
    return [stage for stage in stage_names() if stage.startswith(incomplete)]


def run(
    config: ConfigOption = DEFAULT_CONFIG,
    from_stage: Annotated[
        str | None,
        typer.Option(
            "--from",
            autocompletion=_stages,
            help=f"The first stage to run; the stages are {', '.join(stage_names())}.",
        ),
    ] = None,
    to_stage: Annotated[
        str | None, typer.Option("--to", autocompletion=_stages, help="The last stage to run.")
    ] = None,
    only: Annotated[
        str | None, typer.Option("--only", autocompletion=_stages, help="The only stage to run.")
    ] = None,
    overrides: SetOption = None,
    force: Annotated[
        list[str] | None,
        typer.Option("--force", autocompletion=_stages, help="Do all units of this stage again."),
    ] = None,
    retry_set_aside: Annotated[
        bool,
        typer.Option(
            "--retry-set-aside",
            help="Try the units again that are set aside, and the records found to end their worker.",
        ),
    ] = False,
    find_poison: Annotated[
        bool,
        typer.Option(
            "--find-poison",
            help="First find the records that end their worker in the units that are set aside. "
            "Just these are quarantined, and the rest of the unit is done.",
        ),
    ] = False,
    unit: Annotated[
        str | None, typer.Option(metavar="UNIT", help="Search only this unit (--find-poison).")
    ] = None,
) -> None:
    """Run the pipeline, or resume it.

    Finished work is not done again.
    """
    from pipeline.jobs.run import run_job
    from pipeline.stats import run_stats
    from pipeline.terminal import results as views
    from pipeline.terminal.stats import stats_view

    settings = load_config(config, overrides)
    if find_poison and retry_set_aside:
        raise ConfigError("--find-poison and --retry-set-aside exclude each other")
    if unit is not None and not find_poison:
        raise ConfigError("--unit names the unit to search: give --find-poison as well")
    selection = select_stages(from_stage, to_stage, only, force or [])
    selection = replace(selection, find_poison=find_poison, unit=unit)
    try:
        with ending_early(config, overrides):
            report = run_job(settings, selection, err, retry_set_aside)
    except KeyboardInterrupt:
        command = shlex.join(["koe", *sys.argv[1:]])
        say(f"koe: interrupted. Finished work is kept; resume with: {command}", "yellow")
        raise typer.Exit(130) from None
    out.print(stats_view(report.stats or run_stats(*open_run(settings))))
    if report.training is not None:
        out.print(views.training_view(report.training.last_rows[-5:]))
    if report.failed:
        for line in _left_undone(report.failed):
            say(line, "red")
        raise typer.Exit(1)


def _left_undone(results: list[UnitResult]) -> list[str]:
    """Say which units a run did not do, and what is to be done about each kind."""
    aside = [result for result in results if result.status == SET_ASIDE]
    failed, lines = len(results) - len(aside), []
    if failed:
        lines.append(
            f"{counted(failed, 'unit')} failed; why, and what to do about it, stands above. Run again "
            "after that: only these units are done, and what depends on them."
        )
    if aside:
        names = ", ".join(f"{result.stage} {result.unit}" for result in aside)
        folder = f"{aside[0].stage}/{aside[0].unit}{SET_ASIDE_FILE}"
        lines.append(
            f"Set aside, because every attempt ended its worker: {names}. What is known lies in "
            f"{folder} of the run directory. `{RETRY}` tries again, and "
            "`koe run --find-poison` finds the records that do it and leaves out just these."
        )
    return lines


def plan(
    config: ConfigOption = DEFAULT_CONFIG,
    clips: Annotated[
        int, typer.Option(min=0, help="Measure on at most this many clips; 0 only lists the units.")
    ] = 200,
    seconds: Annotated[
        float, typer.Option(min=1, help="Measure for about this long, in seconds.")
    ] = 30,
    cores: Annotated[
        float | None,
        typer.Option(min=1, help="CPU cores of the machine; by default Ray's, or this machine's."),
    ] = None,
    gpus: Annotated[
        float | None,
        typer.Option(min=0, help="GPUs like this machine's; by default Ray's, or this machine's."),
    ] = None,
    read_megabytes: Annotated[
        float | None,
        typer.Option(
            "--read-megabytes", min=0.001, help="MB of audio that can be read a second, if known."
        ),
    ] = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the units, and estimate from a few clips what a run costs, and what a machine lacks for it."""
    from dataclasses import asdict

    from pipeline.estimate import estimate_run, on_machine_of
    from pipeline.estimate.hardware import machine_for
    from pipeline.jobs.run import plan_run
    from pipeline.run_dir.lock import run_lock
    from pipeline.run_dir.storage import Storage
    from pipeline.terminal.machine import machine_json, machine_view
    from pipeline.terminal.plan import estimate_view, plan_rows, plan_view

    settings = load_config(config, overrides)
    reading = None if read_megabytes is None else 1e6 * read_megabytes
    machine = machine_for(settings, cores, gpus, reading) if clips else None
    with run_lock(Storage(settings.run_dir), lambda text: say(text, "yellow")) as storage:
        planned = plan_run(settings, err, storage)
    estimates = []
    if clips:
        estimates = estimate_run(
            settings, planned, clips, lambda what: say(what, "dim"), seconds=seconds
        )
    if as_json:
        stages = [{**asdict(item), "per_second": item.rates()} for item in estimates]
        found = {"sources": plan_rows(planned), "stages": stages}
        if machine:
            found["machine"] = machine_json(on_machine_of(estimates, machine), machine)
        print_json(found)
        return
    out.print(plan_view(planned))
    if estimates and machine:
        out.print(estimate_view(estimates))
        out.print(machine_view(on_machine_of(estimates, machine), machine))


def status(
    config: ConfigOption = DEFAULT_CONFIG,
    watch: Annotated[
        bool, typer.Option("--watch", help="Keep showing it until the run is done.")
    ] = False,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between two readings.")] = 2.0,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show how far each stage is, and how much time is left."""
    from pipeline.execution.status import StatusReader, follow, status_json, status_table

    _, ledger = open_run(load_config(config, overrides))
    reader = StatusReader(ledger)
    if as_json:
        print_json(status_json(reader.read()))
    elif watch:
        with contextlib.suppress(KeyboardInterrupt):
            follow(reader, out, interval)
    else:
        out.print(status_table(reader.read()))
