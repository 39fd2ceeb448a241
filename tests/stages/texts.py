"""Texts that tokenizers and prompts are apt to spoil."""

TEXTS = [
    "",
    "こんにちは、世界。今日はいい天気ですね！",
    "ヴァージン・オーストラリアはいつから運航を開始したのですか？",
    "The quick brown fox's 12345 jumps; they'RE over\r\n\r\n  the lazy dog.  ",
    "🍣🙇‍♂️👩🏽‍🚀 絵文字 and \u200b zero width",
    " \t \n  \n\n leading and trailing   ",
    "　全角空白　と ﾊﾝｶｸ ①②③ ℃ が か゚",
    "<|eot_id|> <|begin_of_text|><custom_token_10> <|reserved_special_token_247|>",
    "def f(x):\n    return {'a': [1, 2, 3]}\n",
    "\x00\x07\ufffd\U0010ffff",
]
