"""Opens Arrow files of which nothing is believed: one that is broken is an error, never a crash.

pyarrow proves the flatbuffers of a file and that its buffers lie within it, but follows the offsets
inside a buffer wherever they point: a flipped bit ends the process. So no value is read before
`validate(full=True)` has gone over its batch: offsets that rise and stay inside, text that is
UTF-8. This takes 3 ms for a shard of 256 MB, whose SHA-256 takes 130 ms; only a hash tells
whether values that are well formed are the ones that were written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

import pyarrow as pa

from koe.errors import ContractError

_AGAIN = "Run again: a unit whose output is incomplete is redone."


class ArrowFile:
    """An Arrow IPC file, opened from a source that is seekable; the caller closes the source.

    `name` and `remedy` are for messages. `columns`: those to read, the others cost nothing; None
    for all. `schema`: the types that they must have; with None for `columns`, all its fields must
    be there.
    Raises: ContractError, here and while batches are read, for what is not such a file; OSError
    where the source cannot be read.
    """

    def __init__(
        self,
        source: pa.NativeFile,
        name: str,
        *,
        schema: pa.Schema | None = None,
        columns: Sequence[str] | None = None,
        remedy: str = _AGAIN,
    ) -> None:
        self.name, self._remedy = name, remedy
        with self._explained():
            self._reader = pa.ipc.open_file(source)
            self._require_fields(self._reader.schema, schema, columns)
            if columns is not None:
                names = self._reader.schema.names
                wanted = [names.index(column) for column in columns]
                options = pa.ipc.IpcReadOptions(included_fields=wanted)
                source.seek(0)
                self._reader = pa.ipc.open_file(source, options=options)
            self.schema = self._reader.schema

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the record batches, each proved to be sound and without nulls that it may not have."""
        for number in range(self._reader.num_record_batches):
            with self._explained():
                batch = self._reader.get_batch(number)
                batch.validate(full=True)
                self._require_no_nulls(batch)
            yield batch

    def table(self) -> pa.Table:
        """Return all rows."""
        return pa.Table.from_batches(self.batches(), self.schema)

    def _require_fields(
        self, found: pa.Schema, schema: pa.Schema | None, columns: Sequence[str] | None
    ) -> None:
        names = found.names  # decodes them, so that no message can fail on one
        if len(set(names)) < len(names):
            self._refuse("it has two columns of one name")
        types = {field.name: field.type for field in schema or ()}
        wanted = list(types) if columns is None else columns
        if missing := [name for name in wanted if name not in names]:
            raise ContractError(
                f"{self.name} has no column {', '.join(missing)}",
                "another version of koe wrote it",
                "Run `koe run`: what is stale is redone.",
            )
        for name in wanted:
            type_ = found.field(name).type
            if name in types and type_ != types[name]:
                self._refuse(f"its column {name} holds {type_}, not {types[name]}")

    def _require_no_nulls(self, batch: pa.RecordBatch) -> None:
        for field, column in zip(batch.schema, batch.columns, strict=True):
            if not field.nullable and column.null_count:
                self._refuse_nulls(f"{column.null_count} nulls in {field.name}", "none")
            if pa.types.is_list(field.type) and column.flatten().null_count:
                self._refuse_nulls(f"nulls inside the lists of {field.name}", "none in a list")

    def _refuse_nulls(self, what: str, allowed: str) -> NoReturn:
        raise ContractError(
            f"{self.name} holds {what}", f"the schema allows {allowed}", self._remedy
        )

    def _refuse(self, why: str) -> NoReturn:
        raise ContractError(f"{self.name} is not a complete Arrow file", why, self._remedy)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, UnicodeDecodeError) as error:  # a name that is not UTF-8
            self._refuse(str(error))
        except OSError as error:
            # what Arrow itself finds wrong with the structure has no number of the system
            if type(error) is not OSError or error.errno is not None:
                raise
            self._refuse(str(error))
