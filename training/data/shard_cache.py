"""A folder of shards of this machine that its processes share: bounded, each file checked once.

A shard is `<sha256>.arrow`. Whoever uses it holds a shared lock on `<sha256>.lock`, and whoever
fetches or evicts it an exclusive one, so that no shard is fetched twice or evicted in use; the
kernel gives up the locks of a process that dies. `room.lock` guards the sum of all sizes. A file
that is on its way is called `<sha256>.<bytes>.part`, and counts with these bytes from the start.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import BinaryIO

from koe.errors import ConfigError, ContractError, StorageError
from training.data.shard_index import ShardEntry
from training.file_locks import AT_ONCE, EXCLUSIVE, SHARED, lock, locked
from training.places import RemoteFolder

_SHARD, _PART, _LOCK, _ROOM = ".arrow", ".part", ".lock", "room.lock"
_TRIES = 2
_SECONDS_TO_MAKE_ROOM = 600.0  # that others have to release what they use
_SECONDS_BETWEEN_LOOKS = 0.05


class HeldShard:
    """A shard's file in the cache, which is not evicted before `release`."""

    def __init__(self, path: Path, lock: BinaryIO) -> None:
        self.path, self._lock = path, lock

    def release(self) -> None:
        self._lock.close()


class ShardCache:
    """Fetches the shards of `remote` into `folder`, which never holds more than `limit_bytes`.

    `fetched` counts the shards that this object has downloaded.
    """

    def __init__(self, remote: RemoteFolder, folder: Path, limit_bytes: int) -> None:
        self._remote, self._folder, self._limit = remote, folder, limit_bytes
        self.fetched = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"no shards can be kept in {folder}",
                str(error),
                "Set KOE_CACHE to a folder on a local disk.",
            ) from error

    def has(self, shard: ShardEntry) -> bool:
        """Tell whether the shard is there at this moment."""
        return self._path(shard).exists()

    def hold(self, shard: ShardEntry, seconds: float = _SECONDS_TO_MAKE_ROOM) -> HeldShard:
        """Return a shard's file, fetched if need be; whatever nobody uses makes room for it.

        Raises: ContractError when the bytes are not those of the index; StorageError when the
        storage or the disk fails, or others use all of the room for so many seconds.
        """
        deadline = time.monotonic() + seconds
        while True:
            if held := self._held(shard):
                return held
            if not self.fetch(shard, ()):
                if time.monotonic() > deadline:
                    raise self._no_room(shard)
                time.sleep(_SECONDS_BETWEEN_LOOKS)

    def fetch(self, shard: ShardEntry, keep: Collection[str]) -> bool:
        """Bring a shard here unless it is; False where that would evict what `keep` names or is used.

        Raises: as `hold`.
        """
        while not self.has(shard):
            # Waiting for the lock itself could take forever: whoever fetched the shard first holds it
            # for as long as it reads it, and may be waiting for this process.
            with locked(self._lock_path(shard.sha256), EXCLUSIVE | AT_ONCE) as mine:
                if mine:
                    return self.has(shard) or self._fetch(shard, keep)
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        return True

    def _fetch(self, shard: ShardEntry, keep: Collection[str]) -> bool:
        """Bring a shard here; the caller holds its lock."""
        part = self._folder / f"{shard.sha256}.{shard.num_bytes}{_PART}"
        try:
            part.unlink(missing_ok=True)  # of a process that died
            if not self._make_room(shard, part, keep):
                return False
            self._download(shard, part)
        except OSError as error:
            raise StorageError(
                f"shard {self._remote.url}/{shard.path} cannot be kept in {self._folder}",
                str(error),
                "Free the disk, set KOE_CACHE to a larger one, or lower "
                "train.shard_cache_gigabytes; then start again.",
            ) from error
        finally:
            part.unlink(missing_ok=True)
        self.fetched += 1
        return True

    def kept(self, name: str, make: Callable[[], bytes]) -> bytes:
        """Return a small file of the cache; the first process that asks for it makes it."""
        path = self._folder / name
        with locked(path.with_name(f"{name}{_LOCK}"), EXCLUSIVE):
            if not path.exists():
                draft = path.with_name(f"{name}.draft")
                draft.write_bytes(make())
                draft.replace(path)
            return path.read_bytes()

    def forget(self, name: str) -> None:
        """Delete a small file."""
        (self._folder / name).unlink(missing_ok=True)

    def _held(self, shard: ShardEntry) -> HeldShard | None:
        found = lock(self._lock_path(shard.sha256), SHARED)
        assert found is not None
        path = self._path(shard)
        try:
            os.utime(path)  # the order of eviction
        except FileNotFoundError:
            found.close()
            return None
        return HeldShard(path, found)

    def _download(self, shard: ShardEntry, part: Path) -> None:
        name = f"{self._remote.url}/{shard.path}"
        why = ""
        for _ in range(_TRIES):
            try:
                self._remote.download(shard.path, part)
            except FileNotFoundError as error:
                raise ContractError(
                    f"shard {name} is missing",
                    "index.json names it",
                    "Write the shards again with `koe run --force interleave`.",
                ) from error
            why = _difference(part, shard)
            if not why:
                _sync(part)
                part.replace(self._path(shard))
                return
            part.unlink()
        raise ContractError(
            f"shard {name} is not the one that index.json names",
            f"{why}, {_TRIES} times in a row",
            "`koe verify` says which files are damaged; `koe run` makes a damaged shard again.",
        )

    def _make_room(self, shard: ShardEntry, part: Path, keep: Collection[str]) -> bool:
        """Evict until the shard fits, and take its room by creating `part`."""
        with locked(self._folder / _ROOM, EXCLUSIVE):
            sizes = dict(self._sizes())
            excess = sum(sizes.values()) + shard.num_bytes - self._limit
            for path in sizes:
                if excess <= 0:
                    break
                if path.name.partition(".")[0] not in keep and self._evict(path):
                    excess -= sizes[path]
            if excess > 0:
                return False
            part.touch()
            return True

    def _sizes(self) -> list[tuple[Path, int]]:
        """List what takes room, the least recently needed first."""
        found = []
        for path in self._folder.iterdir():
            if path.suffix not in (_SHARD, _PART):
                continue
            try:
                status = path.stat()
            except FileNotFoundError:  # another process has just completed or removed it
                continue
            size = int(path.suffixes[-2][1:]) if path.suffix == _PART else status.st_size
            found.append((status.st_mtime_ns, path, size))
        return [(path, size) for _, path, size in sorted(found)]

    def _evict(self, path: Path) -> bool:
        """Delete a shard, or what a dead process has left of one; False where it is in use."""
        lock_path = self._lock_path(path.name.partition(".")[0])
        with locked(lock_path, EXCLUSIVE | AT_ONCE) as mine:
            if not mine:
                return False
            path.unlink(missing_ok=True)
            lock_path.unlink(missing_ok=True)
            return True

    def _path(self, shard: ShardEntry) -> Path:
        return self._folder / f"{shard.sha256}{_SHARD}"

    def _lock_path(self, sha256: str) -> Path:
        return self._folder / f"{sha256}{_LOCK}"

    def _no_room(self, shard: ShardEntry) -> StorageError:
        return StorageError(
            f"there is no room for shard {shard.path} in {self._folder}",
            f"other processes use shards there, and train.shard_cache_gigabytes allows "
            f"{self._limit / 1e9:g}",
            "Raise it, or give each run a KOE_CACHE of its own; then start again.",
        )


def _difference(path: Path, shard: ShardEntry) -> str:
    """Say how a file differs from what the index says of it; nothing where it does not."""
    num_bytes = path.stat().st_size
    if num_bytes != shard.num_bytes:
        return f"it has {num_bytes:,} bytes, not {shard.num_bytes:,}"
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    return "" if found == shard.sha256 else f"its sha256 is {found[:12]}, not {shard.sha256[:12]}"


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
