"""Runs `koe` in a process of its own that has imported everything already.

A server process imports this module once, and every run is a fork of it: fifty runs then cost what
they do, not fifty times the imports and the tokenizer's conversion.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import cast
from unittest import mock

from pipeline import cli
from pipeline.cli import app
from pipeline.jobs import assembly, interleave, run, speech_samples
from pipeline.run_dir import lock
from pipeline.stats import full_stats
from pipeline.verify import verify_run
from stages.text import tokenizer
from tests.s3_server import set_fsspec_endpoint

WARM = (app, interleave, run, full_stats, verify_run)  # what a run would import while it goes on

# A killed run's lock on S3 is free after 20 s instead of 120: a soak kills there often.
_PACE = replace(lock.PACE, beat=1.0, give_up=15.0, stale=20.0)

_llama = tokenizer._from_package()
_stripped = tokenizer.text_tokenizer(_llama)


def start_koe(
    arguments: list[str], log: Path, environment: dict[str, str], file_bytes: int | None = None
) -> BaseProcess:
    """Start `koe` with its output in `log`, in a session of its own.

    `file_bytes` is the largest file that it may write.
    """
    context = cast(ForkServerContext, multiprocessing.get_context("forkserver"))
    context.set_forkserver_preload(["tests.soak.child"])
    process = context.Process(target=_run, args=(arguments, str(log), environment, file_bytes))
    process.start()
    return process


def _run(
    arguments: list[str], log: str, environment: dict[str, str], file_bytes: int | None
) -> None:
    os.setsid()
    os.environ.update(environment)
    set_fsspec_endpoint(environment.get("FSSPEC_S3_ENDPOINT_URL"))
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    _print_to(file)
    with (
        nullcontext() if file_bytes is None else _limited(file, file_bytes),
        mock.patch.object(tokenizer, "_from_package", return_value=_llama),
        mock.patch.object(assembly, "text_tokenizer", return_value=_stripped),
        mock.patch.object(speech_samples, "text_tokenizer", return_value=_stripped),
        mock.patch.object(lock, "PACE", _PACE),
        mock.patch.object(sys, "argv", ["koe", *arguments]),
    ):
        cli.main()


def _print_to(file: int) -> None:
    for output in (1, 2):
        os.dup2(file, output)


@contextmanager
def _limited(log: int, file_bytes: int) -> Iterator[None]:
    """Bound the size of files, but not of the log, which another process writes meanwhile."""
    writer = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=log)
    assert writer.stdin is not None
    _print_to(writer.stdin.fileno())
    writer.stdin.close()
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        _print_to(log)
        writer.wait()
