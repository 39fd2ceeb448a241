"""Values of a source's records: found by dotted names, parsed, and checked."""

from __future__ import annotations

import difflib
import json
import re
import reprlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from koe.errors import BadRecord, ConfigError
from stages.looks import looks_like
from stages.sources.files import require_size

_KINDS: tuple[tuple[type | tuple[type, ...], str], ...] = (
    (type(None), "null"),
    (bool, "a truth value"),
    ((int, float), "a number"),
    (str, "text"),
    (list, "a list"),
    (Mapping, "an object"),
)


# Python's own limit depends on where a parser is called.
MAX_DEPTH = 128
TOO_DEEP = f"lists and objects are nested more than {MAX_DEPTH} deep"
_SHORT = reprlib.Repr()  # of values of any size and depth
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 200


def holders(names: Collection[str], name: str) -> Iterator[tuple[str, str]]:
    """Yield the ways to find a dotted `name` below fields of these `names`.

    Each is the name of a field and the rest of the dotted name, which is empty for a field that
    has the dots in its own name; the longest names come first.
    """
    if name in names:
        yield name, ""
    dot = name.rfind(".")
    while dot > 0:
        if name[:dot] in names:
            yield name[:dot], name[dot + 1 :]
        dot = name.rfind(".", 0, dot)


def find(fields: Mapping[str, Any], name: str) -> tuple[Any] | None:
    """Return the value called `name` in a tuple, where dots descend into nested fields.

    None if it is absent, which is not the same as a value of None.
    """
    for holder, rest in holders(fields, name):
        value = fields[holder]
        if not rest:
            return (value,)
        if isinstance(value, Mapping) and (found := find(value, rest)):
            return found
    return None


_SURROGATE = re.compile(rb"\\u[dD]|\xed[\xa0-\xbf]")  # as an escape, or as bytes


def lookup(fields: Mapping[str, Any], name: str | None) -> Any:
    """Return the value called `name`, where dots descend into nested fields; None if absent."""
    found = None if name is None else find(fields, name)
    return found[0] if found else None


def describe(fields: Mapping[str, Any], name: str) -> str:
    """Say for a detail what stands where `name` should be."""
    if found := find(fields, name):
        return f"field {name!r} holds {_SHORT.repr(found[0])}"
    names = ", ".join(map(str, fields)) or "no fields"
    return f"there is no field {name!r}; the record has {names:.200}"


def record_key(fields: Mapping[str, Any], id_field: str | None, place: str) -> str:
    """Return the record's id from the field that the configuration names, or else its place.

    Raises: BadRecord when that field is missing; to use the place instead would hide a misspelt
    field name.
    """
    if id_field is None:
        return place
    value = lookup(fields, id_field)
    if value is None or isinstance(value, dict | list) or not str(value).strip():
        raise BadRecord("missing_id", describe(fields, id_field))
    return str(value)


def parse_object(data: bytes) -> dict[str, Any]:
    """Parse one JSON object that can also be written as UTF-8.

    Raises: BadRecord with reason `broken_json`.
    """
    require_size(len(data), "it")
    try:
        # json itself would guess the encoding, and take halves of surrogate pairs
        value = json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        detail = f"text is not valid UTF-8: {error.reason} at byte {error.start}"
        raise BadRecord("broken_json", _hint(data) or detail) from None
    except RecursionError:
        raise BadRecord("broken_json", TOO_DEEP) from None
    except ValueError as error:
        raise BadRecord("broken_json", _hint(data) or str(error)) from None
    return require_object(value, data)


def _hint(data: bytes) -> str:
    """Say what else a line is that is not JSON; empty where there is no telling."""
    name = looks_like(data)
    if name.startswith("text"):
        return f"it begins as {name} does: save the file as UTF-8"
    if name:
        return f"it begins like {name}"
    if b"\0" in data:
        return "the line holds zero bytes, as text in UTF-16 does: save the file as UTF-8"
    if b"\r" in data.strip():
        return "the line holds a carriage return: end the lines of the file with a line feed"
    if data.strip() in (b"{", b"[", b"},", b"}", b"]"):
        return "the line holds a part of an object: write each object on one line"
    return ""


def kind_of(value: Any) -> str:
    """Name the type of a value as JSON does, for messages."""
    for types, name in _KINDS:
        if isinstance(value, types):
            return name
    return type(value).__name__


def require_object(value: Any, data: bytes | None = None) -> dict[str, Any]:
    """Return `value` if it is a JSON object of valid text.

    Raises: BadRecord with reason `broken_json`; lone surrogates (from escapes, or from bytes
    that are not valid UTF-8) count as broken, because Arrow cannot store them.
    """
    if not isinstance(value, dict):
        raise BadRecord("broken_json", f"expected an object, found {kind_of(value)}")
    if data is None or _SURROGATE.search(data):
        try:
            data = json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise BadRecord("broken_json", f"text is not valid Unicode: {error.reason}") from None
        except RecursionError:
            raise BadRecord("broken_json", TOO_DEEP) from None
    if data.count(b"[") + data.count(b"{") > MAX_DEPTH and _is_too_deep(value):
        raise BadRecord("broken_json", TOO_DEEP)
    return value


def _is_too_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        parts = (part.values() if isinstance(part, dict) else part for part in level)
        level = [part for several in parts for part in several if isinstance(part, dict | list)]
    return bool(level)


def require_columns(
    source: str, path: str, columns: Collection[str], needed: Mapping[str, str]
) -> None:
    """Check that every needed column exists; `needed` maps a role to a dotted name.

    Raises: ConfigError naming the key to change and the nearest column.
    """
    for role, name in needed.items():
        if name in columns or name.split(".")[0] in columns:
            continue
        near = difflib.get_close_matches(name, columns, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(sorted(columns))}"
        raise ConfigError(
            f"source {source} has no column {name!r} for {role}",
            f"{path} lacks it ({hint})",
            f"Set fields.{role} of the source.",
        )
