"""The attempts of a run directory from run to run: loaded, added to, and what is set aside.

Which death speaks against a unit? That of its worker does: the rest of the run lives on, so the unit
is the likely cause. That of a whole run does not, however often it is seen: whoever ends runs from
outside (kill -9, a time limit, a preempted machine) hits some unit every time, and with few units
always the same. No limit on such deaths would never meet a good unit. So a unit that was in flight
when a run died is only suspected: the next run does it last, alone, and where it would be done in the
run's own process, in a process of its own. If the unit is bad, that process dies, which is the death
of a worker, and is counted; if it is good, it gets done. What takes the machine down leaves no
worker's death: it is counted when the machine was started anew since, and the unit was alone in flight.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime

from koe.dataflow import set_aside_path
from koe.errors import StorageError
from pipeline.execution.attempts import Attempts, Begun, Limits, counted_deaths
from pipeline.execution.last_words import Doing, Left, here, take_left
from pipeline.execution.runner import SET_ASIDE, UnitResult, Work
from pipeline.run_dir.set_aside import (
    RETRY,
    AttemptsFile,
    Death,
    InFlight,
    SetAside,
    UnitKey,
    read_attempts,
    read_set_aside,
    set_aside_units,
    write_attempts,
    write_set_aside,
)
from pipeline.run_dir.storage import Storage

_WRITE_SECONDS = 5.0  # between two versions of the list of units in flight
_MAX_RUN_DEATHS = 10  # deaths kept per unit: more of them would say nothing new
_SILENT = "it ended without a word, as by SIGKILL (which the kernel's OOM killer sends) or os._exit"
_RUN_DIED = "the run ended while it was in flight"


@dataclass
class AttemptLog:
    """What is known of attempts that never ended. One process at a time has it: the run's."""

    storage: Storage
    limits: Limits
    deaths: dict[UnitKey, list[Death]] = field(default_factory=dict)
    set_aside: set[UnitKey] = field(default_factory=set)
    _in_flight: tuple[InFlight, ...] = ()
    _written: AttemptsFile = field(default_factory=AttemptsFile)
    _writer: threading.Thread | None = None
    _closed: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def opened(
        cls, storage: Storage, limits: Limits, retry: Callable[[UnitKey], bool] = lambda key: False
    ) -> AttemptLog:
        """Read what earlier runs left; units for which `retry` holds are as if never tried."""
        log = cls(storage, limits)
        log._written = read_attempts(storage)
        for stage, units in log._written.deaths.items():
            for unit, deaths in units.items():
                log.deaths[stage, unit] = list(deaths)
        log._take_run_deaths(log._written.in_flight, take_left(storage.root))
        for key in ((why.stage, why.unit) for why in set_aside_units(storage)):
            if retry(key):
                log.deaths.pop(key, None)
                storage.remove(set_aside_path(*key))
            else:
                log.set_aside.add(key)
        for key, count in counted_deaths(log.deaths).items():
            if count >= limits.attempts:
                log.put_aside(key)
        log._write()
        return log

    def _take_run_deaths(self, in_flight: Iterable[InFlight], left: Sequence[Left]) -> None:
        """Note the units that were in flight when the last run died.

        The words of workers are exact, and the list is at most some seconds old; a unit of the list
        alone may have been finished since, which is harmless: it is found done.
        """
        seen = {}
        for words in left:
            assert words.doing is not None, "take_left leaves out workers without a unit"
            seen[words.doing.stage, words.doing.unit] = (words.doing, words)
        for item in in_flight:
            doing = Doing(**item.model_dump(exclude={"machine"}), deadline=None)
            seen.setdefault((item.stage, item.unit), (doing, Left(doing=None)))
        for key, (doing, words) in seen.items():
            self._note(key, _run_death(doing, words))

    def _note(self, key: UnitKey, death: Death) -> None:
        found = self.deaths.setdefault(key, [])
        found.append(death)
        uncounted = [death for death in found if death.ended == "run"]
        if len(uncounted) > _MAX_RUN_DEATHS:
            found.remove(uncounted[0])

    def attempts(self) -> Attempts:
        """Return the count that an engine begins with."""
        return Attempts(self.limits, counted_deaths(self.deaths), set(self.set_aside))

    def suspects(self, keys: Iterable[UnitKey], least: int = 1) -> set[UnitKey]:
        """Name the units that were begun at least so often and did not end, but are not set aside."""
        return {
            key
            for key in keys
            if len(self.deaths.get(key, ())) >= least and key not in self.set_aside
        }

    def see(self, in_flight: Iterable[Begun]) -> None:
        """Note the units in flight; they are written down when they still are some seconds later."""
        node, boot = here()
        now = time.time()
        began = {(item.stage, item.unit): item.since for item in self._in_flight}
        self._in_flight = tuple(
            InFlight(
                stage=begun.stage, unit=begun.unit, since=began.get(begun.key, round(now, 1)),
                node=node, boot=boot, alone=begun.alone, machine=begun.place.machine or node,
            )
            for begun in sorted(in_flight, key=lambda begun: begun.key)
        )  # fmt: skip
        if self._writer is None:
            self._writer = threading.Thread(target=self._write_again_and_again, daemon=True)
            self._writer.start()

    def _write_again_and_again(self) -> None:
        while not self._closed.wait(_WRITE_SECONDS):
            with suppress(StorageError):  # which the units meet too, and stop the run
                self._write()

    def lost(self, begun: Begun, left: Left, how: str, *, node_is_gone: bool = False) -> None:
        """Note that a worker died with a unit. `how`: what the engine knows of it."""
        death = Death(
            ended="node" if node_is_gone else "worker",
            at=_time_of_day(time.time()),
            node=begun.place.node,
            how=left.how or how or ("its node is gone" if node_is_gone else _SILENT),
            seconds=None if left.doing is None else round(time.time() - left.doing.since, 1),
            peak_mb=left.peak_mb,
            last_record=left.last_record,
            traceback=left.traceback,
        )
        self._note(begun.key, death)
        self._write()

    def put_aside(self, key: UnitKey) -> SetAside:
        """Set a unit aside, with what is known of its attempts."""
        found = SetAside(stage=key[0], unit=key[1], attempts=tuple(self.deaths.pop(key)))
        write_set_aside(self.storage, found)
        self.set_aside.add(key)
        self._write()
        return found

    def refused(self, name: str, key: UnitKey) -> UnitResult:
        """Make the result of a unit that is left aside, from this run on or from an earlier one."""
        if key in self.set_aside:
            known = read_set_aside(self.storage, *key)
            found = known.describe() if known else "its file is gone"
            when = "was set aside by an earlier run"
        else:
            found, when = self.put_aside(key).describe(), "is set aside"
        error = f"the unit {when}: {found}. `{RETRY}` tries it again"
        return UnitResult(name, key[1], SET_ASIDE, error=error)

    def forget(self, key: UnitKey) -> None:
        """Forget the attempts at a unit: one of them ended."""
        self.deaths.pop(key, None)
        if key in self.set_aside:
            self.set_aside.discard(key)
            self.storage.remove(set_aside_path(*key))

    def close(self) -> None:
        """Note that the run ended in order: what is still in flight was not lost."""
        self._closed.set()
        self._in_flight = ()
        self._write()

    def _write(self) -> None:
        with self._lock:  # of the writer
            deaths: dict[str, dict[str, tuple[Death, ...]]] = {}
            for (stage, unit), found in sorted(self.deaths.items()):
                deaths.setdefault(stage, {})[unit] = tuple(found)
            current = AttemptsFile(
                in_flight=self._in_flight, deaths=deaths, set_aside=tuple(sorted(self.set_aside))
            )
            if current != self._written:
                write_attempts(self.storage, current)
                self._written = current


@contextmanager
def log_of(chain: Sequence[Work], log: AttemptLog | None) -> Iterator[AttemptLog]:
    """Yield the log that is given, or one for this chain alone, which knows of no earlier run."""
    if log is not None:
        yield log
        return
    own = AttemptLog(Storage(chain[0].root), Limits())
    try:
        yield own
    finally:
        own.close()


def _run_death(doing: Doing, words: Left) -> Death:
    """Say what the death of a run says of a unit that was in flight.

    A worker that wrote how it ended was ended by its unit. A machine that was started anew since was
    perhaps taken down by the unit, where no other was in flight.
    """
    node, boot = here()
    rebooted = bool(doing.boot) and doing.node == node and doing.boot != boot
    ended = "worker" if words.how else "machine" if rebooted and doing.alone else "run"
    how = words.how or ("its machine was started anew" if rebooted else _RUN_DIED)
    return Death(
        ended=ended,
        at=_time_of_day(doing.since),
        node=doing.node,
        how=how,
        peak_mb=words.peak_mb,
        last_record=words.last_record,
        traceback=words.traceback,
    )


def _time_of_day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="seconds")
