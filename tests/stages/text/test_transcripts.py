"""Checks of transcripts, compared with plain implementations of the same rules."""

from __future__ import annotations

import math
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from koe.errors import BadRecord
from stages.settings import TranscriptsConfig
from stages.text.japanese import JAPANESE
from stages.text.language import ANY
from stages.text.transcripts import (
    MAX_NGRAM,
    MIN_CLIPS,
    TranscriptChecks,
    rate_bounds,
    speech_prompt,
    unusual_rates,
)

JAPANESE_TEXT = st.text(
    st.sampled_from("あいうえおアイウー々漢字声。、 ！?abcＡ12３\u200b\ufeff\x07\t\nｶﾞが♪�"),
    max_size=40,
)


def checks(**keys) -> TranscriptChecks:
    return TranscriptChecks(TranscriptsConfig(**keys))


def reason(text: str, seconds: float = 5.0, **keys) -> str | None:
    found = checks(**keys)
    rejection = found.rejection(found.prepared(text), seconds)
    return rejection and rejection.reason


@given(JAPANESE_TEXT, st.floats(0, 100))
def test_by_default_nothing_is_changed_and_nothing_rejected(text, seconds):
    assert checks().prepared(text) == text
    assert reason(text, seconds) is None
    assert checks().settings.text_content() == checks().settings.rate_content() == {}


@given(st.text())
def test_normalisation_is_unicodes_own(text):
    for form in ("nfc", "nfkc"):
        assert checks(normalize=form).prepared(text) == unicodedata.normalize(form.upper(), text)


def is_invisible(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cf") and character not in "\t\n\r"


@settings(deadline=None)  # the first call looks through all of Unicode
@given(st.text() | JAPANESE_TEXT)
def test_stripping_takes_out_the_invisible_and_nothing_else(text):
    stripped = checks(invisible_characters="strip").prepared(text)
    assert stripped == "".join(c for c in text if not is_invisible(c))
    rejects = reason(text, invisible_characters="reject") == "invisible_characters"
    if any(map(is_invisible, text)):
        assert rejects
        assert reason(f"文{text}", invisible_characters="strip") is None


@pytest.mark.parametrize(
    "hidden", ["\u200b", "\u200d", "\ufeff", "\u00ad", "\u202e", "\x00", "\x1b"]
)
def test_each_kind_of_invisible_character_is_known(hidden):
    assert reason(f"声{hidden}", invisible_characters="reject") == "invisible_characters"
    assert reason(hidden, invisible_characters="strip") == "invisible_characters"
    assert reason(f"声{hidden}") is None


@pytest.mark.parametrize("text", ["。", "声\t声", "声\r\n声"])
def test_blanks_and_marks_are_no_control_characters(text):
    assert reason(text, invisible_characters="reject") is None


@pytest.mark.parametrize("text", ["", " ", "\u3164", "\n"])
def test_text_that_shows_nothing_is_rejected_with_them(text):
    assert reason(text, invisible_characters="reject") == "invisible_characters"
    assert reason(text, invisible_characters="strip") == "invisible_characters"


def plainly_repeats(text: str, most: int) -> bool:
    def is_repeat(start: int, length: int) -> bool:
        unit = text[start : start + length]
        starts_a_word = unit[0].isalnum() or unit[0] == "_"
        return starts_a_word and text.startswith(unit * (most + 1), start)

    return any(
        is_repeat(start, length)
        for start in range(len(text))
        for length in range(1, min(MAX_NGRAM, len(text) - start) + 1)
    )


@given(st.text("あい、 a", max_size=30), st.integers(1, 6))
def test_a_repetition_is_found_wherever_and_however_long_it_is(text, most):
    assert (reason(text, max_repeats=most) == "repeated_text") == plainly_repeats(text, most)


@given(st.text("あいうえおかき", min_size=1, max_size=MAX_NGRAM), st.integers(1, 9))
def test_text_said_once_more_than_allowed_is_rejected(unit, most):
    assert reason(unit * (most + 1), max_repeats=most) == "repeated_text"


def test_silent_repetitions_are_not_speech():
    assert reason("ええと…………………………", max_repeats=3) is None
    assert reason("はい、はい、はい、はい、", max_repeats=3) == "repeated_text"
    assert reason("長" * 500, max_repeats=8) == "repeated_text"


@pytest.mark.parametrize(
    "text",
    [
        "ご視聴ありがとうございました",
        "ご視聴、ありがとうございました！",
        "ご視聴ありがとうございました。ご視聴ありがとうございました。",
        "ﾁｬﾝﾈﾙ登録お願いします",
        "THANKS FOR WATCHING!",
        "Thanks for watching! 次の動画でお会いしましょう。",
    ],
)
def test_what_recognisers_invent_is_known_in_any_spelling(text):
    assert reason(text, invented_phrases=["default"]) == "invented_phrase"
    assert reason(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "ありがとうございました",
        "ご視聴ありがとうございましたと言った",
        "昨日はご視聴ありがとうございました",
        "",
        "♪",
    ],
)
def test_text_that_holds_more_than_a_phrase_stays(text):
    assert reason(text, invented_phrases=["default"]) is None


def test_phrases_of_ones_own_stand_beside_the_known_ones_or_alone():
    both = ["default", "おしまい"]
    assert reason("おしまい。", invented_phrases=both) == "invented_phrase"
    assert reason("ご視聴ありがとうございました", invented_phrases=both) == "invented_phrase"
    assert reason("ご視聴ありがとうございました", invented_phrases=["おしまい"]) is None
    assert reason("おしまい", invented_phrases=["♪"]) is None  # nothing is left to compare


