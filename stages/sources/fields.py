"""Values of a source's records: found by dotted names, parsed, and checked."""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Mapping
from typing import Any

from koe.errors import BadRecord, ConfigError


def lookup(fields: Mapping[str, Any], name: str | None) -> Any:
    """Return the value called `name`, where dots descend into nested fields; None if absent."""
    if name is None:
        return None
    if name in fields:
        return fields[name]
    value: Any = fields
    for part in name.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(part)
    return value


def record_key(fields: Mapping[str, Any], id_field: str | None, place: str) -> str:
    """Return the record's id from the field that the configuration names, or else its place.

    Raises: BadRecord when that field is missing; to use the place instead would hide a misspelt
    field name.
    """
    if id_field is None:
        return place
    value = lookup(fields, id_field)
    if value is None or isinstance(value, dict | list) or not str(value).strip():
        raise BadRecord("missing_id", f"field {id_field!r} holds {value!r}")
    return str(value)


def parse_object(data: bytes) -> dict[str, Any]:
    """Parse one JSON object that can also be written as UTF-8.

    Raises: BadRecord with reason `broken_json`.
    """
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadRecord("broken_json", str(error)) from None
    return require_object(value, data)


def require_object(value: Any, data: bytes | None = None) -> dict[str, Any]:
    """Return `value` if it is a JSON object of valid text.

    Raises: BadRecord with reason `broken_json`; lone surrogates (from escapes, or from bytes
    that are not valid UTF-8) count as broken, because Arrow cannot store them.
    """
    if not isinstance(value, dict):
        raise BadRecord("broken_json", f"expected an object, found {type(value).__name__}")
    if data is None or b"\\ud" in data or b"\\uD" in data:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise BadRecord("broken_json", f"text is not valid Unicode: {error.reason}") from None
    return value


def require_columns(
    source: str, path: str, columns: Collection[str], needed: Mapping[str, str | None]
) -> None:
    """Check that every needed column exists; `needed` maps a role to a name, dotted or None.

    Raises: ConfigError naming the key to change and the nearest column.
    """
    for role, name in needed.items():
        if name is None or name in columns or name.split(".")[0] in columns:
            continue
        near = difflib.get_close_matches(name, columns, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(sorted(columns))}"
        raise ConfigError(
            f"source {source} has no column {name!r} for {role}",
            f"{path} lacks it ({hint})",
            f"Set fields.{role} of the source.",
        )
