"""Samples of speech and text, decoded back."""

import json
import pickle
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pytest

from koe.errors import BadRecord, ContractError, StageError
from koe.schema import ENCODED, UNIT, Unit
from koe.stage import check_outcome
from koe.vocabulary import (
    END_OF_AI,
    END_OF_HUMAN,
    END_OF_TEXT,
    START_OF_AI,
    START_OF_HUMAN,
    START_OF_TEXT,
    drop_repeated_frames,
    split_speech_ids,
)
from stages.settings import TokenizeConfig, TranscriptsConfig
from stages.sources.base import Record, TextFiles
from stages.sources.planning import scan_all
from stages.sources.settings import TextSourceConfig
from stages.tokenize import TokenizeSpeech, TokenizeText
from tests.stages.texts import TEXTS

pytestmark = pytest.mark.slow


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
    stage = TokenizeSpeech(tokenizer, TokenizeConfig(speech_prompt="{speaker}: {text}"))
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
    assert outcome.quarantined["location"][0].as_py() == "a.tar:1.flac@512"


def test_a_clip_whose_transcript_fails_a_check_is_rejected(tokenizer, llama):
    checks = TranscriptsConfig(
        normalize="nfkc", invisible_characters="strip", max_characters_per_second=5, max_repeats=3
    )
    stage = TokenizeSpeech(tokenizer, transcripts=checks)
    rows = [
        clip(0, some_codes(1), text="ｺﾝﾆﾁﾊ\u200b"),
        clip(1, some_codes(1), text="こんにちは皆さん"),
        clip(2, some_codes(1), text="こんにちは皆さん", seconds=2.0),
        clip(3, some_codes(1), text="長長長長"),
        clip(4, some_codes(1), text="\u200b"),
    ]
    outcome = check_outcome(stage, 5, stage.open()(clips(*rows)))
    assert [
        llama.decode(split_speech_ids(np.array(ids))[0])
        for ids in outcome.kept["input_ids"].to_pylist()
    ] == ["コンニチハ", "こんにちは皆さん"]
    assert [tuple(row.values()) for row in outcome.rejected.to_pylist()] == [
        (f"ja/{number}", "ja", "tokenize", "rejected", reason, detail, f"a.tar:{number}.flac@512")
        for number, reason, detail in (
            (1, "text_too_long", "8.00 characters per second > 5"),
            (3, "repeated_text", "'長' comes 4 times or more"),
            (4, "invisible_characters", "nothing else is in the text"),
        )
    ]


def test_a_missing_speaker_is_quarantined_before_the_text_is_checked(tokenizer):
    settings = TokenizeConfig(speech_prompt="{speaker}: {text}")
    stage = TokenizeSpeech(tokenizer, settings, TranscriptsConfig(max_repeats=3))
    outcome = check_outcome(stage, 1, stage.open()(clips(clip(0, some_codes(1), text="長長長長"))))
    assert outcome.quarantined["reason"].to_pylist() == ["missing_speaker"]


def test_repeated_frames_go_only_when_asked(tokenizer):
    codes = np.array(some_codes(6)).reshape(6, 7)
    codes[2, 0] = codes[1, 0]
    row = clip(0, codes.reshape(-1).tolist())
    kept = TokenizeSpeech(tokenizer).open()(clips(row)).kept
    dropped = (
        TokenizeSpeech(tokenizer, TokenizeConfig(drop_repeated_frames=True)).open()(clips(row)).kept
    )
    assert (kept["frames"][0].as_py(), dropped["frames"][0].as_py()) == (6, 5)
    found = split_speech_ids(np.array(dropped["input_ids"][0].as_py()))[1]
    assert found.tolist() == drop_repeated_frames(codes.reshape(-1)).tolist()


@pytest.mark.parametrize("codes", [[], [1] * 6, [1] * 6 + [4096]])
def test_broken_codes_are_a_broken_contract(tokenizer, codes):
    with pytest.raises(ContractError, match="ja/0"):
        TokenizeSpeech(tokenizer).open()(clips(clip(0, codes)))


