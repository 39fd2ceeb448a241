import json

import pytest

from koe.errors import BadRecord
from stages.sources.settings import TextFields
from stages.text.conversation import turns
from tests.real_data import TEXT


def chat(*messages):
    return {"messages": [{"role": role, "content": content} for role, content in messages]}


def reason_of(fields, layout):
    with pytest.raises(BadRecord) as caught:
        turns(fields, layout)
    return caught.value.reason


@pytest.mark.parametrize(
    ("fields", "user"),
    [
        ({"instruction": "訳せ", "input": "猫", "output": "cat"}, "訳せ\n猫"),
        ({"instruction": "訳せ", "input": " \n", "output": "cat"}, "訳せ"),
        ({"instruction": "訳せ", "input": None, "output": "cat"}, "訳せ"),
        ({"instruction": "訳せ", "output": "cat"}, "訳せ"),
        ({"instruction": "", "input": "猫", "output": "cat"}, "猫"),
    ],
)
def test_instruction_joins_the_input(fields, user):
    assert turns(fields, "instruction") == [(user, "cat")]


def test_instruction_takes_other_field_names():
    names = TextFields(instruction="q", input="ctx", output="a")
    assert turns({"q": "1+1", "ctx": "x", "a": "2"}, "instruction", names) == [("1+1\nx", "2")]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"instruction": "", "input": "", "output": "x"}, "missing_instruction"),
        ({"output": "x"}, "missing_instruction"),
        ({"instruction": "a", "output": "  "}, "missing_answer"),
        ({"instruction": "a"}, "missing_answer"),
        ({"instruction": "a", "output": 3}, "bad_conversation"),
        ({"instruction": ["a"], "output": "x"}, "bad_conversation"),
        ({"instruction": "a", "input": {}, "output": "x"}, "bad_conversation"),
        ({"instruction": "half \ud83d", "output": "x"}, "invalid_unicode"),
        ({"instruction": "a", "output": "half \ud83d"}, "invalid_unicode"),
    ],
)
def test_bad_instructions_say_why(fields, reason):
    assert reason_of(fields, "instruction") == reason


def test_messages_merge_roles_and_place_the_system_text():
    fields = chat(
        ("system", "丁寧に"),
        ("User", "一"),
        ("human", "二"),
        ("gpt", "三"),
        ("agent", "四"),
        ("prompter", "五"),
        ("model", "六"),
    )
    assert turns(fields, "messages") == [("丁寧に\n\n一\n二", "三\n四"), ("五", "六")]


def test_a_last_user_without_answer_goes_only_when_a_turn_remains():
    fields = chat(("user", "a"), ("assistant", "b"), ("user", "c"))
    assert turns(fields, "messages") == [("a", "b")]
    assert reason_of(chat(("user", "a")), "messages") == "missing_answer"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (chat(("assistant", "a"), ("user", "b"), ("assistant", "c")), "bad_conversation"),
        (chat(("tool", "a")), "bad_conversation"),
        (chat(("user", None), ("assistant", "b")), "bad_conversation"),
        (chat(("user", "a"), ("assistant", "b"), ("system", "s")), "bad_conversation"),
        (chat(("system", "s")), "bad_conversation"),
        (chat(("user", " "), ("assistant", "b")), "missing_instruction"),
        (chat(("system", "s"), ("user", " "), ("assistant", "b")), "missing_instruction"),
        (chat(("user", "a"), ("assistant", "")), "missing_answer"),
        ({"messages": []}, "bad_conversation"),
        ({"messages": "user: a"}, "bad_conversation"),
        ({"messages": ["a"]}, "bad_conversation"),
        ({"messages": [{"content": "a"}]}, "bad_conversation"),
        ({"conversations": []}, "bad_conversation"),
    ],
)
def test_bad_conversations_say_why(fields, reason):
    assert reason_of(fields, "messages") == reason


def records(name):
    with (TEXT / name).open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def test_three_layouts_of_the_same_corpus_agree():
    utterances = TextFields(messages="utterances", role="name", content="text")
    from_chat = [turns(r, "messages") for r in records("instruction_ja.messages.jsonl")]
    from_sharegpt = [turns(r, "sharegpt") for r in records("instruction_ja.sharegpt.jsonl")]
    raw = records("instruction_ja.data.jsonl")
    from_utterances = [turns(r, "messages", utterances) for r in raw]
    assert len(from_chat) == 33
    assert from_chat == from_sharegpt == from_utterances
    assert from_chat[0] == [tuple(u["text"] for u in raw[0]["utterances"])]


def test_every_dolly_row_is_one_turn():
    rows = records("dolly_ja.jsonl")
    pairs = [turns(row, "instruction") for row in rows]
    assert all(len(pair) == 1 for pair in pairs)
    assert [pair[0][1] for pair in pairs] == [row["output"] for row in rows]
    with_input = [(r, p) for r, p in zip(rows, pairs, strict=True) if r["input"].strip()]
    assert len(with_input) == 30
    assert all(p[0][0] == f"{r['instruction']}\n{r['input']}" for r, p in with_input)


@pytest.mark.parametrize("kind", [["text"], {"a": 1}, None, 3])
def test_a_part_whose_type_is_no_text_is_refused(kind):
    content = [{"type": kind, "text": "x"}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "y"}]
    with pytest.raises(BadRecord, match="expected text"):
        turns({"messages": messages}, "messages")
