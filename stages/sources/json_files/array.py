"""One large JSON array: the byte range of every element, without holding the file in memory."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from typing import Any, BinaryIO

from koe.errors import BadRecord
from stages.file_signatures import looks_like
from stages.sources.fields import TOO_DEEP, unambiguous
from stages.sources.files.lines import MAX_RECORD_BYTES, num_bytes
from stages.sources.json_files.recovery import element_end, element_starts
from stages.sources.planning import Gap

_CHUNK_BYTES = 1 << 20
_MAX_ELEMENT_CHARS = MAX_RECORD_BYTES  # a broken one must not draw the rest of a file into memory
_LOOK_AHEAD_CHARS = len("e+")
_LONGEST_WORD = len("-Infinity\\ud800\\udc00")  # an error this near to the edge may be a cut
_LONGEST_START = 512  # of what tells the start of an element
_CLOSED = "closed"  # the state of a reader behind an array's closing bracket
_HEAD_BYTES = 1 << 16
_SPACE = " \t\r\n"


class _Text:
    """A sliding window of a file's text that knows its position in bytes.

    Bytes that are not valid UTF-8 pass through as surrogates, so that positions stay exact.
    """

    def __init__(self, file: BinaryIO, start: int) -> None:
        file.seek(start)
        self._file = file
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self.text, self.at, self.byte, self.ended = "", 0, start, False

    def grow(self, chars: int = 1) -> None:
        """Drop what was consumed, and read until there are `chars` more or the file ends."""
        self.text, self.at = self.text[self.at :], 0
        wanted = len(self.text) + chars
        parts, have = [self.text], len(self.text)
        while have < wanted and not self.ended:
            data = self._file.read(_CHUNK_BYTES)
            self.ended = not data
            parts.append(self._decoder.decode(data, final=self.ended))
            have += len(parts[-1])
        self.text = "".join(parts)

    def grow_to(self, chars: int) -> bool:
        """Grow by as many characters as an element may still have; return whether it may have any.

        The window that an element is looked at in must not depend on where reading began.
        """
        left = _MAX_ELEMENT_CHARS - (len(self.text) - self.at)
        if left > 0:
            self.grow(min(chars, left))
        return left > 0

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

    def head(self) -> str:
        """Return the text that the file begins with."""
        place = self._file.tell()
        self._file.seek(0)
        data = self._file.read(_HEAD_BYTES)
        self._file.seek(place)
        return data.decode("utf-8-sig", "surrogateescape")


def array_elements(
    file: BinaryIO, start: int, state: str = ""
) -> Iterator[tuple[int, int, Any] | Gap]:
    """Yield (first byte, byte after the last, value) of the elements that begin at `start` or later.

    The value of a broken element is a BadRecord. A Gap is where broken text may be more than one
    element, or where no other follows. `start` is 0, or the first byte of an element. Of what
    surrounds the elements nothing is required but the bracket at the start of the file: a missing or
    needless comma loses nothing, and arrays may follow each other.
    """
    text = _Text(file, start)
    if start == 0 and (why := _enter(text)):
        yield Gap(0, num_bytes(file), why)
        return
    is_closed = state == _CLOSED
    while mark := text.skip_space():
        if mark in ",]" or (mark == "[" and is_closed):
            is_closed = mark == "]" or (mark == "," and is_closed)
            text.take(text.at + 1)
            continue
        first, value = text.byte, _element(text)
        if isinstance(value, BadRecord):
            is_exact = _pass_over(text)
            if is_exact is None:
                why, state = (
                    ("text follows the array", _CLOSED) if is_closed else (value.detail, "")
                )
                yield Gap(first, num_bytes(file), why, state)
                return
            if not is_exact:
                yield Gap(first, text.byte, value.detail, reason=value.reason)
                continue
        yield first, text.byte, value
        is_closed = False
    if not is_closed:
        yield Gap(text.byte, text.byte, "the array ends without a closing bracket")


def _enter(text: _Text) -> str:
    """Move behind the opening bracket; return what is wrong if there is none."""
    text.grow()
    begin = text.text[:64]
    if name := looks_like(begin.encode("utf-8", "surrogateescape")):
        return f"expected an array, found {name}"
    if "\0" in begin[:8]:
        return "expected an array, found zero bytes, as in text in UTF-16"
    if text.text.startswith("\ufeff"):
        text.take(1)
    mark = text.skip_space()
    if mark != "[":
        return f"expected an array, found {mark!r}" if mark else "there is no array"
    text.take(text.at + 1)
    return ""


def _element(text: _Text) -> Any:
    """Return the value of the element that begins here and move behind it.

    Where it is broken, return a BadRecord and do not move.
    """
    decoder, chars = json.JSONDecoder(object_pairs_hook=unambiguous), _CHUNK_BYTES
    while True:
        size = len(text.text)
        try:
            value, stop = decoder.raw_decode(text.text, text.at)
            # A number at the edge of the window may continue behind it, as in 1.5|e10.
            if stop - text.at > _MAX_ELEMENT_CHARS:
                return _too_large(text)
            if text.ended or isinstance(value, dict) or size - stop > _LOOK_AHEAD_CHARS:
                text.take(stop)
                return value
            why, is_cut = "", True
        except json.JSONDecodeError as error:
            why = f"byte {text.byte:,}, character {error.pos - text.at:,} of it: {error.msg}"
            is_cut = error.msg.startswith("Unterminated") or size - error.pos < _LONGEST_WORD
        except ValueError as error:  # a number of very many digits
            why, is_cut = f"byte {text.byte:,}: {error}", False
        except RecursionError:
            why, is_cut = f"byte {text.byte:,}: {TOO_DEEP}", False
        except BadRecord as bad:
            return BadRecord(bad.reason, f"the element at byte {text.byte:,}: {bad.detail}")
        if text.ended or not is_cut:
            return BadRecord("broken_json", f"the element at {why}")
        if not text.grow_to(chars):
            return _too_large(text)
        chars *= 2


def _too_large(text: _Text) -> BadRecord:
    detail = f"the element at byte {text.byte:,} has more than {_MAX_ELEMENT_CHARS:,} characters"
    return BadRecord("record_too_large", detail)


def _pass_over(text: _Text) -> bool | None:
    """Move behind the broken element that begins here, perhaps behind more than one.

    Returns whether it is exactly one; None if there is no element to go on with.
    """
    starts, chars = element_starts(text.head(), text.text, text.at), _CHUNK_BYTES
    while True:
        seen = text.text[: text.at + _MAX_ELEMENT_CHARS]
        end = element_end(seen, text.at, starts)
        if end is not None and (end.at < len(seen) or text.ended):
            text.take(end.at)
            return end.is_exact
        if text.ended or not text.grow_to(chars):
            break
        chars *= 2
    while (start := starts.find(text.text, text.at + 1)) is None:
        if text.ended:
            return None
        text.take(max(text.at, len(text.text) - _LONGEST_START))
        text.grow(_CHUNK_BYTES)
    text.take(start)
    return False