def test_content_names_what_decides_the_bytes(tokenizer):
    stages = [
        TokenizeSpeech(tokenizer),
        TokenizeSpeech(tokenizer, TokenizeConfig(speech_prompt="{speaker}{text}")),
        TokenizeSpeech(tokenizer, TokenizeConfig(drop_repeated_frames=True)),
        TokenizeSpeech(tokenizer, transcripts=TranscriptsConfig(normalize="nfc")),
        TokenizeSpeech(tokenizer, transcripts=TranscriptsConfig(max_repeats=8)),
        TokenizeText(tokenizer, source=lines()),
        TokenizeText(tokenizer, source=lines(layout="messages")),
        TokenizeText(tokenizer, source=lines(fields={"output": "a"})),
    ]
    contents = [json.dumps(stage.content, sort_keys=True) for stage in stages]
    assert len(set(contents)) == len(stages)
    assert all(tokenizer.sha256 in content for content in contents)
    off = TokenizeSpeech(tokenizer, transcripts=TranscriptsConfig(max_rate_deviations=3))
    assert off.content == stages[0].content  # a check by source is interleave's
    assert "vocab" not in repr(stages[0])  # the tokenizer's 6 MB stay out of logs


def test_stages_survive_pickling(tokenizer):
    stage = pickle.loads(pickle.dumps(TokenizeSpeech(tokenizer)))
    assert stage.open()(clips(clip(0, some_codes(2)))).kept.num_rows == 1


@dataclass(frozen=True)
class Lines(TextFiles):
    """A source over records in memory."""

    records: tuple[Record, ...] = ()

    def units(self, known=scan_all):
        yield unit(self)

    def slices(self, file):
        return iter(())

    def read(self, unit):
        yield from self.records


def lines(*records, **settings):
    config = TextSourceConfig(name="dolly", kind="jsonl", paths=["x.jsonl"], **settings)
    return Lines(config, 5000, records=records)


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
    source = lines(
        line("0", "質問 <|eot_id|>", "答え"),
        line("1", "", "x"),
        line("2", "q", "a", bad=BadRecord("broken_json", "at 3"), fields={}),
        line("0", "again", "again"),
        line("4", "q", "half \ud83d"),
        line("5", "q\nq", "a\n\na "),
        line("@90", "", "", bad=BadRecord("unreadable_bytes", "9 bytes"), fields={}),
    )
    stage = TokenizeText(tokenizer, source=source)
    outcome = check_outcome(stage, 7, stage.open()(units(unit(source))))
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
        ("dolly/@90", "unreadable_bytes"),
    ]
    assert bad[1]["location"] == "x.jsonl:2"
    assert bad[-1]["detail"] == "9 bytes"


def test_conversations_of_several_turns(tokenizer, llama):
    messages = [
        {"from": who, "value": text}
        for who, text in (("human", "一"), ("gpt", "二"), ("human", "三"), ("gpt", "四"))
    ]
    source = lines(Record("a", "x:0", {"conversations": messages}), layout="sharegpt")
    stage = TokenizeText(tokenizer, source=source)
    kept = stage.open()(units(unit(source))).kept
    assert conversation_texts(llama, kept["input_ids"][0].as_py()) == ["一", "二", "三", "四"]


def test_a_changed_file_fails_the_unit(tokenizer):
    source = lines(line("0", "q", "a"))
    with pytest.raises(StageError, match="1 records instead of 2") as caught:
        TokenizeText(tokenizer, source=source).open()(units(unit(source, records=2)))
    assert caught.value.unit == "dolly-00000"


def test_an_empty_unit_gives_empty_tables(tokenizer):
    stage = TokenizeText(tokenizer, source=lines())
    check_outcome(stage, 0, stage.open()(units(unit(lines()))))
    speech = TokenizeSpeech(tokenizer)
    check_outcome(speech, 0, speech.open()(ENCODED.empty_table()))
