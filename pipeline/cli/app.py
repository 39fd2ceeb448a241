"""The commands as one program, and what becomes of their errors."""

from __future__ import annotations

import errno
import io
import os
import sys
import traceback
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from koe.errors import ConfigError, KoeError, Stopped
from koe.printable import escape_control_characters
from koe.secrets import scrub
from pipeline.cli import export, init, look, model, run
from pipeline.cli.common import say


class _Commands(TyperGroup):
    def get_params(self, ctx: Any) -> list[Any]:
        """Return the options, with a text of one line where typer's own takes two."""
        found: list[Any] = super().get_params(ctx)
        for option in found:
            if option.name == "show_completion":
                option.help = "Show completion for the current shell."
        return found

    def invoke(self, ctx: Any) -> Any:
        """Run a command; typer ends an interrupted one without a message."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            say("koe: interrupted.", "yellow")
            raise typer.Exit(130) from None


app = typer.Typer(
    name="koe",
    cls=_Commands,
    help="Turn speech clips and instruction samples into shards and a trained model.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # without boxes `koe --help` fits 24 lines
)
for _command in (  # in the order of `koe --help`
    init.init,
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
    export.export,
    export.export_data,
):
    app.command(_command.__name__.replace("_", "-"))(_command)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"koe {version('koe-pretrain')}")
        raise typer.Exit


@app.callback()
def _options(
    show_version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version of koe."
        ),
    ] = False,
) -> None:
    pass


_PRINTERS = ("rich", "typer", "click")  # which print for koe
# What writing to stdout fails with.
_OUTPUT_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG, errno.EPIPE)


def run_app() -> None:
    """Run the command that the arguments name, and turn typed errors into one message and an exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(
            stream, io.TextIOWrapper
        ):  # not every terminal's encoding has every character
            stream.reconfigure(errors="backslashreplace")
    sys.excepthook = _print_traceback
    try:
        try:
            app()  # exits with 2 on wrong use and 130 on Ctrl-C by itself
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # here, because a failure while Python ends is never reported
    except ConfigError as error:
        _print_error(str(error))
        sys.exit(2)
    except KoeError as error:
        _print_error(str(error))
        sys.exit(error.exit_code if isinstance(error, Stopped) else 1)
    except OSError as error:
        if error.errno not in _OUTPUT_FAULTS or not _is_of_output(error):
            raise
        if error.errno != errno.EPIPE:  # a reader that has seen enough, such as `head`
            _print_error(f"the output cannot be written: {error.strerror}.")
        # otherwise Python tries to write the rest once more as it ends, and fails again
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)


def _is_of_output(error: OSError) -> bool:
    """Tell whether an error was raised where text is printed; a file that koe writes fails elsewhere."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    module = frame.f_globals.get("__name__", "")
    return module.partition(".")[0] in _PRINTERS or module.startswith("pipeline.cli.")


def _print_traceback(kind: type[BaseException], error: BaseException, place: Any) -> None:
    """Print what Python would for an error that nobody expected, without credentials."""
    sys.stderr.write(scrub("".join(traceback.format_exception(kind, error, place))))


def _print_error(what: str) -> None:
    say(f"koe: {escape_control_characters(what)}", "red")
