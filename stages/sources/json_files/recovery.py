"""Where a broken element of a JSON array ends, so that the elements behind it are read."""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

# A string, a bracket, or a quote that opens a string without an end. Strings may hold raw control
# characters: RFC 8259 forbids them, but they do not hide where a string ends.
_TOKEN = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[{}\[\]"]', re.DOTALL)
_CLOSES = {"}": "{", "]": "["}
_KEY = re.compile(r'\s*\{\s*"([^"\\]{1,200})"\s*:')
_LOOK_BEHIND = 200  # characters, for what stands before an element
_LOOKED_AT = 16  # sound elements, to learn whether objects in their lists begin as they do
_WORD_END = re.compile(r"[,\]{]")


class Starts(NamedTuple):
    """What tells the start of an element.

    `pattern` matches the first key of an element and the bracket before it; in an element,
    `in_lists` objects of a list may begin with this key too.
    """

    pattern: re.Pattern[str]
    in_lists: bool

    def find(self, text: str, at: int) -> int | None:
        """Find the first place from `at` on where an element may start.

        What follows a colon or an opening bracket is within one.
        """
        for match in self.pattern.finditer(text, at):
            before = text[max(0, match.start() - _LOOK_BEHIND) : match.start()].rstrip()
            if not before.endswith((":", "[")):
                return match.start()
        return None


class End(NamedTuple):
    """Where to go on, and whether exactly one element lies before that."""

    at: int
    is_exact: bool


def element_starts(head: str, text: str, at: int) -> Starts:
    """Tell how elements start, from the text that the array begins with and a broken one at `at`."""
    first = head[head.find("[") + 1 :]
    found = (_KEY.match(first), _KEY.match(text, at))
    keys = [re.escape(match.group(1)) for match in found if match]
    names = "|".join(keys) or r'[^"\\]{1,200}'
    starts = Starts(re.compile(rf'\{{\s*"(?:{names})"\s*:'), in_lists=True)
    sound = _sound_objects(first, starts)
    in_lists = not sound or any(next(iter(one)) in _keys_in_lists(one) for one in sound)
    return starts._replace(in_lists=in_lists)


def _sound_objects(text: str, starts: Starts) -> list[dict[str, Any]]:
    """Parse the first objects of a text that begin as elements do, as many as can be parsed."""
    decoder, found = json.JSONDecoder(), []
    place = starts.find(text, 0)
    while place is not None and len(found) < _LOOKED_AT:
        try:
            value, place = decoder.raw_decode(text, place)
            found.append(value)
        except (ValueError, RecursionError):
            place += 1
        place = starts.find(text, place)
    return found


def _keys_in_lists(value: Any) -> set[str]:
    """List the first keys of all objects that are elements of lists, however deep they lie."""
    found: set[str] = set()
    waiting = [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, list):
            found |= {next(iter(entry)) for entry in part if isinstance(entry, dict) and entry}
        inner = part.values() if isinstance(part, dict) else part
        waiting += [entry for entry in inner if isinstance(entry, dict | list)]
    return found


def element_end(text: str, at: int, starts: Starts) -> End | None:
    """Return where to go on after the broken element at `at`; None where the text does not tell.

    That is where its brackets close, whatever stands between them; or before that, the start of an
    object that cannot be part of it: because it would be an entry without a key, or an object in a
    list that begins as only elements do, or because it would lie in a string, where its quotes
    would be escaped.
    """
    if text[at] not in '{["':
        word = _WORD_END.search(text, at + 1)
        return End(word.start(), is_exact=True) if word else None
    other = starts.find(text, at + 1)
    stack: list[str] = []
    for token in _TOKEN.finditer(text, at):
        while other is not None and other < token.start():
            other = starts.find(text, other + 1)
        mark = token.group()
        if other is not None and token.start() <= other < token.end():
            is_entry = bool(stack) and (stack[-1] == "{" or not starts.in_lists)
            if len(mark) > 1 or is_entry:
                return End(other, is_exact=False)
        if mark in ("{", "["):
            stack.append(mark)
        elif mark == '"':  # the string has no end
            return None if other is None else End(other, is_exact=False)
        elif mark in _CLOSES and _CLOSES[mark] in stack:
            while stack.pop() != _CLOSES[mark]:
                pass
        if not stack:
            return End(token.end(), is_exact=True)
    return None
