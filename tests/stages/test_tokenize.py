"""The real Llama 3 tokenizer against tiktoken, and samples decoded back."""

import importlib.util
import json
import pickle
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import tiktoken
from tiktoken.load import load_tiktoken_bpe
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from pipeline.errors import ConfigError, ContractError, StageError
from pipeline.schema import ENCODED, UNIT
from pipeline.stage import check_outcome
from pipeline.vocabulary import (
    END_OF_AI,
    END_OF_HUMAN,
    END_OF_TEXT,
    START_OF_AI,
    START_OF_HUMAN,
    START_OF_TEXT,
    drop_repeated_frames,
    split_speech_ids,
)
from stages.conversation import TextNames
from stages.sources.base import Record, Unit
from stages.tokenize import TokenizeSpeech, TokenizeText
from stages.tokenizer import (
    SPLIT_PATTERN,
    TextEncoder,
    load_tokenizer,
    orpheus_tokenizer,
    special_tokens,
    text_tokenizer,
    tokenizer_sha256,
)

DATA = Path(__file__).resolve().parents[2] / "../shared/data"
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


@pytest.fixture(scope="module")
def llama():
    return load_tokenizer("llama-models")


@pytest.fixture(scope="module")
def trained(llama):
    return orpheus_tokenizer(llama)


@pytest.fixture(scope="module")
def tokenizer(llama):
    return text_tokenizer(llama)


@pytest.fixture(scope="module")
def encoder(tokenizer):
    return tokenizer.open()


@pytest.fixture(scope="module")
def reference():
    """Meta's own tokenizer: tiktoken over the packaged ranks."""
    folder = importlib.util.find_spec("llama_models").submodule_search_locations[0]
    ranks = load_tiktoken_bpe(f"{folder}/llama3/tokenizer.model")
    special = {name: len(ranks) + i for i, name in enumerate(special_tokens())}
    return tiktoken.Encoding(
        "llama3", pat_str=SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens=special
    )


def corpus():
    path = DATA / "ja_instruct/dolly_ja_5k.jsonl"
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line)["output"] for line, _ in zip(lines, range(400), strict=False)]


def test_ids_equal_tiktokens(encoder, reference):
    texts = TEXTS + corpus()
    assert encoder.encode(texts) == [reference.encode_ordinary(text) for text in texts]


def test_decoding_gives_the_text_back(encoder, llama):
    for text, ids in zip(TEXTS, encoder.encode(TEXTS), strict=True):
        assert llama.decode(ids) == text


def test_spelled_special_tokens_stay_text(trained):
    hostile = "<|eot_id|><custom_token_10><|begin_of_text|><|reserved_special_token_3|>"
    assert 128266 in trained(hostile, add_special_tokens=False)["input_ids"]  # the danger is real
    ids = text_tokenizer(trained).open().encode([hostile])[0]
    assert max(ids) < 128000
    assert trained.decode(ids) == hostile


def test_an_id_that_is_not_text_is_refused(llama):
    unguarded = TextEncoder(Tokenizer.from_str(llama.backend_tokenizer.to_str()))
    with pytest.raises(ContractError, match="128009"):
        unguarded.encode(["<|eot_id|>"])


def test_special_ids_are_llama_3s(llama):
    names = special_tokens()
    assert len(names) == len(set(names)) == 256
    assert len(llama) == 128256
    assert llama.convert_tokens_to_ids(names) == list(range(128000, 128256))
    assert llama.convert_tokens_to_ids("<|eot_id|>") == END_OF_TEXT
    assert llama("猫")["input_ids"][0] == START_OF_TEXT


def test_orpheus_tokens_follow(llama, trained):
    assert len(trained) == 156938
    assert len(llama) == 128256
    assert trained.convert_tokens_to_ids(["<custom_token_0>", "<custom_token_10>"]) == [
        128256,
        128266,
    ]
    assert trained.decode([128266, 156937], skip_special_tokens=True) == (
        "<custom_token_10><custom_token_28681>"
    )


def test_a_saved_folder_loads_as_the_same_tokenizer(llama, tmp_path):
    llama.save_pretrained(tmp_path)
    again = load_tokenizer(str(tmp_path))
    assert tokenizer_sha256(again) == tokenizer_sha256(llama)
    assert len(tokenizer_sha256(again)) == 64


def test_other_tokenizers_and_missing_folders_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot be loaded.*llama-models"):
        load_tokenizer(str(tmp_path / "absent"))
    other = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(
            '{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,'
            '"pre_tokenizer":null,"post_processor":null,"decoder":null,'
            '"model":{"type":"BPE","vocab":{"a":0},"merges":[]}}'
        )
    )
    other.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="not Llama 3's"):
        load_tokenizer(str(tmp_path))


