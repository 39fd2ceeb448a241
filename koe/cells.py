"""One small file that several processes change in turn: written only where it is as it was read."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Protocol, cast

from fsspec.asyn import sync

from koe.remote import is_s3
from koe.store_errors import is_absent, names_in

_REFUSED = {"PreconditionFailed", "412", "ConditionalRequestConflict", "409"}
_UNKNOWN = {"NotImplemented", "501"}  # to a store that has no such condition


@dataclass(frozen=True)
class Seen:
    """What a cell held when it was read.

    `tag` names this state of it. `age` is how many seconds ago it was written, by the store's clock
    alone; None where the store does not say.
    """

    data: bytes
    tag: str
    age: float | None = None


class Cell(Protocol):
    """Compares and swaps. Raises: what the file system raises."""

    def read(self) -> Seen | None:
        """Return what is there, None where there is nothing."""
        ...

    def create(self, data: bytes) -> str | None:
        """Write where there is nothing; return the tag, None where there is something."""
        ...

    def swap(self, data: bytes, tag: str) -> str | None:
        """Write where this state is still there; return the new tag, None where it is not."""
        ...

    def remove(self) -> None: ...

    def is_atomic(self, data: bytes, tag: str) -> bool:
        """Tell whether the store itself keeps two writers apart; `data` and `tag` are what is there."""
        ...


@dataclass(frozen=True)
class S3Cell:
    """An object of S3, whose PUT has the conditions If-None-Match and If-Match.

    https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html
    """

    system: Any
    bucket: str
    key: str

    def _call(self, method: str, **more: Any) -> dict[str, Any]:
        return self.system.call_s3(method, Bucket=self.bucket, Key=self.key, **more)

    def read(self) -> Seen | None:
        try:
            answer = self._call("get_object")
        except FileNotFoundError as error:
            if is_absent(error):
                return None
            raise
        data = cast(bytes, sync(self.system.loop, answer["Body"].read))
        return Seen(data, answer["ETag"], _age(answer))

    # Read first: a store that does not know conditions would write over what is there.
    def create(self, data: bytes) -> str | None:
        return None if self.read() else self._put(data, IfNoneMatch="*")

    def swap(self, data: bytes, tag: str) -> str | None:
        seen = self.read()
        return self._put(data, IfMatch=tag) if seen and seen.tag == tag else None

    def _put(self, data: bytes, **condition: str) -> str | None:
        try:
            return self._call("put_object", Body=data, **condition)["ETag"]
        except OSError as error:
            if is_absent(error) or names_in(error) & _REFUSED:
                return None
            if names_in(error) & _UNKNOWN:
                return self._call("put_object", Body=data)["ETag"]
            raise

    def remove(self) -> None:
        self._call("delete_object")

    def is_atomic(self, data: bytes, tag: str) -> bool:
        # neither condition holds; a store that does not know them writes the same bytes again
        del tag
        refused = [self._put(data, IfNoneMatch="*"), self._put(data, IfMatch='"of no object"')]
        return refused == [None, None]


def _age(answer: dict[str, Any]) -> float | None:
    date = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
    if not date or "LastModified" not in answer:
        return None
    seconds = (parsedate_to_datetime(date) - answer["LastModified"]).total_seconds()
    return max(0.0, seconds)


@dataclass(frozen=True)
class PlainCell:
    """A file of any other file system: read before it is written, so two writers may meet."""

    system: Any
    place: str

    def read(self) -> Seen | None:
        try:
            data = self.system.cat_file(self.place)
        except FileNotFoundError as error:
            if is_absent(error):
                return None
            raise
        return Seen(data, _tag(data))

    def create(self, data: bytes) -> str | None:
        if self.read() is not None:
            return None
        try:
            self.system.pipe_file(self.place, data, mode="create")
        except FileExistsError:
            return None
        return _tag(data)

    def swap(self, data: bytes, tag: str) -> str | None:
        seen = self.read()
        if seen is None or seen.tag != tag:
            return None
        self.system.pipe_file(self.place, data)
        return _tag(data)

    def remove(self) -> None:
        self.system.rm_file(self.place)

    def is_atomic(self, data: bytes, tag: str) -> bool:
        del data, tag
        return False


def conditional_cell(system: Any, place: str) -> Cell:
    """Return the cell of a place, whose store compares by itself if it is S3."""
    if not is_s3(system):
        return PlainCell(system, place)
    bucket, key, _ = system.split_path(place)
    return S3Cell(system, bucket, key)


def _tag(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
