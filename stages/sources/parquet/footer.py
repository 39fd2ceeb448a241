"""What the footer of a Parquet file says of its columns: how many values there are, and how many nulls.

pyarrow reads the metadata of a column chunk, and its statistics, by functions whose C++ exceptions nothing
catches (26.0): a damaged one ends the process. Sources: Apache Parquet's `parquet.thrift`, and Apache Thrift's
specification of the compact protocol.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, BinaryIO, NamedTuple

from stages.sources.files.lines import num_bytes
from stages.sources.files.opening import open_binary

_MAGIC, _END_BYTES = b"PAR1", 8  # behind the footer stand its size and the magic word
_MAX_DEPTH = 16
_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT, _UUID = (
    1,
    2,
    3,
    7,
    8,
    9,
    10,
    11,
    12,
    13,
)
_INTEGERS = (4, 5, 6)
# The numbers of fields in parquet.thrift: of FileMetaData, RowGroup, ColumnChunk and so on.
_ROW_GROUPS, _COLUMNS, _META_DATA = 4, 1, 3
_PATH, _NUM_VALUES, _STATISTICS, _NULL_COUNT = 3, 5, 12, 3


class Counts(NamedTuple):
    """The values of a column in a row group, with nulls, and how many are null; None: not known."""

    values: int
    nulls: int | None


def null_counts(path: str, mark: str) -> list[dict[str, Counts]]:
    """Return the counts of the columns of each row group, by dotted name; empty where they cannot be read.

    `mark` is the stamp of the file.

    Raises: OSError.
    """
    return _null_counts(path, mark)


@lru_cache(maxsize=2)  # the units of a file follow each other
def _null_counts(path: str, mark: str) -> list[dict[str, Counts]]:
    with open_binary(path) as file:
        data = _footer(file)
    try:
        groups = _Compact(data).struct().get(_ROW_GROUPS, [])
        return [dict(map(_counts, group.get(_COLUMNS, []))) for group in groups]
    except (ValueError, AttributeError, TypeError, LookupError):  # another type than it should have
        return []


def _footer(file: BinaryIO) -> bytes:
    size = num_bytes(file)
    file.seek(max(0, size - _END_BYTES))
    end = file.read(_END_BYTES)
    length = int.from_bytes(end[:4], "little")
    if end[4:] != _MAGIC or length > size - _END_BYTES:
        return b""
    file.seek(size - _END_BYTES - length)
    return file.read(length)


def _counts(chunk: dict[int, Any]) -> tuple[str, Counts]:
    column = chunk[_META_DATA]
    name = b".".join(column[_PATH]).decode()
    nulls = column.get(_STATISTICS, {}).get(_NULL_COUNT)
    return name, Counts(int(column[_NUM_VALUES]), None if nulls is None else int(nulls))


class _Compact:
    """Decodes structs of Thrift's compact protocol: fields by their numbers. Raises: ValueError."""

    def __init__(self, data: bytes) -> None:
        self._data, self._place = data, 0

    def struct(self, depth: int = 0) -> dict[int, Any]:
        if depth > _MAX_DEPTH:
            raise ValueError("structs are nested too deep")
        fields: dict[int, Any] = {}
        number = 0
        while header := self._byte():
            step, kind = header >> 4, header & 15
            number = number + step if step else self._integer()
            fields[number] = kind == _TRUE if kind in (_TRUE, _FALSE) else self._value(kind, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if kind in _INTEGERS:
            return self._integer()
        if kind == _BINARY:
            return self._bytes(self._varint())
        if kind == _STRUCT:
            return self.struct(depth + 1)
        if kind in (_LIST, _SET):
            return self._list(depth)
        if kind in (_BYTE, _TRUE, _FALSE):  # of a list, whose truth values are bytes
            return self._byte()
        if kind in (_DOUBLE, _UUID):
            return self._bytes(8 if kind == _DOUBLE else 16)
        if kind == _MAP:
            return self._map(depth)
        raise ValueError(f"there is no type {kind}")

    def _list(self, depth: int) -> list[Any]:
        header = self._byte()
        size = header >> 4 if header >> 4 < 15 else self._varint()
        self._require(size)  # each element has a byte at least
        return [self._value(header & 15, depth + 1) for _ in range(size)]

    def _map(self, depth: int) -> list[tuple[Any, Any]]:
        size = self._varint()
        kinds = self._byte() if size else 0
        self._require(size)
        pairs = (kinds >> 4, kinds & 15)
        return [tuple(self._value(kind, depth + 1) for kind in pairs) for _ in range(size)]  # pyright: ignore[reportReturnType]

    def _integer(self) -> int:
        value = self._varint()
        return value >> 1 ^ -(value & 1)

    def _varint(self) -> int:
        value = shift = 0
        while shift < 64:
            byte = self._byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7
        raise ValueError("a number has more than 64 bits")

    def _byte(self) -> int:
        self._require(1)
        self._place += 1
        return self._data[self._place - 1]

    def _bytes(self, size: int) -> bytes:
        self._require(size)
        self._place += size
        return self._data[self._place - size : self._place]

    def _require(self, size: int) -> None:
        if size > len(self._data) - self._place:
            raise ValueError("the footer ends within a field")