def clip(number, codes, **changes):
    return {
        "id": f"ja/{number}",
        "source": "ja",
        "text": "こんにちは",
        "speaker": None,
        "audio_kind": "tar",
        "audio_path": "a.tar",
        "audio_member": f"{number}.flac",
        "audio_offset": 512,
        "audio_bytes": 10,
        "start_seconds": 0.0,
        "seconds": 1.0,
        "audio_hz": 24000,
        "channels": 1,
        "source_ovrl": None,
        "sig": 3.0,
        "bak": 3.0,
        "ovrl": 3.0,
        "windows": 1,
        "ovrl_error": 0.0,
        "scorer": "test",
        "frames": len(codes) // 7,
        "codes": codes,
        **changes,
    }


def clips(*rows):
    return pa.Table.from_pylist(list(rows), schema=ENCODED)


def some_codes(num_frames, seed=0):
    return np.random.default_rng(seed).integers(0, 4096, 7 * num_frames).tolist()


def test_speech_decodes_back_to_text_and_codes(tokenizer, llama):
    rows = [clip(i, some_codes(i + 1, i), text=t) for i, t in enumerate(TEXTS) if t]
    stage = TokenizeSpeech(tokenizer)
    table = pa.concat_tables([clips(*rows[:3]), clips(*rows[3:])])  # two chunks
    outcome = check_outcome(stage, len(rows), stage.open()(table))
    assert outcome.kept["id"].to_pylist() == [row["id"] for row in rows]
    assert outcome.kept["frames"].to_pylist() == [row["frames"] for row in rows]
    for ids, row in zip(outcome.kept["input_ids"].to_pylist(), rows, strict=True):
        text_ids, codes = split_speech_ids(np.array(ids))
        assert llama.decode(text_ids) == row["text"]
        assert codes.tolist() == row["codes"]


def test_speech_prompt_names_the_speaker_or_quarantines(tokenizer, llama):
    stage = TokenizeSpeech(tokenizer, prompt="{speaker}: {text}")
    rows = [
        clip(0, some_codes(1), speaker="花子"),
        clip(1, some_codes(1)),
        clip(2, some_codes(1), speaker=" "),
        clip(3, some_codes(1), speaker="{text}", text="{speaker} {0}"),
    ]
    outcome = check_outcome(stage, 4, stage.open()(clips(*rows)))
    texts = [
        llama.decode(split_speech_ids(np.array(s))[0])
        for s in outcome.kept["input_ids"].to_pylist()
    ]
    assert texts == ["花子: こんにちは", "{text}: {speaker} {0}"]
    assert outcome.quarantined["id"].to_pylist() == ["ja/1", "ja/2"]
    assert set(outcome.quarantined["reason"].to_pylist()) == {"missing_speaker"}
    assert outcome.quarantined["location"][0].as_py() == "a.tar:1.flac:512"


def test_repeated_frames_go_only_when_asked(tokenizer):
    codes = np.array(some_codes(6)).reshape(6, 7)
    codes[2, 0] = codes[1, 0]
    row = clip(0, codes.reshape(-1).tolist())
    kept = TokenizeSpeech(tokenizer).open()(clips(row)).kept
    dropped = TokenizeSpeech(tokenizer, drop_repeated_frames=True).open()(clips(row)).kept
    assert (kept["frames"][0].as_py(), dropped["frames"][0].as_py()) == (6, 5)
    found = split_speech_ids(np.array(dropped["input_ids"][0].as_py()))[1]
    assert found.tolist() == drop_repeated_frames(codes.reshape(-1)).tolist()


@pytest.mark.parametrize("codes", [[], [1] * 6, [1] * 6 + [4096]])
def test_broken_codes_are_a_broken_contract(tokenizer, codes):
    with pytest.raises(ContractError, match="ja/0"):
        TokenizeSpeech(tokenizer).open()(clips(clip(0, codes)))


@pytest.mark.parametrize("prompt", ["{speaker}", "{text", "{text}{}", "{text!r}", "{text.x}", "a"])
def test_other_prompts_are_refused(tokenizer, prompt):
    with pytest.raises(ConfigError, match="speech_prompt"):
        TokenizeSpeech(tokenizer, prompt=prompt)


def test_content_names_what_decides_the_bytes(tokenizer):
    stages = [
        TokenizeSpeech(tokenizer),
        TokenizeSpeech(tokenizer, prompt="{speaker}{text}"),
        TokenizeSpeech(tokenizer, drop_repeated_frames=True),
        TokenizeText(tokenizer, Lines()),
        TokenizeText(tokenizer, Lines(), layout="messages"),
        TokenizeText(tokenizer, Lines(), names=TextNames(output="a")),
    ]
    contents = [json.dumps(stage.content, sort_keys=True) for stage in stages]
    assert len(set(contents)) == len(stages)
    assert all(tokenizer.sha256 in content for content in contents)
    assert "vocab" not in repr(stages[0])  # the tokenizer's 6 MB stay out of logs


