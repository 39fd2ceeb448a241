"""One large JSON array: the byte range of every element, without holding the file in memory."""

from __future__ import annotations

import codecs
import json
import sys
from collections.abc import Iterator
from typing import Any, BinaryIO

from stages.sources.files import Fault

_CHUNK_BYTES = 1 << 20
_MAX_ELEMENT_CHARS = 1 << 26  # a broken element must not draw the rest of the file into memory
_LOOK_AHEAD_CHARS = len("e+")
_SPACE = " \t\r\n"


class _Text:
    """A sliding window of a file's text that knows its position in bytes.

    Bytes that are not valid UTF-8 pass through as surrogates, so that positions stay exact.
    """

    def __init__(self, file: BinaryIO, start: int, stop: int | None) -> None:
        file.seek(start)
        self._file, self._left = file, sys.maxsize if stop is None else stop - start
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self.text, self.at, self.byte, self.ended = "", 0, start, False

    def grow(self, chars: int = 1) -> None:
        """Drop what was consumed, and read until there are `chars` more or the file ends."""
        self.text, self.at = self.text[self.at :], 0
        wanted = len(self.text) + chars
        parts, have = [self.text], len(self.text)
        while have < wanted and not self.ended:
            data = self._file.read(min(_CHUNK_BYTES, self._left))
            self._left -= len(data)
            self.ended = not data
            parts.append(self._decoder.decode(data, final=self.ended))
            have += len(parts[-1])
        self.text = "".join(parts)

    def take(self, stop: int) -> None:
        self.byte += len(self.text[self.at : stop].encode("utf-8", "surrogateescape"))
        self.at = stop

    def skip_space(self) -> str:
        """Move to the next character that is not white space and return it; "" at the end."""
        while True:
            stop = self.at
            while stop < len(self.text) and self.text[stop] in _SPACE:
                stop += 1
            self.take(stop)
            if self.at < len(self.text):
                return self.text[self.at]
            if self.ended:
                return ""
            self.grow()


def array_elements(file: BinaryIO, start: int, stop: int | None) -> Iterator[tuple[int, int, Any]]:
    """Yield (first byte, byte after the last, value) of the elements.

    A read from byte 0 expects the array's brackets; any other expects elements and commas, up to
    `stop`.

    Raises: Fault where the array breaks off or an element cannot be parsed.
    """
    text = _Text(file, start, stop)
    if start == 0 and stop is None:
        _enter(text)
        if text.skip_space() == "]":
            _leave(text)
            return
    while True:
        if not text.skip_space():
            raise Fault(f"the array ends at byte {text.byte} without a closing bracket")
        first, value = text.byte, _element(text)
        yield first, text.byte, value
        mark = text.skip_space()
        if mark == "" and stop is not None:
            return
        if mark == "]" and stop is None:
            _leave(text)
            return
        if mark != ",":
            what = f"found {mark!r}" if mark else "the file ends"
            raise Fault(f"expected a comma or a closing bracket at byte {text.byte}, {what}")
        text.take(text.at + 1)


def _enter(text: _Text) -> None:
    text.grow()
    if text.text.startswith("\ufeff"):
        text.take(1)
    mark = text.skip_space()
    if mark != "[":
        raise Fault(f"expected an array, found {mark!r}" if mark else "the file is empty")
    text.take(text.at + 1)


def _leave(text: _Text) -> None:
    text.take(text.at + 1)
    if text.skip_space():
        raise Fault(f"text follows the array at byte {text.byte}")


def _element(text: _Text) -> Any:
    decoder, chars = json.JSONDecoder(), _CHUNK_BYTES
    while True:
        try:
            value, stop = decoder.raw_decode(text.text, text.at)
            # A number at the edge of the window may continue behind it, as in 1.5|e10.
            if text.ended or isinstance(value, dict) or len(text.text) - stop > _LOOK_AHEAD_CHARS:
                text.take(stop)
                return value
            error: Exception | None = None
        except (ValueError, RecursionError) as caught:
            error = caught
        if error is not None and (text.ended or len(text.text) - text.at > _MAX_ELEMENT_CHARS):
            raise Fault(f"the element at byte {text.byte} is broken: {error}") from None
        text.grow(chars)
        chars *= 2
