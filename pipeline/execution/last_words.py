"""What a worker was doing when it died, kept in files of its machine that outlive it.

Nothing of it is written to the run directory, and nothing costs a system call per record. Every
worker maps a small file with the unit, the record and the memory it has used so far; Python's
faulthandler writes the traceback of a crash or of a missed deadline beside it, also where a library
holds the interpreter's lock.
"""

from __future__ import annotations

import contextlib
import faulthandler
import hashlib
import mmap
import os
import platform
import resource
import shutil
import signal
import tempfile
import threading
import uuid
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from koe import last_record
from koe.errors import StorageError
from koe.numbers import duration

_UNIT_BYTES, _MEMORY_BYTES = 4096, 64
_FILE_BYTES = _UNIT_BYTES + last_record.RECORD_BYTES + _MEMORY_BYTES
_MEMORY_SECONDS = 1.0  # between two looks at the memory used
_MAX_TEXT = 20_000  # characters of a traceback that are kept

# The words of faulthandler for the signals that it catches.
_SIGNALS = {
    "Segmentation fault": "SIGSEGV",
    "Bus error": "SIGBUS",
    "Aborted": "SIGABRT",
    "Floating point exception": "SIGFPE",
    "Illegal instruction": "SIGILL",
}
_TIMEOUT = "Timeout ("
DEADLINE = "its deadline"


class Doing(BaseModel):
    """The unit that a worker has begun; `deadline` in seconds, None for none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: str
    unit: str
    since: float  # time.time()
    deadline: float | None = None
    alone: bool = False  # no other unit was in flight in the run
    node: str = ""
    boot: str = ""  # which start of the machine this is


class Left(BaseModel):
    """What a dead worker left. `how` says how it ended, empty where nothing tells."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    doing: Doing | None
    how: str = ""
    last_record: str = ""
    peak_mb: float | None = None
    traceback: str = ""


@cache
def here() -> tuple[str, str]:
    """Name this machine, and which start of it this is (empty where the system does not say)."""
    with contextlib.suppress(OSError):
        return platform.node(), Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return platform.node(), ""


def folder_of(root: str) -> Path:
    """Return where the workers of a run directory leave their words on this machine.

    Raises: StorageError where somebody else has a folder of that name.
    """
    mine = Path(tempfile.gettempdir()) / f"koe-{os.getuid()}"
    try:
        mine.mkdir(mode=0o700, exist_ok=True)
        if mine.is_symlink() or mine.stat().st_uid != os.getuid():
            raise PermissionError("it belongs to another user")
        folder = mine / hashlib.sha256(root.encode()).hexdigest()[:16]
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"{mine} cannot be used for temporary files",
            error.strerror or str(error),
            "Remove it, or set TMPDIR to a folder of your own.",
        ) from error
    return folder


class LastWords:
    """The files of this process, one for what it does and one for the traceback of its end."""

    def __init__(self, root: str, catches: bool) -> None:
        """`catches`: whether crashes are written here, in place of where they were written before."""
        folder = folder_of(root)
        self.path = folder / f"{uuid.uuid4().hex}.unit"
        try:
            # Written in full: a mapped file with holes would end the process on a full disk.
            self.path.write_bytes(bytes(_FILE_BYTES))
            with self.path.open("r+b") as file:
                self._map = mmap.mmap(file.fileno(), _FILE_BYTES)
            self._text = self.path.with_suffix(".text").open("w+b", buffering=0)
        except OSError as error:
            raise StorageError(
                f"cannot write temporary files in {folder}", error.strerror or str(error)
            ) from error
        self._view = memoryview(self._map)
        last_record.keep_in(self._view[_UNIT_BYTES : _UNIT_BYTES + last_record.RECORD_BYTES])
        self._catches = catches
        if catches:
            faulthandler.enable(self._text)
        self._closed = threading.Event()
        threading.Thread(target=self._watch_memory, daemon=True).start()

    def begin(self, doing: Doing) -> None:
        """Note that a unit begins, and end this process when its deadline has passed."""
        last_record.began("")
        self._write(0, doing.model_dump_json().encode(), _UNIT_BYTES)
        if doing.deadline is not None:
            faulthandler.dump_traceback_later(doing.deadline, exit=True, file=self._text)

    def end(self) -> None:
        """Note that the unit ended."""
        faulthandler.cancel_dump_traceback_later()
        self._write(0, b"", _UNIT_BYTES)

    def close(self) -> None:
        """Remove the files: this process ends in order."""
        self._closed.set()
        last_record.keep_in(None)
        if self._catches:
            faulthandler.disable()
        self._text.close()
        self.path.unlink(missing_ok=True)
        self.path.with_suffix(".text").unlink(missing_ok=True)

    def _write(self, start: int, data: bytes, room: int) -> None:
        data = data[: room - 1] + b"\0"
        self._view[start : start + len(data)] = data

    def _watch_memory(self) -> None:
        while not self._closed.wait(_MEMORY_SECONDS):
            used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            self._write(_FILE_BYTES - _MEMORY_BYTES, str(used).encode(), _MEMORY_BYTES)


@contextlib.contextmanager
def doing(words: LastWords, what: Doing) -> Iterator[None]:
    """Keep the words of a worker up to date while it works on a unit."""
    words.begin(what)
    try:
        yield
    finally:
        words.end()


def read_left(path: Path) -> Left:
    """Read what a worker left in its file; nothing where the file is gone."""
    try:
        data = path.read_bytes()
        text = path.with_suffix(".text").read_text(errors="replace")
    except OSError:
        return Left(doing=None)
    unit, record, memory = (
        part.split(b"\0", 1)[0].decode(errors="replace")
        for part in (data[:_UNIT_BYTES], data[_UNIT_BYTES:-_MEMORY_BYTES], data[-_MEMORY_BYTES:])
    )
    try:
        found = Doing.model_validate_json(unit) if unit else None
    except ValidationError:  # cut off by its end
        found = None
    return Left(
        doing=found,
        how=_how(text, found),
        last_record=record,
        peak_mb=round(int(memory) / 1024, 1) if memory.isdecimal() else None,
        traceback=text[:_MAX_TEXT],
    )


def take_left(root: str) -> list[Left]:
    """Read and remove what the dead workers of earlier runs left on this machine."""
    folder = folder_of(root)
    found = [read_left(path) for path in sorted(folder.glob("*.unit"))]
    shutil.rmtree(folder, ignore_errors=True)
    return [left for left in found if left.doing is not None]


def _how(text: str, found: Doing | None) -> str:
    if _TIMEOUT in text:
        seconds = found.deadline if found and found.deadline else 0
        return f"was still running after {DEADLINE} of {duration(seconds)}"
    for words, name in _SIGNALS.items():
        if f"Fatal Python error: {words}" in text:
            return f"signal {name}"
    return text.splitlines()[0] if text.startswith("Fatal Python error") else ""


def how_it_exited(code: int) -> str:
    """Say what the exit code of a child process means."""
    if code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name
    hint = " (which the kernel's OOM killer sends)" if code == -signal.SIGKILL else ""
    return f"signal {name}{hint}"
