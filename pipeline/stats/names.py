"""The ids of all clips in a temporary file, because 15 M of them would take gigabytes of memory."""

from __future__ import annotations

import json
import tempfile
from bisect import bisect_right

import pyarrow as pa

from koe.errors import StorageError


class Names:
    """Ids in the order in which they were added; `names[place]` reads one back.

    Raises: StorageError where the folder of temporary files is full.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="koe-")  # noqa: SIM115 - closed by `close`
        self._firsts: list[int] = []  # place of the first id of each batch
        self._begins: list[int] = []  # where the batch lies in the file
        self._number = 0

    def close(self) -> None:
        """Remove the file."""
        self._file.close()

    def __len__(self) -> int:
        return self._number

    def add(self, ids: pa.StringArray) -> None:
        self._firsts.append(self._number)
        self._begins.append(self._file.tell())
        self._number += len(ids)
        try:
            self._file.write(json.dumps(ids.to_pylist()).encode() + b"\n")
        except OSError as error:
            raise StorageError(
                f"the ids of the clips cannot be kept in {tempfile.gettempdir()}",
                str(error),
                "Free space there, or name another folder in TMPDIR.",
            ) from error

    def __getitem__(self, place: int) -> str:
        batch = bisect_right(self._firsts, place) - 1
        self._file.seek(self._begins[batch])
        return json.loads(self._file.readline())[place - self._firsts[batch]]
