"""Fuzzes readers, all or those that are named: `python -m tests.fuzz [READER ...] [--runs 10000]`.

Prints a table and ends with code 1 if anything was found: the input lies in the folder of `--out`, and
`python -m tests.fuzz.target READER INPUT` runs it again.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from tests.fuzz.readers import READERS

_SECONDS, _MEGABYTES = 60, 4096  # that one input may take
_TAPE_BYTES, _SEEDS = 48, 200
_DONE = re.compile(r"Done (\d+) runs")
_REACHED = re.compile(r"^#(\d+)\s", re.MULTILINE)
_ERROR = re.compile(r"^\s*(?:=== )?(\w*(?:Error|Exception|ERROR: libFuzzer)\b.*)$", re.MULTILINE)


class Result(NamedTuple):
    """How many inputs a reader was given, in how many seconds, and what was found; empty for nothing."""

    inputs: int
    seconds: float
    found: str


def fuzz(name: str, runs: int, out: Path, seed: int) -> Result:
    """Fuzz one reader in a process of its own, which begins with tapes made at random."""
    corpus, log = out / name / "corpus", out / name / "log.txt"
    corpus.mkdir(parents=True, exist_ok=True)
    for number in range(_SEEDS):
        tape = random.Random(f"{seed}{name}{number}").randbytes(4 + number % (_TAPE_BYTES - 4))
        (corpus / f"seed-{number}").write_bytes(tape)
    options = [
        f"-runs={runs}", f"-seed={seed}", f"-timeout={_SECONDS}", f"-rss_limit_mb={_MEGABYTES}",
        f"-max_len={_TAPE_BYTES}", f"-artifact_prefix={out / name}/", str(corpus),
    ]  # fmt: skip
    started = time.monotonic()
    with log.open("wb") as file:
        code = subprocess.run(
            [sys.executable, "-m", "tests.fuzz.target", name, *options],
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            check=False,
        ).returncode
    said = log.read_text("utf-8", "replace")
    numbers = _DONE.findall(said) or _REACHED.findall(said) or ["0"]
    found = "" if code == 0 else f"code {code}: {(_ERROR.findall(said) or [str(log)])[-1]:.200}"
    return Result(int(numbers[-1]), time.monotonic() - started, found)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("readers", nargs="*", metavar="READER", help=f"of {', '.join(READERS)}")
    parser.add_argument("--runs", type=int, default=10_000, help="inputs per reader")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("build/fuzz"))
    asked = parser.parse_args()
    if unknown := sorted(set(asked.readers) - READERS.keys()):
        parser.error(f"there is no reader {unknown[0]}")
    if asked.runs < 1:  # libFuzzer would not end
        parser.error("--runs must be at least 1")
    if find_spec("atheris") is None:
        parser.error(
            "atheris is not installed; `make fuzz` installs it, or `pip install -e '.[fuzz]'`"
        )
    print(f"{'reader':<16}{'inputs':>8}{'seconds':>9}  found")
    is_clean = True
    for name in asked.readers or READERS:
        result = fuzz(name, asked.runs, asked.out, asked.seed)
        is_clean = is_clean and not result.found
        line = f"{name:<16}{result.inputs:>8,}{result.seconds:>9.0f}  {result.found or 'nothing'}"
        print(line, flush=True)
    return 0 if is_clean else 1


if __name__ == "__main__":
    sys.exit(main())
