"""Which characters of a text can be seen."""

from __future__ import annotations

import unicodedata

# Controls, format characters such as ZERO WIDTH SPACE, halves of surrogate pairs, unassigned code
# points, and all kinds of spaces (general categories of the Unicode Standard, chapter 4.5).
_INVISIBLE = frozenset(("Cc", "Cf", "Cs", "Cn", "Zs", "Zl", "Zp"))
# Fillers and variation selectors of other categories that Unicode's DerivedCoreProperties.txt
# calls Default_Ignorable_Code_Point, and the blank pattern of Braille.
_BLANK = frozenset(
    map(
        chr,
        (
            *(0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800, 0x3164, 0xFFA0),
            *range(0x180B, 0x1810),
            *range(0xFE00, 0xFE10),
            *range(0xE0100, 0xE01F0),
        ),
    )
)


def has_visible_text(text: str) -> bool:
    """Tell whether a text has at least one character that leaves a mark on paper."""
    return any(unicodedata.category(c) not in _INVISIBLE and c not in _BLANK for c in text)
