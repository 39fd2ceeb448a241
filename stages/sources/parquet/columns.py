"""Columns of a Parquet file: found by dotted names, and what kind of audio one holds."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from koe.errors import ConfigError
from stages.sources.fields import holders

# How a column holds audio. Encoded audio is bytes; a path names a file; Hugging Face's `datasets`
# stores a struct of bytes and path, or, where it was decoded, of array and sampling_rate.
BYTES, PATH, STRUCT, ARRAY = "bytes", "path", "struct", "array"
_BINARY = (
    pa.types.is_binary,
    pa.types.is_large_binary,
    pa.types.is_binary_view,
    pa.types.is_fixed_size_binary,
)
_TEXT = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
_LISTS = (
    pa.types.is_list,
    pa.types.is_large_list,
    pa.types.is_fixed_size_list,
    pa.types.is_list_view,
    pa.types.is_large_list_view,
)


@dataclass(frozen=True)
class AudioColumn:
    """A column of audio by its dotted name; `form` is one of BYTES, PATH, STRUCT, ARRAY."""

    name: str
    form: str

    @property
    def path_name(self) -> str:
        """Return the dotted name of the audio's path, which a file need not have."""
        return self.name if self.form == PATH else f"{self.name}.path"

    def cells(self) -> list[str]:
        """Return the dotted names of the columns that a clip's audio is read from."""
        return {
            BYTES: [self.name],
            PATH: [],
            STRUCT: [f"{self.name}.bytes"],
            ARRAY: [f"{self.name}.array", f"{self.name}.sampling_rate"],
        }[self.form]


def _is_list(column: pa.DataType) -> bool:
    return any(is_kind(column) for is_kind in _LISTS)


def field_types(parent: pa.Schema | pa.StructType) -> dict[str, pa.DataType]:
    """Map the names of the fields of a schema or struct to their types, dictionaries resolved."""
    return {field.name: _value_type(field.type) for field in parent}


def find_type(parent: pa.Schema | pa.StructType, name: str) -> pa.DataType | None:
    """Return the type of the column called `name`, where dots descend into structs."""
    types = field_types(parent)
    for holder, rest in holders(types, name):
        found = types[holder]
        if not rest:
            return found
        if pa.types.is_struct(found) and (deeper := find_type(found, rest)) is not None:
            return deeper
    return None


def message_type(column: pa.DataType) -> pa.StructType | None:
    """Return the type of the messages in a column; None for a column that holds none.

    It is a list of structs or, as `datasets` stores a Sequence, a struct of lists.
    """
    if _is_list(column):
        return column.value_type if pa.types.is_struct(column.value_type) else None
    if pa.types.is_struct(column) and column.num_fields and all(_is_list(f.type) for f in column):
        return pa.struct([(field.name, field.type.value_type) for field in column])
    return None


def require_named(
    source: str, path: str, schema: pa.Schema | pa.StructType, needed: Mapping[str, str]
) -> None:
    """Check that every needed column exists; `needed` maps a key of `fields` to a dotted name.

    Raises: ConfigError naming the key and the nearest columns, also for a column that is there
    twice.
    """
    repeated = [
        name for name, number in Counter(field.name for field in schema).items() if number > 1
    ]
    for role, name in needed.items():
        if name.split(".")[0] in repeated or name in repeated:
            raise ConfigError(
                f"source {source} cannot read column {name!r} for {role}",
                f"{path} has more than one column of this name",
                "Write the file again with different names.",
            )
        if find_type(schema, name) is None:
            names = list(column_names(schema))
            near = difflib.get_close_matches(name, names, n=1)
            near = near or [other for other in names if other.rpartition(".")[2] == name][:1]
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(names)}"
            raise ConfigError(
                f"source {source} has no column {name!r} for {role}",
                f"{path} lacks it ({hint})",
                f"Set fields.{role} of the source.",
            )


def column_names(schema: pa.Schema | pa.StructType, prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of all columns, structs first and then what they hold."""
    for name, kind in field_types(schema).items():
        yield prefix + name
        if pa.types.is_struct(kind):
            yield from column_names(kind, f"{prefix}{name}.")


def audio_column(source: str, path: str, schema: pa.Schema, name: str) -> AudioColumn:
    """Find the audio of a file's clips in the column called `name`.

    Raises: ConfigError where there is no such column, or no audio in it.
    """
    require_named(source, path, schema, {"audio": name})
    found = find_type(schema, name)
    assert found is not None
    form = _form(found)
    if form is None:
        raise ConfigError(
            f"source {source} cannot take its audio from column {name!r}",
            f"{path} holds {found} there, neither bytes, nor a path, nor a struct of bytes and "
            "path, or of array (floats or int16) and sampling_rate",
            "Set fields.audio to the column with the audio.",
        )
    return AudioColumn(name, form)


def _form(column: pa.DataType) -> str | None:
    if any(is_kind(column) for is_kind in _BINARY):
        return BYTES
    if any(is_kind(column) for is_kind in _TEXT):
        return PATH
    if not pa.types.is_struct(column):
        return None
    types = field_types(column)
    if "bytes" not in types and _is_array(types.get("array")) and "sampling_rate" in types:
        return ARRAY
    return STRUCT if {"bytes", "path"} & set(types) else None


def _is_array(column: pa.DataType | None) -> bool:
    """Tell whether a column holds samples: a list of numbers, or one such list per channel."""
    for _ in range(2):
        if column is not None and _is_list(column):
            column = column.value_type
    return column is not None and (pa.types.is_floating(column) or column == pa.int16())


def _value_type(column: pa.DataType) -> pa.DataType:
    return column.value_type if pa.types.is_dictionary(column) else column


def leaf_columns(paths: Sequence[str], name: str, children: Iterable[str]) -> list[str]:
    """List the columns that hold some fields of a list of structs called `name`.

    `paths` are those of all leaves of a Parquet file: between a list and its elements stand one
    or two levels of any name (the format's LogicalTypes.md, Lists).
    """
    wanted, depth = set(children), name.count(".") + 1
    found = []
    for path in paths:
        if path.startswith(f"{name}."):
            parts = path.split(".")[depth:]
            if wanted & {".".join(parts[1:2]), ".".join(parts[2:3])}:
                found.append(path)
    return found