def test_no_phrase_is_anything_that_people_say_for_themselves():
    assert "ありがとうございました" not in JAPANESE.invented_phrases
    assert len(set(JAPANESE.invented_phrases)) == len(JAPANESE.invented_phrases)


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("声を出して読む。", 1.0),
        ("ｶﾞｯｺｳ", 1.0),
        ("か\u3099っこう", 1.0),
        ("時々、〇〇さん", 1.0),
        ("2024年12月", 1.0),  # digits are of every script
        ("１２３", 1.0),
        ("koeは声", 2 / 5),
        ("hello", 0.0),
        ("안녕하세요", 0.0),
        ("привет", 0.0),
        ("♪♪♪", 0.0),
        ("��", 0.0),
        ("", 0.0),
    ],
)
def test_the_share_of_japanese_is_that_of_the_letters(text, share):
    assert JAPANESE.script_share(text) == pytest.approx(share)
    assert reason(text, min_script_share=max(share, 1e-9)) == (None if share else "other_script")
    if share < 1:
        assert reason(text, min_script_share=share + 0.01) == "other_script"


@given(st.text())
def test_japanese_and_any_language_count_what_can_be_spoken(text):
    spoken = [c for c in text if c.isalnum()]
    assert len(ANY.characters(text)) == len(spoken)
    assert len(JAPANESE.characters(text)) == len([c for c in spoken if c not in "ﾞﾟ"])
    assert 0 <= JAPANESE.script_share(text) <= 1
    assert ANY.script_share(text) == float(bool(spoken))


@given(JAPANESE_TEXT, st.floats(0.01, 60))
def test_the_rate_is_that_of_the_characters(text, seconds):
    rate = len(JAPANESE.characters(text)) / seconds
    assert checks().rate(text, seconds) == rate
    for bound in (0.5, 3.0, 12.0):
        short, long = (
            reason(text, seconds, **{f"{end}_characters_per_second": bound})
            for end in ("min", "max")
        )
        assert short == ("text_too_short" if rate < bound else None)
        assert long == ("text_too_long" if rate > bound else None)


def test_punctuation_makes_no_text_longer():
    assert reason("はい……………………！！", 1.0, max_characters_per_second=3) is None


def test_a_clip_of_no_length_has_too_much_text():
    assert reason("声", 0.0, max_characters_per_second=30) == "text_too_long"
    assert reason("声", 0.0, min_characters_per_second=1) is None


@pytest.mark.parametrize(
    "keys",
    [
        {"min_characters_per_second": 5, "max_characters_per_second": 5},
        {"language": None, "min_script_share": 0.5},
        {"language": None, "invented_phrases": ["default"]},
        {"invented_phrases": [""]},
        {"max_repeats": 0},
        {"language": "xx"},
        {"normalise": "nfc"},
    ],
)
def test_settings_that_make_no_sense_are_refused(keys):
    with pytest.raises(ValidationError):
        TranscriptsConfig(**keys)


def test_content_names_what_decides_and_nothing_else():
    assert TranscriptsConfig(max_rate_deviations=4.0).text_content() == {}
    assert TranscriptsConfig(language=None).text_content() == {}
    on = TranscriptsConfig(max_repeats=8, max_rate_deviations=4.0)
    assert on.text_content() == {"language": "ja", "max_repeats": 8}
    assert TranscriptsConfig(**on.text_content()).max_repeats == 8
    assert on.rate_content() == {
        "language": "ja", "normalize": "none", "invisible_characters": "keep",
        "max_rate_deviations": 4.0,
    }  # fmt: skip


def test_a_prompt_needs_the_speaker_only_where_it_names_one():
    assert speech_prompt("{text}", "{speaker}", None) == "{speaker}"
    assert speech_prompt("{speaker}: {text}", "声", "花子") == "花子: 声"
    with pytest.raises(BadRecord, match="missing_speaker"):
        speech_prompt("{speaker}: {text}", "声", " ")


def plainly_unusual(rates: list[float], most: float) -> list[int]:
    logs = sorted(math.log(rate) for rate in rates if 0 < rate < math.inf)
    if len(logs) < MIN_CLIPS:
        return [0] * len(rates)
    middle = float(np.median(logs))
    spread = 1.4826 * float(np.median([abs(value - middle) for value in logs]))
    if spread == 0:
        return [0] * len(rates)

    def judged(rate: float) -> int:
        value = -math.inf if rate == 0 else math.log(rate)
        return (value > middle + most * spread) - (value < middle - most * spread)

    return list(map(judged, rates))


RATES = st.lists(
    st.sampled_from([0.0, 0.5, 3.0, 3.5, 4.0, 4.5, 5.0, 6.0, 40.0, math.inf]), max_size=60
)


@given(RATES, st.floats(0.55, 20))
def test_unusual_rates_are_those_far_from_the_sources_median(rates, most):
    found = unusual_rates(np.array(rates, np.float32), most).tolist()
    assert found == plainly_unusual(rates, most)


@given(RATES, st.randoms())
def test_the_order_of_the_clips_decides_nothing(rates, random):
    before = dict(zip(rates, unusual_rates(np.array(rates, np.float32), 3.0).tolist(), strict=True))
    random.shuffle(rates)
    after = dict(zip(rates, unusual_rates(np.array(rates, np.float32), 3.0).tolist(), strict=True))
    assert before == after


def test_a_source_of_few_or_equal_rates_has_no_bounds():
    assert rate_bounds(np.linspace(1, 9, MIN_CLIPS - 1), 3.0) is None
    assert rate_bounds(np.full(100, 5.0), 3.0) is None
    least, most = rate_bounds(np.linspace(4, 6, 100), 3.0) or (0, 0)
    assert 1 < least < 4 < 6 < most < 20
