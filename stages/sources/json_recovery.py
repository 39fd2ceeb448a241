"""Where a broken element of a JSON array ends, so that the elements behind it are read."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import NamedTuple

# A string, a bracket, or a quote that opens a string without an end. Strings may hold raw control
# characters: RFC 8259 forbids them, but they do not hide where a string ends.
_TOKEN = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[{}\[\]"]', re.DOTALL)
_CLOSES = {"}": "{", "]": "["}
_KEY = re.compile(r'\s*\[?\s*\{\s*"([^"\\]{1,200})"\s*:')
_ANY_KEY = r'[^"\\]{1,200}'


class End(NamedTuple):
    """Where to go on, and whether exactly one element lies before that."""

    at: int
    is_exact: bool


def first_key(text: str, at: int = 0) -> str | None:
    """Return the first key of the object that begins at `at`, or of the array's first element."""
    found = _KEY.match(text, at)
    return found.group(1) if found else None


def element_end(text: str, at: int, keys: Collection[str]) -> End | None:
    """Return where to go on after the broken element at `at`; None where the text does not tell.

    That is where its brackets close, whatever stands between them; or before that, the start of an
    object that cannot be part of it, because it would be an entry without a key, or begin inside a
    string. In a sound string the quotes of such an object would be escaped. `keys` are those that
    elements begin with: without one of them, an object of a list inside the element looks alike.
    """
    if text[at] not in '{["':
        return _word_end(text, at)
    names = "|".join(re.escape(key) for key in keys) or _ANY_KEY
    starts = re.compile(rf'[,\]}}\n]\s*(?=\{{\s*"(?:{names})"\s*:)')
    other = starts.search(text, at + 1)
    stack: list[str] = []
    for token in _TOKEN.finditer(text, at):
        while other is not None and other.end() < token.start():
            other = starts.search(text, other.end())
        mark = token.group()
        if other is not None and token.start() <= other.end() < token.end():
            is_string = len(mark) > 1
            if is_string or (stack and stack[-1] == "{"):
                return End(other.end(), is_exact=False)
        if mark in ("{", "["):
            stack.append(mark)
        elif mark == '"':  # the string has no end
            return None if other is None else End(other.end(), is_exact=False)
        elif mark in _CLOSES and _CLOSES[mark] in stack:
            while stack.pop() != _CLOSES[mark]:
                pass
        if not stack:
            return End(token.end(), is_exact=True)
    return None


def next_element(text: str, at: int, keys: Collection[str]) -> int | None:
    """Return the start of the next object behind `at` that begins with one of `keys`."""
    names = "|".join(re.escape(key) for key in keys) or _ANY_KEY
    found = re.compile(rf'[,\]}}\n]\s*(?=\{{\s*"(?:{names})"\s*:)').search(text, at)
    return found.end() if found else None


def _word_end(text: str, at: int) -> End | None:
    """Return where what is neither an object nor a list nor a string ends."""
    found = re.compile(r"[,\]{]").search(text, at + 1)
    return End(found.start(), is_exact=True) if found else None
