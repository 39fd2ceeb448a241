"""The shards of a split at a URL, read through the cache of this machine and fetched ahead."""

from __future__ import annotations

import math
import threading
from bisect import bisect_right
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BufferedReader, RawIOBase
from itertools import accumulate
from typing import Any

from koe.errors import ConfigError, ContractError, KoeError
from training.data import shard_summary
from training.data.shard_cache import HeldShard, ShardCache
from training.data.shard_index import ShardEntry
from training.data.shard_summary import ShardSummary
from training.data.stored import Stored, open_shard
from training.places import RemoteFolder

_SUMMARY = ".summary.json"  # follows a shard's sha256
_READ_BYTES = 256 * 1024  # of a request; the narrow columns of a record batch lie side by side
_SECONDS_TO_ROOM = 1.0  # after which room is looked for again
_STEPS_AT_ONCE = 3  # one whose rows events may name, one in work, one being built
_SUMMARY_THREADS = 16  # each waits for the storage most of the time


class _Open:
    """A shard that is held in the cache, and mapped."""

    def __init__(self, held: HeldShard, parts: list[Stored]) -> None:
        self.held, self.parts = held, parts


class RemoteShards:
    """The record batches of a split by place, in stored order; a shard arrives when it is needed.

    `expect` says what is needed next: those shards and, as far as they fit into `ahead_bytes`, those
    that follow them are fetched in a thread, and are not evicted by this process. Where all fit, a
    shard stays mapped once it is, with 3 bytes per document; else those of two steps do. `waits`
    counts the shards that were not here when a row of them was read.
    """

    def __init__(
        self,
        remote: RemoteFolder,
        entries: Sequence[ShardEntry],
        cache: ShardCache,
        ahead_bytes: int,
    ) -> None:
        self._remote, self._entries, self._cache = remote, entries, cache
        self._ahead_bytes = ahead_bytes
        self._fit = sum(entry.num_bytes for entry in entries) <= ahead_bytes
        with ThreadPoolExecutor(_SUMMARY_THREADS, "shard-summaries") as threads:
            self.summaries = list(threads.map(self._summary, entries))
        self._batches = [
            (shard, place)
            for shard, summary in enumerate(self.summaries)
            for place in range(len(summary.batch_rows))
        ]
        self._first_rows = [0, *accumulate(entry.rows for entry in entries)]
        self.waits = 0
        self._open: dict[int, _Open] = {}
        self._expected: set[int] = set()
        self._opening = threading.Lock()
        self._ahead = _FetchAhead(cache)

    def __getitem__(self, place: int) -> Stored:
        """Return a record batch, waiting for its shard if need be.

        Raises: ContractError, StorageError.
        """
        shard, within = self._batches[place]
        with self._opening:
            found = self._open.get(shard)
            if found is None:
                if not self._fit:
                    self._release(keep=self._expected)
                found = self._open[shard] = self._opened(shard)
            return found.parts[within]

    def expect(self, rows: Sequence[int]) -> None:
        """Say which rows are read next; after them, those of the following shards will be.

        Raises: ConfigError for rows out of stored order, if there is no room for all shards.
        """
        now = {bisect_right(self._first_rows, row) - 1 for row in rows}
        order = [*sorted(now), *range(max(now) + 1, len(self._entries))]
        if self._fit:
            order += range(min(now))
        elif max(rows) - min(rows) >= len(rows):
            total = sum(entry.num_bytes for entry in self._entries)
            raise _too_small(
                "the run now reads its shards again, in another order", total, self._ahead_bytes
            )
        with self._opening:
            if not self._fit:
                self._release(keep=self._expected | now)  # events look back one step
            self._expected = now
        self._ahead.plan(self._that_fit(order, len(now)))

    @property
    def batch_rows(self) -> list[int]:
        return [rows for summary in self.summaries for rows in summary.batch_rows]

    def require_room(self, rows_per_step: int, num_rows: int) -> None:
        """Refuse to read `num_rows` rows in steps from a cache that is too small for it.

        Raises: ConfigError with the size that is needed.
        """
        total = sum(entry.num_bytes for entry in self._entries)
        again = num_rows > self._first_rows[-1]
        needed = total if again else min(total, self._most_at_once(rows_per_step * _STEPS_AT_ONCE))
        if needed > self._ahead_bytes:
            why = (
                "the run reads its shards more than once, in another order each time"
                if again
                else "the shards of a few steps and the next one must be there together"
            )
            raise _too_small(why, needed, self._ahead_bytes)

    def _most_at_once(self, num_rows: int) -> int:
        """Return the largest sum of sizes of the shards of so many rows in a row, and of the next."""
        sums = [0, *accumulate(entry.num_bytes for entry in self._entries)]
        last = len(self._entries) - 1
        return max(
            sums[min(bisect_right(self._first_rows, stop - 2 + num_rows), last) + 1] - sums[shard]
            for shard, stop in enumerate(self._first_rows[1:])
        )

    def settle(self) -> None:
        """Wait until everything is here that `expect` has asked for and that fits."""
        self._ahead.settle()

    def close(self) -> None:
        """Stop fetching, and let other processes evict what was used."""
        self._ahead.close()
        with self._opening:
            self._expected = set()
            self._release(keep=set())

    def _that_fit(self, order: list[int], needed: int) -> list[ShardEntry]:
        entries = [self._entries[shard] for shard in dict.fromkeys(order)]
        sums = list(accumulate(entry.num_bytes for entry in entries))
        return entries[: max(needed, bisect_right(sums, self._ahead_bytes))]

    def _release(self, keep: set[int]) -> None:
        for shard in [shard for shard in self._open if shard not in keep]:
            self._open.pop(shard).held.release()

    def _opened(self, shard: int) -> _Open:
        entry = self._entries[shard]
        self.waits += not self._cache.has(entry)
        name = f"{self._remote.url}/{entry.path}"
        held = self._cache.hold(entry)
        try:
            parts = open_shard(held.path, entry.rows, name)
            if not shard_summary.same(shard_summary.of_batches(parts), self.summaries[shard]):
                self._cache.forget(entry.sha256 + _SUMMARY)
                raise ContractError(
                    f"shard {name} has other sources or modalities than were read before training",
                    "single columns were read then, whose bytes nothing vouches for",
                    "Start again: they are read anew.",
                )
        except BaseException:
            held.release()
            raise
        return _Open(held, parts)

    def _summary(self, entry: ShardEntry) -> ShardSummary:
        """Read what is known of a shard's rows, by this process or another, before it is here."""
        name, file = f"{self._remote.url}/{entry.path}", entry.sha256 + _SUMMARY

        def make() -> bytes:
            with BufferedReader(_RemoteFile(self._remote, entry), _READ_BYTES) as source:
                return shard_summary.of_file(source, name, entry.rows).as_json()

        for _ in range(2):
            found = shard_summary.from_json(self._cache.kept(file, make))
            if found is not None and len(found.modality) == entry.rows:
                return found
            self._cache.forget(file)  # the disk has damaged it
        raise ContractError(f"{file} in the cache of shards is damaged again and again")


