"""Text from corpora and from the user, made safe to show in a terminal."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

MAX_NAMES = 5

_DIRECTIONS = (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_SYMBOLS = {
    **{code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"},
    0x7F: "\u2421",
    **{code: f"\\x{code:02x}" for code in range(0x80, 0xA0)},
    **{code: f"\\u{code:04x}" for code in _DIRECTIONS},
}


def escape_control_characters(text: str) -> str:
    """Replace every control character and every mark of direction by a symbol.

    What a corpus holds must neither command the terminal nor turn the words around it. Newlines
    and tabs stay.
    """
    return text.translate(_SYMBOLS)


def shorten(text: str, max_chars: int) -> str:
    """Take the middle out of a text that is too long: what is wrong often stands at its end."""
    half = max_chars // 2
    return text if len(text) <= max_chars else f"{text[:half]}…{text[-half:]}"


def shorten_list(names: Iterable[str], wanted: str = "") -> str:
    """List names; of more than five, those most like `wanted` and how many others there are."""
    known = list(names)
    if not known:
        return "none"
    shown = known[:MAX_NAMES]
    if wanted and len(known) > MAX_NAMES:
        shown = get_close_matches(wanted, known, MAX_NAMES, cutoff=0.0)
    more = f" …and {len(known) - len(shown):,} more" if len(known) > len(shown) else ""
    return escape_control_characters(", ".join(shown)) + more
