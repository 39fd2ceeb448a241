"""Checks of one transcript: does it fit its clip, and can it be what was said?

Pure functions of text and seconds, so that a run and the forecast of one (`koe stats --what-if`)
decide alike.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Literal, NamedTuple

import numpy as np

from koe.errors import BadRecord
from stages.settings import TranscriptsConfig
from stages.text.japanese import JAPANESE
from stages.text.language import ANY, Language
from stages.text.unicode import has_visible_text

# Reasons for a rejection, in the order in which a clip is checked: it is counted under the first.
INVISIBLE = "invisible_characters"
PHRASE = "invented_phrase"
REPEATS = "repeated_text"
SCRIPT = "other_script"
SHORT, LONG = "text_too_short", "text_too_long"
REASONS = (INVISIBLE, PHRASE, REPEATS, SCRIPT, SHORT, LONG)
SHORT_FOR_SOURCE, LONG_FOR_SOURCE = "text_short_for_source", "text_long_for_source"

MAX_NGRAM = 40  # characters of a repetition
_FORMS: dict[str, Literal["NFC", "NFKC"]] = {"nfc": "NFC", "nfkc": "NFKC"}
LANGUAGES: dict[str | None, Language] = {"ja": JAPANESE, None: ANY}

# Of the rates of a source: fewer clips than this tell nothing about their distribution.
MIN_CLIPS = 20
_MAD_TO_DEVIATION = 1.4826  # of a normal distribution


@cache
def _invisible() -> re.Pattern[str]:
    """Match controls but tab and line breaks, and format characters.

    Those are zero-width spaces and joiners, marks of direction, byte order marks, soft hyphens
    (general categories Cc and Cf of the Unicode Standard).
    """
    found = (c for c in map(chr, range(sys.maxunicode + 1)) if c not in "\t\n\r")
    hidden = (c for c in found if unicodedata.category(c) in ("Cc", "Cf"))
    return re.compile(f"[{''.join(map(re.escape, hidden))}]")


class Rejection(NamedTuple):
    """Why a clip is rejected: one of REASONS, and what was found."""

    reason: str
    detail: str


@dataclass(frozen=True)
class TranscriptChecks:
    """The checks that the settings ask for."""

    settings: TranscriptsConfig

    @cached_property
    def language(self) -> Language:
        return LANGUAGES[self.settings.language]

    def prepared(self, text: str) -> str:
        """Return the transcript as it is checked and tokenized."""
        if self.settings.invisible_characters == "strip":
            text = _invisible().sub("", text)
        form = _FORMS.get(self.settings.normalize)
        return unicodedata.normalize(form, text) if form else text

    def rejection(self, text: str, seconds: float) -> Rejection | None:
        """Check a prepared transcript of a clip of `seconds`; None where it may stay."""
        settings = self.settings
        if settings.invisible_characters != "keep":
            if found := _invisible().search(text):
                return Rejection(INVISIBLE, f"U+{ord(found[0]):04X} in place {found.start()}")
            if not has_visible_text(text):
                return Rejection(INVISIBLE, "nothing else is in the text")
        if self._invented and self._invented.fullmatch(_comparable(text)):
            return Rejection(PHRASE, f"the text is {text!r:.120}")
        if self._repeats and (found := self._repeats.search(text)):
            times = len(found[0]) // len(found[1])
            return Rejection(REPEATS, f"{found[1]!r} comes {times} times or more")
        share = settings.min_script_share
        if share is not None and (of_script := self.language.script_share(text)) < share:
            return Rejection(SCRIPT, f"{of_script:.0%} of the letters of {text!r:.120}")
        return self._rate_rejection(text, seconds)

    def rate(self, text: str, seconds: float) -> float:
        """Return the characters per second of a prepared transcript; inf for a clip of no length."""
        number = len(self.language.characters(text))
        return number / seconds if seconds > 0 else float("inf")

    def _rate_rejection(self, text: str, seconds: float) -> Rejection | None:
        least = self.settings.min_characters_per_second
        most = self.settings.max_characters_per_second
        if least is None and most is None:
            return None
        rate = self.rate(text, seconds)
        if least is not None and rate < least:
            return Rejection(SHORT, f"{rate:.2f} characters per second < {least:g}")
        if most is not None and rate > most:
            return Rejection(LONG, f"{rate:.2f} characters per second > {most:g}")
        return None

    @cached_property
    def _invented(self) -> re.Pattern[str] | None:
        """Match comparable texts that consist of nothing but invented phrases, also repeated."""
        phrases: set[str] = set()
        for phrase in self.settings.invented_phrases:
            known = self.language.invented_phrases if phrase == "default" else (phrase,)
            phrases.update(map(_comparable, known))
        phrases.discard("")
        if not phrases:
            return None
        longest_first = sorted(phrases, key=lambda phrase: (-len(phrase), phrase))
        return re.compile(f"(?:{'|'.join(map(re.escape, longest_first))})+")

    @cached_property
    def _repeats(self) -> re.Pattern[str] | None:
        most = self.settings.max_repeats
        if most is None:
            return None
        return re.compile(rf"(\w.{{0,{MAX_NGRAM - 1}}}?)\1{{{most}}}", re.DOTALL)


def speech_prompt(template: str, text: str, speaker: str | None) -> str:
    """Fill in the prompt of a clip. Raises: BadRecord where it names a speaker that is not known."""
    if speaker is None or not speaker.strip():
        if "{speaker}" in template:
            raise BadRecord("missing_speaker", f"the prompt is {template!r}")
        speaker = ""
    return template.format(text=text, speaker=speaker)


def _comparable(text: str) -> str:
    """Leave only what two spellings of a phrase have in common: letters and digits, case folded."""
    return ANY.characters(unicodedata.normalize("NFKC", text).casefold())


def rate_bounds(rates: np.ndarray, max_deviations: float) -> tuple[float, float] | None:
    """Return the least and the largest rate of a source that are not unusual.

    `rates`: characters per second of all its clips, float [n]. Speaking rates are skewed, so their
    logarithms are judged: by the median and by the median absolute deviation, scaled to the standard
    deviation of a normal distribution (Leys et al., Journal of Experimental Social Psychology 49,
    2013). Rates of 0 and infinity tell nothing about the others, and are always outside.
    None where fewer than MIN_CLIPS rates tell of the distribution, or half of them are equal.
    """
    logs = np.log(rates[(rates > 0) & np.isfinite(rates)].astype(np.float64))
    if len(logs) < MIN_CLIPS:
        return None
    middle = float(np.median(logs))
    spread = _MAD_TO_DEVIATION * float(np.median(np.abs(logs - middle)))
    if not spread:
        return None
    reach = max_deviations * spread
    return float(np.exp(middle - reach)), float(np.exp(middle + reach))


def unusual_rates(rates: np.ndarray, max_deviations: float) -> np.ndarray:
    """Judge the rates of a source by `rate_bounds`: -1 too low, 1 too high, 0 usual; int8 [n]."""
    bounds = rate_bounds(rates, max_deviations)
    if bounds is None:
        return np.zeros(len(rates), np.int8)
    exact = rates.astype(np.float64)
    return (exact > bounds[1]).astype(np.int8) - (exact < bounds[0]).astype(np.int8)
