"""Damage to files, decided by the bytes of a tape: hypothesis draws one, or a fuzzer finds one."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping

Files = Mapping[str, bytes]

_MAX_CHANGES, _EDGE_BYTES, _MAX_BLOCK_BYTES = 4, 96, 700
_BYTES = b'\0\xff\x80\x7f\x01"\\\n\r,{}[]:/. \t\xed'
_NUMBERS = (0, 1, -1, 2, 127, 128, 255, 256, 32767, 65535, 1 << 20, 1 << 31, (1 << 31) - 1, -(1 << 31),
            1 << 40, (1 << 63) - 1, 0x7FFFF000)  # fmt: skip
_PACKED = ("<B", "<H", ">H", "<I", ">I", "<Q", ">Q")
# What may stand instead of a word, a number or a quoted text.
_VALUES = (
    b"", b"null", b"true", b"-1", b"0", b"1e999", b"-0.0", b"NaN", b"1e-320", b"9" * 400, b"[]", b"{}",
    b'""', b'"x"', b"[" * 200, b'{"a":' * 200, b'"\\ud800"', b'"\xed\xa0\x80"', b'"\\u0000"', b'"a\\nb"',
    b'"../../etc/passwd"', b'"/dev/zero"', b'"/dev/tty"', b'"s3://b/x"', b'"a::b://c"', b'"\xff\xfe"', b"\xff",
    b'"' + b"y" * 5000 + b'"', b'["a", null]', b'[[0, 1], {"a": 1}]', b'{"bytes": null}', b"../x.wav", b"\0",
    b"x\ny", b"'", b'"', b'1,2', b'"a""b"', b"\xe2\x80\xa8", b"0x10", b"1_000", "１２".encode(), b'"a\\', b"12:30",
)  # fmt: skip
_TOKEN = re.compile(rb'"(?:[^"\\\n]|\\.)*"|[^\s",:{}\[\]|;]+')


class Tape:
    """Decisions, byte after byte; behind its end each is the first of the choices."""

    def __init__(self, data: bytes) -> None:
        self._data, self._place = data, 0

    @property
    def is_over(self) -> bool:
        return self._place >= len(self._data)

    def below(self, number: int) -> int:
        """Return a number from 0 to `number` - 1."""
        size = max(1, ((number - 1).bit_length() + 7) // 8)
        part = self._data[self._place : self._place + size]
        self._place += size
        return int.from_bytes(part, "little") % max(1, number)

    def rest(self, size: int) -> bytes:
        part = self._data[self._place : self._place + size]
        self._place += size
        return part


def damaged(files: Files, tape: Tape) -> dict[str, bytes]:
    """Return files of which at least one is changed in one to four ways, if the tape says how."""
    changed = dict(files)
    names = sorted(files)
    for _ in range(1 + tape.below(_MAX_CHANGES)):
        if tape.is_over:
            break
        name = names[tape.below(len(names))]
        change = _CHANGES[tape.below(len(_CHANGES))]
        changed[name] = change(changed[name], tape)
    return changed


def _place(data: bytes, tape: Tape) -> int:
    """Choose a place: near the start or the end, where formats keep what they state, or anywhere."""
    near = min(len(data), _EDGE_BYTES)
    where = tape.below(4)
    if where == 0:
        return tape.below(near + 1)
    return len(data) - tape.below(near + 1) if where == 1 else tape.below(len(data) + 1)


def _block(data: bytes, tape: Tape) -> tuple[int, int]:
    start = _place(data, tape)
    return start, min(len(data), start + 1 + tape.below(_MAX_BLOCK_BYTES))


def _flip(data: bytes, tape: Tape) -> bytes:
    place = min(_place(data, tape), len(data) - 1)
    return (
        data[:place] + bytes((data[place] ^ 1 << tape.below(8),)) + data[place + 1 :]
        if data
        else data
    )


def _byte(data: bytes, tape: Tape) -> bytes:
    place = _place(data, tape)
    return data[:place] + _BYTES[(at := tape.below(len(_BYTES))) : at + 1] + data[place + 1 :]


def _number(data: bytes, tape: Tape) -> bytes:
    place, form = _place(data, tape), _PACKED[tape.below(len(_PACKED))]
    size = struct.calcsize(form)
    number = _NUMBERS[tape.below(len(_NUMBERS))] % (1 << 8 * size)
    return data[:place] + struct.pack(form, number) + data[place + size :]


def _cut(data: bytes, tape: Tape) -> bytes:
    return data[: _place(data, tape)]


def _delete(data: bytes, tape: Tape) -> bytes:
    start, stop = _block(data, tape)
    return data[:start] + data[stop:]


def _insert(data: bytes, tape: Tape) -> bytes:
    place, size = _place(data, tape), 1 + tape.below(16)
    return data[:place] + tape.rest(size).ljust(size, b"\0") + data[place:]


def _zeros(data: bytes, tape: Tape) -> bytes:
    start, stop = _block(data, tape)
    return data[:start] + bytes(stop - start) + data[stop:]


def _duplicate(data: bytes, tape: Tape) -> bytes:
    start, stop = _block(data, tape)
    place = _place(data, tape)
    return data[:place] + data[start:stop] + data[place:]


def _overwrite(data: bytes, tape: Tape) -> bytes:
    start, stop = _block(data, tape)
    place = _place(data, tape)
    return data[:place] + data[start:stop] + data[place + stop - start :]


def _value(data: bytes, tape: Tape) -> bytes:
    tokens = list(_TOKEN.finditer(data[: 1 << 14]))
    value = _VALUES[tape.below(len(_VALUES))]
    if not tokens:
        return data + value
    start, stop = tokens[tape.below(len(tokens))].span()
    return data[:start] + value + data[stop:]


def _again(data: bytes, tape: Tape) -> bytes:
    """Exchange two words or values of a text, so that a field is there twice or has another's value."""
    tokens = list(_TOKEN.finditer(data[: 1 << 14]))
    if not tokens:
        return data
    one, other = (tokens[tape.below(len(tokens))] for _ in range(2))
    return data[: one.start()] + other.group() + data[one.end() :]


def _twice(data: bytes, tape: Tape) -> bytes:
    return data + data[_place(data, tape) :]


_CHANGES: tuple[Callable[[bytes, Tape], bytes], ...] = (
    _flip, _value, _byte, _number, _cut, _delete, _insert, _zeros, _duplicate, _overwrite, _value, _again,
    _twice, _flip, _number, _value,
)  # fmt: skip
