"""Fifty kills, faults on every request in turn, lost nodes, full disks and torn files.

    python -m tests.soak                                all parts, about 25 minutes on two cores
    python -m tests.soak --parts kills --kills 10       one part
    python -m tests.soak --parts requests --requests 1000   a fault on every single request

Every run goes to the shards, is disturbed, and resumed until it is done. Then its bytes must be those
of an undisturbed run, `koe verify` must pass and `koe stats` must say the same. The table at the end
says how often each fault was made and how the runs ended. Exit code 1 at any difference.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from rich.console import Console

from tests.corpus import write_corpus
from tests.s3_server import S3Server, s3_server
from tests.soak.files import fill_disks, overwrite_each, tear_each
from tests.soak.kills import KINDS, Kind, kill_and_resume
from tests.soak.nodes import lose_nodes
from tests.soak.requests import fault_each
from tests.soak.runs import Case, Whole, quiet_run
from tests.soak.table import Report

PARTS = ("kills", "requests", "nodes", "disks", "files")
MANY_UNITS = ("plan.clips_per_unit=2", "plan.samples_per_unit=5")  # more moments to be killed at
FEW_UNITS = ("plan.clips_per_unit=12", "plan.samples_per_unit=40")


@dataclass
class Soak:
    """The corpus, the server, and where runs are made; each run has a folder of its own."""

    folder: Path
    server: S3Server
    report: Report
    rng: random.Random
    numbers: count[int] = field(default_factory=lambda: count(1))

    def __post_init__(self) -> None:
        self.config = write_corpus(self.folder / "corpus")
        self.bucket = self.server.make_bucket("soak")

    def case(self, options: tuple[str, ...], on_s3: bool = False) -> Case:
        """Describe a new run with these settings."""
        number = f"run-{next(self.numbers):05d}"
        folder = self.folder / number
        folder.mkdir()
        run_dir = f"{self.bucket}/{number}" if on_s3 else str(folder / "run")
        environment = self.server.environment if on_s3 else {}
        return Case(self.config, run_dir, folder, options, environment)

    def quiet(self, options: tuple[str, ...]) -> tuple[Case, Whole]:
        case = self.case(options)
        return case, quiet_run(case)

    def kills(
        self, number: int, kinds: tuple[Kind, ...], options: tuple[str, ...], whole: Whole
    ) -> None:
        def make_case(kind: Kind) -> Case:
            return self.case(options + kind.options, kind.on_s3)

        kill_and_resume(self.report, kinds, number, make_case, whole, self.rng, self.server)

    def requests(self, number: int) -> int:
        _, whole = self.quiet(FEW_UNITS)
        return fault_each(
            self.report,
            self.server,
            lambda: self.case(FEW_UNITS, on_s3=True),
            whole,
            number,
            self.rng,
        )

    def nodes(self, number: int) -> None:
        _, whole = self.quiet(MANY_UNITS)
        lose_nodes(self.report, lambda ray: self.case(MANY_UNITS + ray), whole, number, self.rng)

    def disks(self, number: int) -> None:
        case, whole = self.quiet(FEW_UNITS)
        files = Path(case.run_dir).rglob("*")
        num_bytes = sum(path.stat().st_size for path in files if path.is_file())
        fill_disks(self.report, lambda: self.case(FEW_UNITS), whole, num_bytes, number, self.rng)

    def files(self) -> None:
        case, whole = self.quiet(FEW_UNITS)
        finished = Path(case.run_dir)
        tear_each(self.report, finished, lambda: self.case(FEW_UNITS), whole, self.rng)
        overwrite_each(self.report, finished, lambda: self.case(FEW_UNITS), self.rng)


def run_parts(soak: Soak, options: argparse.Namespace) -> None:
    """Run the parts that were asked for, in their order."""
    parts: dict[str, Callable[[], object]] = {
        "kills": lambda: soak.kills(options.kills, KINDS, MANY_UNITS, soak.quiet(MANY_UNITS)[1]),
        "requests": lambda: soak.requests(options.requests),
        "nodes": lambda: soak.nodes(options.nodes),
        "disks": lambda: soak.disks(options.disks),
        "files": soak.files,
    }
    for part in options.parts:
        parts[part]()


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--requests", type=int, default=100, help="runs with one failed request")
    parser.add_argument("--nodes", type=int, default=4, help="nodes that are lost")
    parser.add_argument("--disks", type=int, default=6, help="full disks of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the table here as well")
    options = parser.parse_args()
    for name in ("kills", "requests", "nodes", "disks"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1; --parts leaves a part out")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # end as after Ctrl-C
    console, began = Console(stderr=True), time.monotonic()
    report, folder = Report(console), Path(tempfile.mkdtemp(prefix="soak"))
    try:
        with s3_server() as server:
            soak = Soak(folder, server, report, random.Random(options.seed))
            run_parts(soak, options)
    finally:
        Console(width=120).print(report.table())
        minutes = round((time.monotonic() - began) / 60, 1)
        if options.json:
            report.write(options.json, seed=options.seed, minutes=minutes)
    if report.failed:
        console.print(f"runs differ, or nothing was tried; what they left is in {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
