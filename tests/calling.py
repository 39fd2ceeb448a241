"""Calls `koe` as its entry point does, or only has its real command line parse the arguments."""

from __future__ import annotations

import contextlib
import io
import sys
from unittest import mock

import click
import typer

from pipeline import cli
from pipeline.cli.app import app


def koe(*arguments: str) -> tuple[int, str, str]:
    """Run `koe` in this process; return the exit code, stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["koe", *arguments]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
    return code, out.getvalue(), err.getvalue()


def parse_koe(*arguments: str) -> None:
    """Parse arguments of `koe` and run nothing. Raises: what click raises for wrong use."""
    parse_click(typer.main.get_command(app), "koe", *arguments)


def parse_click(group: click.Command, name: str, *arguments: str) -> None:
    """Parse the arguments of a command of `group`; what it needs must be there."""
    assert hasattr(group, "resolve_command"), f"{name} has no commands"
    with group.make_context(name, list(arguments)) as context:
        name, command, rest = group.resolve_command(context, list(arguments))
        assert command is not None
        with command.make_context(name, rest, parent=context):
            pass
