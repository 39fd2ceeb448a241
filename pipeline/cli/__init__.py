"""The command line. Exit codes: 0 done, 1 failed but resumable, 2 wrong use or config, 130 stopped."""

from __future__ import annotations

import sys

import typer

from pipeline.cli import look, model, run
from pipeline.cli.common import err
from pipeline.errors import ConfigError, KoeError

app = typer.Typer(
    name="koe",
    help="From speech clips and instruction samples to shards and a trained model.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # without boxes `koe --help` fits 24 lines
)
for _command in (  # in the order of `koe --help`
    run.demo,
    run.run,
    run.plan,
    run.status,
    look.stats,
    look.inspect,
    look.verify,
    model.score,
    model.encode,
    model.train,
    model.export,
):
    app.command()(_command)


def main() -> None:
    """Run `koe`, and turn typed errors into one message and an exit code."""
    try:
        app()  # exits with 2 on wrong use and 130 on Ctrl-C by itself
    except ConfigError as error:
        err.print(f"koe: {error}", style="red", markup=False, soft_wrap=True)
        sys.exit(2)
    except KoeError as error:
        err.print(f"koe: {error}", style="red", markup=False, soft_wrap=True)
        sys.exit(1)