def _too_small(why: str, needed: int, room: int) -> ConfigError:
    gigabytes = math.ceil((needed - room) / 1e7) / 100
    return ConfigError(
        f"the cache of shards has {room / 1e9:.2f} GB for this split and needs {needed / 1e9:.2f}",
        why,
        f"Raise train.shard_cache_gigabytes by {gigabytes:g} or more.",
    )


class _FetchAhead:
    """Fetches the shards of a plan in its order, in a thread, as far as there is room."""

    def __init__(self, cache: ShardCache) -> None:
        self._cache = cache
        self._plan: list[ShardEntry] = []
        self._failed: set[str] = set()
        self._changed = threading.Condition()
        self._idle, self._closed = True, False
        self._thread = threading.Thread(target=self._run, name="shards-ahead", daemon=True)
        self._thread.start()

    def plan(self, shards: list[ShardEntry]) -> None:
        with self._changed:
            if shards != self._plan:
                self._plan, self._idle = shards, False
                self._changed.notify_all()

    def settle(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._idle)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        done = True
        while True:
            with self._changed:
                seconds = None if done else _SECONDS_TO_ROOM
                self._changed.wait_for(lambda: self._closed or not self._idle, seconds)
                if self._closed:
                    return
                plan = self._plan
            done = self._fetch(plan)
            with self._changed:
                if plan is self._plan:
                    self._idle = True
                    self._changed.notify_all()

    def _fetch(self, plan: list[ShardEntry]) -> bool:
        """Fetch what is missing; False where other processes use the room for it."""
        keep = {entry.sha256 for entry in plan}
        for entry in plan:
            if self._closed or plan is not self._plan:
                break
            if entry.sha256 in self._failed or self._cache.has(entry):
                continue
            try:
                if not self._cache.fetch(entry, keep):
                    return False
            except KoeError:
                # Whoever reads the shard tries again, and raises what fails then.
                self._failed.add(entry.sha256)
        return True


class _RemoteFile(RawIOBase):
    """A file at a URL whose size is known, read by ranges."""

    def __init__(self, remote: RemoteFolder, entry: ShardEntry) -> None:
        super().__init__()
        self._remote, self._entry, self._at = remote, entry, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self._entry.num_bytes)[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        end = min(self._at + len(buffer), self._entry.num_bytes)
        if end <= self._at:
            return 0
        try:
            data = self._remote.read(self._entry.path, self._at, end)
        except FileNotFoundError as error:
            raise ContractError(
                f"shard {self._remote.url}/{self._entry.path} is missing",
                "index.json names it",
                "Write the shards again with `koe run --force interleave`.",
            ) from error
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
