"""Each language that the checks of transcripts know is sound; one that is added is checked too."""

from __future__ import annotations

import re
from typing import get_args

import pytest

from stages import settings
from stages.settings import TranscriptsConfig
from stages.text.language import ANY
from stages.text.transcripts import LANGUAGES, TranscriptChecks

KNOWN = [name for name in LANGUAGES if name is not None]


def test_the_settings_offer_the_languages_that_are_known():
    assert set(get_args(settings.Language)) == set(KNOWN)
    assert LANGUAGES[None] is ANY


@pytest.mark.parametrize("name", KNOWN)
def test_a_language_is_sound(name):
    language = LANGUAGES[name]
    assert language.script
    script = re.compile(f"[{language.script}]")
    silent = re.compile(f"[{language.silent}]") if language.silent else re.compile("(?!)")
    letters = [c for c in map(chr, range(0x110000)) if c.isalpha()]
    assert any(map(script.match, letters))
    assert not all(map(script.match, letters))
    assert all(c.isalpha() for c in letters if silent.match(c))
    phrases = language.invented_phrases
    assert len(set(phrases)) == len(phrases) > 0
    config = TranscriptsConfig(language=name, invented_phrases=["default"])
    for phrase in phrases:
        found = TranscriptChecks(config).rejection(phrase, 5.0)
        assert found, phrase
        assert found.reason == "invented_phrase"
