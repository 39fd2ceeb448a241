"""Texts that are not UTF-8: refused by the name of what they look like, as far as it can be told."""

from __future__ import annotations

import re

from koe.errors import ConfigError

_KANA = re.compile("[\u3041-\u3096\u30a1-\u30fa]")
# How Japanese was written before UTF-8, by the names that iconv has for it, and Python too.
_JAPANESE = ("CP932", "EUC-JP", "ISO-2022-JP")
_ESCAPE = b"\x1b$"  # begins Japanese text in ISO-2022-JP, whose bytes are all ASCII


def require_utf8(source: str, path: str, head: bytes) -> None:
    """Check that a file of lines, of which `head` is the beginning, can be UTF-8.

    A single line that cannot be read is a broken record, not a wrong encoding.

    Raises: ConfigError that names the encoding.
    """
    if name := _foreign(head):
        raise ConfigError(
            f"source {source} cannot read {path}",
            f"it looks like text in {name}, and koe reads UTF-8",
            f"Convert it, for example with `iconv -f {name} -t UTF-8`.",
        )


def _foreign(head: bytes) -> str:
    """Return the encoding that a text is in; empty if it is UTF-8, or cannot be told."""
    if name := _wide(head):
        return name
    lines = [line for line in head.split(b"\n") if not line.isascii() or _ESCAPE in line]
    lines = lines[:-1] if head.rpartition(b"\n")[2] in lines[-1:] else lines  # may be cut off
    odd = [line for line in lines if not _is_utf8(line) or _ESCAPE in line]
    if len(odd) < 2 or len(odd) < len(lines):
        return ""
    return next((name for name in _JAPANESE if _fits(odd, name)), "")


def _wide(head: bytes) -> str:
    """Return the encoding of a text that begins with a mark, or whose first letters hold zeros."""
    begin = head[:4]
    if begin in (b"\xff\xfe\0\0", b"\0\0\xfe\xff"):
        return "UTF-32"
    if begin[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "UTF-16"
    if b"\0" not in begin:
        return ""
    order = "BE" if begin[:1] == b"\0" else "LE"
    return f"UTF-32{order}" if begin.count(0) > 2 else f"UTF-16{order}"


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _fits(lines: list[bytes], encoding: str) -> bool:
    """Tell whether lines are Japanese in an encoding: most of them hold kana, none a wrong byte."""
    try:
        texts = [line.decode(encoding) for line in lines]
    except UnicodeDecodeError:
        return False
    return 2 * sum(bool(_KANA.search(text)) for text in texts) >= len(texts)
