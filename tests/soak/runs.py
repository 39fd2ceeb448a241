"""Starts runs, waits for their moments, kills them, and compares what they leave with a quiet run."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

from koe.remote import file_system
from tests.soak.child import start_koe

RUN = ("run", "--to", "interleave")
PATIENCE = 600.0  # seconds after which a run counts as hung, on however loaded a machine
_JUDGED = (".arrow", "shards/index.json", "shards/README.md")


class Differs(AssertionError):
    """What a run left is not what the undisturbed run left."""


@dataclass
class Case:
    """A configuration and the run directory that a series of starts works on."""

    config: Path
    run_dir: str
    folder: Path  # for logs
    options: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    sessions: list[int] = field(default_factory=list)  # of the commands started so far

    @property
    def log(self) -> Path:
        return self.folder / "koe.log"

    def start(self, *command: str, file_bytes: int | None = None) -> BaseProcess:
        """Start a command of `koe`, a run by default."""
        settings = [word for option in self.options for word in ("--set", option)]
        arguments = [*(command or RUN), "-c", str(self.config), "--set", f"run_dir={self.run_dir}"]
        environment = {"OMP_NUM_THREADS": "1"} | self.environment
        process = start_koe([*arguments, *settings], self.log, environment, file_bytes)
        self.sessions.append(process.pid or 0)
        return process

    def finish(self, *command: str) -> int:
        """Run a command to its end; return its exit code. Raises: Differs where it hangs."""
        return self.wait(self.start(*command))

    def wait(self, process: BaseProcess) -> int:
        process.join(PATIENCE)
        if process.exitcode is None:
            self.kill_all(process)
            raise Differs(f"a run did not end within {PATIENCE:g} s: {self.last_lines()}")
        return process.exitcode

    def kill_all(self, process: BaseProcess) -> None:
        """Kill a run and all that it started, as a machine that loses power does."""
        self.sweep_processes()
        process.join()

    def sweep_processes(self) -> None:
        """Kill all that this case started, and wait until it is gone."""
        while found := self.processes():
            for pid in found:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)

    def processes(self) -> dict[int, str]:
        """Map the ids of the living processes that this case started to their command lines."""
        found = {}
        for folder in Path("/proc").iterdir():
            if folder.name.isdecimal():
                with suppress(OSError):  # it has ended
                    state, _, _, session = _after_name(folder / "stat")[:4]
                    if int(session) in self.sessions and state != "Z":
                        line = (folder / "cmdline").read_bytes().replace(b"\0", b" ")
                        found[int(folder.name)] = line.decode(errors="replace").strip()
        return found

    def last_lines(self) -> str:
        text = self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""
        return " / ".join(text.splitlines()[-8:])


def _after_name(stat: Path) -> list[str]:
    """Return the fields of /proc/PID/stat from the state on; a name may hold spaces."""
    return stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()


def files_of(run_dir: str) -> dict[str, str]:
    """Map what a run is judged by to hashes: tables, the index and the card, by relative name."""
    system, base = file_system(run_dir)
    system.invalidate_cache()
    found = {}
    for path in system.find(base):
        name = path[len(base) :].strip("/")
        if name.endswith(_JUDGED):
            found[name] = hashlib.sha256(system.cat_file(path)).hexdigest()
    return found


@dataclass(frozen=True)
class Whole:
    """What the undisturbed run left: hashes of its files, and its statistics."""

    files: dict[str, str]
    stats: dict[str, object]


def stats_of(case: Case) -> dict[str, object]:
    """Return what `koe stats --json` prints."""
    case.log.unlink(missing_ok=True)
    if case.finish("stats", "--json"):
        raise Differs(f"koe stats failed: {case.last_lines()}")
    text = case.log.read_text(encoding="utf-8")
    return json.loads(text[text.index("{") :])


def quiet_run(case: Case) -> Whole:
    """Run a case undisturbed, and return what it left."""
    if code := case.finish():
        raise Differs(f"the undisturbed run ended with {code}: {case.last_lines()}")
    return Whole(files_of(case.run_dir), stats_of(case))


def require_same(case: Case, whole: Whole, thorough: bool = True) -> None:
    """Raise Differs unless a finished run left what the undisturbed run left, and `koe verify` passes."""
    found = files_of(case.run_dir)
    if names := _differing(found, whole.files):
        raise Differs(f"other bytes than the undisturbed run's: {', '.join(names[:5])}")
    if not thorough:
        return
    if case.finish("verify"):
        raise Differs(f"koe verify refuses the run: {case.last_lines()}")
    if names := _differing(stats_of(case), whole.stats):
        raise Differs(f"other statistics than the undisturbed run's: {', '.join(names)}")


def _differing(found: dict, expected: dict) -> list[str]:
    return sorted(key for key in {*found, *expected} if found.get(key) != expected.get(key))


def complete(case: Case, whole: Whole, thorough: bool = True) -> None:
    """Run until done, and compare. Raises: Differs, also where the run does not succeed."""
    case.log.unlink(missing_ok=True)
    if code := case.finish():
        raise Differs(f"the resumed run ended with {code}: {case.last_lines()}")
    require_same(case, whole, thorough)


def wait_until(
    reached: Callable[[], bool], process: BaseProcess, seconds: float = PATIENCE
) -> bool:
    """Wait for a moment of a run; return False where it ended before."""
    deadline = time.monotonic() + seconds
    while process.exitcode is None and time.monotonic() < deadline:
        if reached():
            return True
        time.sleep(0.004)
    return False


def count_files(folder: Path, suffixes: Iterable[str] = (".arrow", ".json", ".tmp")) -> int:
    """Count the files of a run that is being written; what vanishes meanwhile is not counted."""
    ends = tuple(suffixes)
    return sum(name.endswith(ends) for _, _, names in os.walk(folder) for name in names)
