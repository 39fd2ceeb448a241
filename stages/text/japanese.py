"""Japanese: its script, its characters, and what speech recognisers invent in it."""

from __future__ import annotations

from stages.text.language import Language

# Blocks of the Unicode Standard that hold letters of Japanese, punctuation left out. Kanji alone
# count too, so text in Chinese is not told from Japanese by its script.
_SCRIPT = (
    "\u3005-\u3007"  # iteration mark, closing mark and zero of kanji
    "\u3041-\u3096\u309d-\u309f"  # hiragana
    "\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff"  # katakana
    "\uff66-\uff9f"  # katakana of half width
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"  # kanji
    "\U0001b000-\U0001b16f"  # kana of old texts and small ones
)
_VOICING_MARKS = "\uff9e\uff9f"  # of half width: a part of the kana before them

# What recognisers of speech that learnt from subtitles write for silence, noise and music. Phrases
# that people often say by themselves, such as ありがとうございました, are left out.
_INVENTED = (
    "ご視聴ありがとうございました",
    "ご視聴ありがとうございます",
    "ご視聴いただきありがとうございました",
    "ご視聴いただきありがとうございます",
    "ご視聴頂きありがとうございました",
    "ご清聴ありがとうございました",
    "ご覧いただきありがとうございました",
    "ご覧いただきありがとうございます",
    "最後までご視聴ありがとうございました",
    "最後までご視聴いただきありがとうございました",
    "最後までご覧いただきありがとうございました",
    "最後まで見てくれてありがとう",
    "本日はご覧いただきありがとうございます",
    "字幕視聴ありがとうございました",
    "字幕をご覧いただきありがとうございました",
    "この動画の字幕は視聴者によって作成されました",
    "チャンネル登録お願いします",
    "チャンネル登録をお願いします",
    "チャンネル登録をお願いいたします",
    "チャンネル登録よろしくお願いします",
    "チャンネル登録よろしくお願いいたします",
    "チャンネル登録と高評価をお願いします",
    "チャンネル登録高評価よろしくお願いします",
    "高評価とチャンネル登録をお願いします",
    "高評価チャンネル登録よろしくお願いします",
    "次の動画でお会いしましょう",
    "次回の動画でお会いしましょう",
    "また次の動画でお会いしましょう",
    "また次回の動画でお会いしましょう",
    "それではまた次の動画でお会いしましょう",
    "Thank you for watching",
    "Thanks for watching",
    "Please subscribe to my channel",
    "Subtitles by the Amara.org community",
)

JAPANESE = Language(script=_SCRIPT, silent=_VOICING_MARKS, invented_phrases=_INVENTED)