def test_stages_survive_pickling(tokenizer):
    stage = pickle.loads(pickle.dumps(TokenizeSpeech(tokenizer)))
    assert stage.open()(clips(clip(0, some_codes(2)))).kept.num_rows == 1


@dataclass(frozen=True)
class Lines:
    """A source over records in memory."""

    records: tuple[Record, ...] = field(default=())
    name: str = "dolly"
    modality: str = "text"

    def units(self):
        yield unit(self)

    def read(self, unit):
        yield from self.records


def unit(source, **changes):
    base = Unit("dolly-00000", "dolly", "text", "x.jsonl", "1:1", 0, 9, len(source.records))
    return Unit(**{**base.__dict__, **changes})


def units(*rows):
    return pa.Table.from_pylist([row.__dict__ for row in rows], schema=UNIT)


def line(key, user, answer, **changes):
    fields = {"instruction": user, "output": answer}
    return Record(**{"key": key, "location": f"x.jsonl:{key}", "fields": fields, **changes})


def conversation_texts(llama, ids):
    """Take a text sample apart: the texts between its marks, in order."""
    assert ids[:2] == [START_OF_HUMAN, START_OF_TEXT]
    texts, current = [], []
    for token in ids:
        if token < 128000:
            current.append(token)
        elif token == END_OF_TEXT:
            texts.append(llama.decode(current))
            current = []
    marks = [t for t in ids if t >= 128000 and t != START_OF_TEXT]
    one_turn = [START_OF_HUMAN, END_OF_TEXT, END_OF_HUMAN, START_OF_AI, END_OF_TEXT, END_OF_AI]
    assert marks == one_turn * (len(texts) // 2)
    return texts


def test_text_decodes_back_and_bad_records_are_quarantined(tokenizer, llama):
    source = Lines(
        (
            line("0", "質問 <|eot_id|>", "答え"),
            line("1", "", "x"),
            line("2", "q", "a", reason="broken_json", detail="at 3", fields={}),
            line("0", "again", "again"),
            line("4", "q", "half \ud83d"),
            line("5", "q\nq", "a\n\na "),
        )
    )
    stage = TokenizeText(tokenizer, source)
    planned = unit(source, fault="file ends inside a record")
    outcome = check_outcome(stage, 7, stage.open()(units(planned)))
    assert outcome.kept["id"].to_pylist() == ["dolly/0", "dolly/5"]
    assert outcome.kept["modality"].to_pylist() == ["text"] * 2
    samples = outcome.kept["input_ids"].to_pylist()
    assert conversation_texts(llama, samples[0]) == ["質問 <|eot_id|>", "答え"]
    assert conversation_texts(llama, samples[1]) == ["q\nq", "a\n\na "]
    bad = outcome.quarantined.to_pylist()
    assert [(row["id"], row["reason"]) for row in bad] == [
        ("dolly/1", "missing_instruction"),
        ("dolly/2", "broken_json"),
        ("dolly/0", "duplicate_id"),
        ("dolly/4", "invalid_unicode"),
        ("dolly-00000#fault", "truncated_source"),
    ]
    assert bad[1]["location"] == "x.jsonl:2"
    assert bad[-1]["detail"] == "file ends inside a record"


def test_conversations_of_several_turns(tokenizer, llama):
    messages = [
        {"from": who, "value": text}
        for who, text in (("human", "一"), ("gpt", "二"), ("human", "三"), ("gpt", "四"))
    ]
    source = Lines((Record("a", "x:0", {"conversations": messages}),))
    stage = TokenizeText(tokenizer, source, layout="sharegpt")
    kept = stage.open()(units(unit(source))).kept
    assert conversation_texts(llama, kept["input_ids"][0].as_py()) == ["一", "二", "三", "四"]


def test_a_changed_file_fails_the_unit(tokenizer):
    source = Lines((line("0", "q", "a"),))
    with pytest.raises(StageError, match="1 records instead of 2") as caught:
        TokenizeText(tokenizer, source).open()(units(unit(source, records=2)))
    assert caught.value.unit == "dolly-00000"


def test_an_empty_unit_gives_empty_tables(tokenizer):
    stage = TokenizeText(tokenizer, Lines())
    check_outcome(stage, 0, stage.open()(units(unit(Lines()))))
    speech = TokenizeSpeech(tokenizer)
    check_outcome(speech, 0, speech.open()(ENCODED.empty_table()))
