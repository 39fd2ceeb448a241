"""Values of a source's records: found by dotted names, parsed, and checked."""

from __future__ import annotations

import codecs
import datetime
import decimal
import json
import math
import re
import reprlib
import uuid
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from koe.errors import BadRecord
from stages.file_signatures import looks_like
from stages.sources.files.lines import require_size

BROKEN_JSON = "broken_json"
_KINDS: tuple[tuple[type | tuple[type, ...], str], ...] = (
    (type(None), "null"),
    (bool, "a truth value"),
    ((int, float), "a number"),
    (str, "text"),
    (list, "a list"),
    (Mapping, "an object"),
)
# Types of values that name something, beside text.
_NAMES = (int, float, decimal.Decimal, uuid.UUID, datetime.date, datetime.time)


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


def message_list(value: Any) -> list[Any] | None:
    """Return the messages of a conversation; None for what is none.

    `datasets` stores a Sequence of structs as a struct of lists of equal length.
    """
    if isinstance(value, Mapping) and value:
        lists = [part for part in value.values() if isinstance(part, list)]
        if len(lists) == len(value) and len({len(part) for part in lists}) == 1:
            return [dict(zip(value, parts, strict=True)) for parts in zip(*lists, strict=True)]
    return value if isinstance(value, list) else None


def is_blank(value: Any) -> bool:
    """Tell whether a value says nothing; NaN, which no value equals, is a gap in a table."""
    return value is None or value == "" or value == [] or value != value


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
    key = name_of(lookup(fields, id_field))
    if not key:
        raise BadRecord("missing_id", describe(fields, id_field))
    return key


def name_of(value: Any) -> str | None:
    """Return the name that a value is of a record or a speaker: empty if it says nothing.

    A whole number has no decimal point, because tables with gaps turn 1 into 1.0; NaN stands for
    such a gap. None for what is no name, such as a list.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, str):
        return value if value.strip() else ""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, _NAMES) and not isinstance(value, bool):
        return str(value)
    return None


def number_of(value: Any) -> float | None:
    """Return a number, also from text as CSV has it, and the seconds of a length of time.

    None for anything else, including NaN.
    """
    if isinstance(value, bool):
        return None
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, str) and "_" in value:
        return None  # Python's own way to group digits, and no number anywhere else
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def parse_object(data: bytes) -> dict[str, Any]:
    """Parse one JSON object that can also be written as UTF-8.

    Raises: BadRecord with reason `broken_json` or `repeated_key`.
    """
    require_size(len(data), "it")
    try:
        # json itself would guess the encoding, and take halves of surrogate pairs
        value = _DECODER.decode(data.removeprefix(codecs.BOM_UTF8).decode())
    except UnicodeDecodeError as error:
        detail = f"text is not valid UTF-8: {error.reason} at byte {error.start}"
        raise BadRecord(BROKEN_JSON, _hint(data) or detail) from None
    except RecursionError:
        raise BadRecord(BROKEN_JSON, TOO_DEEP) from None
    except ValueError as error:
        raise BadRecord(BROKEN_JSON, _hint(data) or str(error)) from None
    return require_object(value, data)


def unambiguous(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a JSON object of its keys and values.

    Raises: BadRecord with reason `repeated_key` where a key has two values: parsers differ in which
    of them counts.
    """
    found = dict(pairs)
    if len(found) != len(pairs):
        for name, value in pairs:
            if found[name] != value:
                detail = (
                    f"the key {name!r} is there twice, with {value!r:.80} and {found[name]!r:.80}"
                )
                raise BadRecord("repeated_key", detail)
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=unambiguous)


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
        raise BadRecord(BROKEN_JSON, f"expected an object, found {kind_of(value)}")
    if data is None or _SURROGATE.search(data):
        try:
            data = json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise BadRecord(BROKEN_JSON, f"text is not valid Unicode: {error.reason}") from None
        except RecursionError:
            raise BadRecord(BROKEN_JSON, TOO_DEEP) from None
    if data.count(b"[") + data.count(b"{") > MAX_DEPTH and _is_too_deep(value):
        raise BadRecord(BROKEN_JSON, TOO_DEEP)
    return value


def _is_too_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        parts = (part.values() if isinstance(part, dict) else part for part in level)
        level = [part for several in parts for part in several if isinstance(part, dict | list)]
    return bool(level)
