"""What the checks of transcripts must know of a language; each language is a module of its own."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_NO_LETTERS_OR_DIGITS = re.compile(r"[\W_]+")  # whitespace, punctuation, symbols, combining marks


@dataclass(frozen=True)
class Language:
    """A language, or any language where nothing is known of it.

    `script`: a character class of `re` (without the brackets) that holds the letters of its script;
    None where any letter will do. `silent`: a class of letters that are not spoken by themselves.
    `invented_phrases`: what speech recognisers write for silence and music.
    """

    script: str | None = None
    silent: str = ""
    invented_phrases: tuple[str, ...] = field(default=(), repr=False)

    def characters(self, text: str) -> str:
        """Return the letters and digits of a text: those that are spoken."""
        text = _NO_LETTERS_OR_DIGITS.sub("", text)
        return re.sub(f"[{self.silent}]", "", text) if self.silent else text

    def script_share(self, text: str) -> float:
        """Return the share of a text's letters that is of the script.

        Digits belong to every script: text of digits alone has a share of 1, and text without a
        letter or digit one of 0.
        """
        characters = self.characters(text)
        letters = re.sub(r"\d", "", characters)
        if self.script is None or not letters:
            return float(bool(characters))
        return len(re.findall(f"[{self.script}]", letters)) / len(letters)


ANY = Language()
