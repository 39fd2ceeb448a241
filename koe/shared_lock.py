"""A run directory on an object store belongs to one run at a time: a lock with a heartbeat.

The lock names its holder and is written again every BEAT seconds. One that was not written for
STALE seconds is taken over by a compare-and-swap, so that of several takers one wins. A holder that
could not write it for GIVE_UP seconds, which is earlier, counts itself as no holder and writes nothing
more; a worker asks for the lock itself before it writes.
"""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from koe.cells import Cell, Seen
from koe.errors import ConfigError, StorageError
from koe.store_errors import storage_errors

_TRIES = 5  # to take a lock that others take and leave at the same time


@dataclass(frozen=True)
class Pace:
    """Seconds between heartbeats, until a holder gives up, and until others take over."""

    beat: float = 20.0
    give_up: float = 90.0
    stale: float = 120.0


PACE = Pace()


@dataclass
class Held:
    """The lock of this process; `tag` is that of its newest heartbeat."""

    cell: Cell
    root: str
    holder: dict[str, Any]
    pace: Pace
    tag: str
    beaten: float  # when the newest heartbeat was begun, monotonic
    is_atomic: bool = True  # whether the store itself keeps two runs apart
    lost: str = ""  # why this process holds it no more
    _number: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    @property
    def token(self) -> str:
        return self.holder["token"]

    def require(self) -> None:
        """Raise StorageError where the lock is no longer this run's."""
        if not self.lost and time.monotonic() - self.beaten > self.pace.give_up:
            self.lost = f"its lock could not be renewed for {self.pace.give_up:g} seconds"
        if self.lost:
            raise lost(self.root, self.lost)

    def beat_until_stopped(self) -> None:
        while not self.lost and not self._stop.wait(self.pace.beat):
            begun = time.monotonic()
            with suppress(Exception):  # tried again; `require` ends the run after a while
                self._beat(begun)

    def _beat(self, begun: float) -> None:
        self._number += 1
        data = _written({**self.holder, "beat": self._number})
        tag = self.cell.swap(data, self.tag)
        if tag is None:
            # an answer that was lost is asked for again, and refused: the swap was made before
            seen = self.cell.read()
            if seen is None or _holder(seen).get("token") != self.token:
                self.lost = f"its lock was taken over: {describe(_holder(seen) if seen else {})}"
                return
            tag = seen.tag
        self.tag, self.beaten = tag, begun

    def release(self) -> None:
        """Stop the heartbeat, and remove the lock where it is surely this run's."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(self.pace.give_up)
        if not self.lost and time.monotonic() - self.beaten < self.pace.give_up:
            self.cell.remove()

    def start(self) -> Held:
        self._thread = threading.Thread(target=self.beat_until_stopped, daemon=True)
        self._thread.start()
        return self


def take(cell: Cell, root: str, holder: dict[str, Any], pace: Pace = PACE) -> Held:
    """Take the lock and keep it alive.

    Raises: ConfigError naming who holds it; StorageError.
    """
    holder = {**holder, "token": uuid.uuid4().hex, "where": _where()}
    data = _written(holder)
    with storage_errors(f"cannot lock {root}"):
        for _ in range(_TRIES):
            begun = time.monotonic()
            tag, seen = cell.create(data), None
            if tag is None:
                seen = cell.read()
                if seen is None:  # left just now
                    continue
                if _holder(seen).get("token") == holder["token"]:  # the answer to `create` was lost
                    tag = seen.tag
                elif _is_stale(cell, seen, pace):
                    begun = time.monotonic()
                    tag = cell.swap(data, seen.tag)
                else:
                    raise _in_use(root, _holder(seen), pace)
            if tag is not None:
                is_atomic = cell.is_atomic(data, tag)
                return Held(cell, root, holder, pace, tag, begun, is_atomic).start()
    raise _in_use(root, {}, pace)


def _is_stale(cell: Cell, seen: Seen, pace: Pace) -> bool:
    """Tell whether nobody keeps a lock alive; where the store does not tell its age, watch it."""
    if _is_dead(_holder(seen)):
        return True
    if seen.age is not None:
        return seen.age > pace.stale
    until = time.monotonic() + pace.stale
    while time.monotonic() < until:
        time.sleep(min(1.0, pace.beat / 4))
        now = cell.read()
        if now is None or now.tag != seen.tag:
            return False
    return True


def _where() -> str:
    """Name the running system and the space of process numbers that this process is in."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _is_dead(holder: dict[str, Any]) -> bool:
    """Tell whether the holder was a process of this system and has ended."""
    if not _where() or holder.get("where") != _where():
        return False
    return not Path(f"/proc/{holder['process']}").exists()


def _written(holder: dict[str, Any]) -> bytes:
    return json.dumps(holder, ensure_ascii=False).encode()


def _holder(seen: Seen) -> dict[str, Any]:
    try:
        holder = json.loads(seen.data)
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}


def describe(holder: dict[str, Any]) -> str:
    """Say who holds a lock."""
    try:
        return (
            f"`{holder['command']}`, process {holder['process']} on {holder['machine']}, has been "
            f"using it since {holder['since']}"
        )
    except KeyError:  # it has not written its name yet, or was removed
        return "another process has just begun to work on it"


def _in_use(root: str, holder: dict[str, Any], pace: Pace) -> ConfigError:
    return ConfigError(
        f"{root} is in use",
        describe(holder),
        "Wait until it is done (`koe status --watch`), or stop it. If it was killed on another "
        f"machine, its lock is free {pace.stale:g} seconds later.",
    )


def lost(root: str, why: str) -> StorageError:
    """Say that a run no longer holds its lock."""
    return StorageError(
        f"{root} is no longer this run's",
        why,
        "Nothing more was written. When no other run is using it, run the same command again.",
    )


@dataclass
class Lease:
    """A worker's proof that the run that it works for still holds the lock, asked of the store.

    `cell` opens the lock. One answer is good for as long as nobody may take the lock over.
    """

    cell: Callable[[], Cell]
    root: str
    token: str
    pace: Pace = PACE
    _until: float = 0.0

    def require(self) -> None:
        """Raise StorageError where another run has taken over, or may at any time."""
        begun = time.monotonic()
        if begun < self._until:
            return
        with storage_errors(f"cannot read the lock of {self.root}"):
            seen = self.cell().read()
        holder = _holder(seen) if seen else {}
        if seen is None or holder.get("token") != self.token:
            raise lost(self.root, f"its lock was taken over: {describe(holder)}")
        if seen.age is not None:
            if seen.age > self.pace.give_up:
                raise lost(self.root, f"its lock was not renewed for {seen.age:g} seconds")
            self._until = begun + self.pace.give_up - seen.age
