"""Instruction samples in the layouts of other tools: what beside the conversation is read, and how."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from koe.errors import BadRecord, ConfigError, attempt
from stages.sources.readers import text_source
from stages.sources.settings import TextFields, TextSourceConfig
from stages.text.conversation import turns
from stages.text.unicode import has_visible_text
from tests.real_data import REPORTS
from tests.stages.audio_files import write_lines

Turns = list[tuple[str, str]]


def read(path: Path, kind: str, layout: str = "instruction", **fields: str) -> list[Any]:
    """Return the turns of every record of a file, or the reason why it has none with the detail."""
    config = TextSourceConfig(name="s", kind=kind, layout=layout, paths=[str(path)], fields=fields)
    found: list[Any] = []
    for unit in text_source(config, 1000).units():
        for record in text_source(config, 1000).read(unit):
            result = record.bad or attempt(turns, record.fields, layout, config.fields)
            found.append(str(result) if isinstance(result, BadRecord) else result)
    return found


def reason_of(fields: dict[str, Any], layout: str = "instruction", **names: Any) -> str:
    with pytest.raises(BadRecord) as caught:
        turns(fields, layout, TextFields(**names))
    return str(caught.value)


def test_messages_as_they_are_reported():
    assert read(REPORTS / "F/f01_messages.jsonl", "jsonl", "messages") == [
        [("指示\n\n問", "答")],
        [("問\n問二", "答\n答二")],
        "missing_answer: the answer is empty in turn 0 of 1",
        "bad_conversation: messages[1].content is null, expected text",
        [("問", "答")],  # parts of type text
        [("指示\n\n問", "答")],  # from the developer
        "bad_conversation: messages[1].content is null, expected text",
        "bad_conversation: a system message follows the last user message",
        "bad_conversation: the conversation does not open with a user",
        [("問", "答")],
        "bad_conversation: a system message follows the last user message",
        "missing_answer: the answer is empty in turn 0 of 2",
        "bad_conversation: messages is null, expected a list of messages",
        "bad_conversation: messages is text, expected a list of messages",
        [("q", "a")],
        [("指\n示\n\n問", "答"), ("途中\n\n問2", "答2")],
        [("問", "答")],
    ]


def test_what_stands_beside_a_sharegpt_conversation_is_read_or_named():
    role = "expected user, assistant or system"
    assert read(REPORTS / "F/f02_sharegpt.jsonl", "jsonl", "sharegpt") == [
        [("問", "答")],
        "bad_conversation: the conversation does not open with a user",
        f"bad_conversation: conversations[1].from is 'chatgpt', {role}",
        f"bad_conversation: conversations[1].from is 'bing', {role}",
        "bad_conversation: conversations[1].from is 'function_call': tools are not supported",
        [("指\n\n問", "答")],
        [("別の場所の指示\n\n問", "答")],  # its list of tools is empty
        "bad_conversation: conversations is missing; the record has conversation, "
        "expected a list of messages",
        "bad_conversation: conversations[0].value is null, expected text",
        "bad_conversation: conversations is an empty list, expected a list of messages",
        [("問", "答")],
    ]


def test_arrays_of_samples():
    assert read(REPORTS / "F/f05_array.json", "json") == [
        [("問", "答")],
        "missing_answer: the answer is empty in turn 0 of 1",
    ]
    with pytest.raises(ConfigError, match="it begins with an object"):
        read(REPORTS / "F/f06_object.json", "json")
    found = read(REPORTS / "F/f07_array_trailing_comma.json", "json")
    assert found == [[("a", "b")], [("c", "d")]]


def test_dots_descend_in_instruction_samples():
    path, names = (
        REPORTS / "F/f08_nested_names.jsonl",
        {"instruction": "data.q", "output": "data.a"},
    )
    assert read(path, "jsonl", **names) == [[("問", "答")]]


def test_line_separators_within_a_text_do_not_end_a_record():
    assert read(REPORTS / "F/f09_u2028.jsonl", "jsonl") == [
        [("改\u2028行\x85", "答")],
        [("次", "答")],
    ]


def test_a_number_for_a_text_is_named():
    assert read(REPORTS / "X/nan.jsonl", "jsonl") == [
        "bad_conversation: input is a number (nan), expected text",
        [("問\n<noinput>", "答")],
    ]


PAIR = {"instruction": "三", "output": "四"}
CHAT = {"messages": [{"role": "user", "content": "三"}, {"role": "assistant", "content": "四"}]}
SHAREGPT = {"conversations": [{"from": "human", "value": "三"}, {"from": "gpt", "value": "四"}]}
LAYOUTS = {"instruction": PAIR, "messages": CHAT, "sharegpt": SHAREGPT}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_system_and_history_come_before_the_conversation(layout):
    record = LAYOUTS[layout] | {"system": "指示", "history": [["一", "二"]]}
    assert turns(record, layout) == [("指示\n\n一", "二"), ("三", "四")]
    renamed = LAYOUTS[layout] | {"meta": {"prompt": "指示"}, "past": [["一", "二"]]}
    names = TextFields(system="meta.prompt", history="past")
    assert turns(renamed, layout, names) == turns(record, layout)
    assert turns(record, layout, TextFields(system=None, history=None)) == [("三", "四")]
    for system, history in ((None, None), ("", []), ("\u200b", "")):
        record = LAYOUTS[layout] | {"system": system, "history": history}
        assert turns(record, layout) == [("三", "四")]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("beside", "why"),
    [
        ({"tools": [{"name": "f"}]}, "unsupported_tools: field 'tools' holds [{'name': 'f'}]"),
        ({"tools": '[{"name": "f"}]'}, "unsupported_tools: field 'tools' holds '[{"),
        ({"history": "一\n二"}, "bad_conversation: history is text, expected a list of pairs"),
        ({"history": [["一", "二", "三"]]}, "bad_conversation: history[0] is not a question"),
        ({"history": [["一", "二"], ["三", None]]}, "bad_conversation: history[1] is not a"),
        ({"history": [{"q": "一"}]}, "bad_conversation: history[0] is not a question with"),
        ({"history": [["一", ""]]}, "missing_answer: the answer is empty in turn 0 of 2"),
        ({"system": ["指示"]}, "bad_conversation: system is a list (['指示']), expected text"),
    ],
)
def test_what_has_no_place_in_the_layout_is_named(layout, beside, why):
    assert reason_of(LAYOUTS[layout] | beside, layout).startswith(why)


def test_tools_that_are_not_there_or_not_wanted_change_nothing():
    for tools in ("", "[]", " [] ", "null", None, [], {}):
        assert turns(PAIR | {"tools": tools}, "instruction") == [("三", "四")]
    tools = PAIR | {"tools": [{"name": "f"}]}
    assert turns(tools, "instruction", TextFields(tools=None)) == [("三", "四")]
    assert reason_of(tools | {"functions": ["f"]}, tools="functions").startswith(
        "unsupported_tools: field 'functions' holds ['f']"
    )


@pytest.mark.parametrize(
    ("message", "why"),
    [
        ({"role": "tool", "content": "r"}, "messages[2].role is 'tool': tools are not supported"),
        ({"role": "observation", "content": "r"}, "messages[2].role is 'observation': tools"),
        ({"role": "assistant", "content": "x", "tool_calls": [{}]}, "messages[2].tool_calls calls"),
        ({"role": "assistant", "content": "x", "function_call": {"a": 1}}, "messages[2].function"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "messages[2].content[0] is of type"),
        ({"role": "user", "content": ["x"]}, "messages[2].content[0] is text, expected an object"),
        ({"role": "user", "content": {"parts": ["x"]}}, "messages[2].content is an object"),
        ({"role": None, "content": "x"}, "messages[2].role is None, expected user"),
    ],
)
def test_messages_that_are_no_text_are_named(message, why):
    record = {"messages": [*CHAT["messages"], message]}
    assert reason_of(record, "messages").startswith(f"bad_conversation: {why}")


def test_dots_descend_in_messages():
    said = [
        {"by": {"role": "user"}, "is": {"text": "三"}},
        {"by": {"role": "bot"}, "is": {"text": "四"}},
    ]
    names = TextFields(messages="chat.turns", role="by.role", content="is.text")
    assert turns({"chat": {"turns": said}}, "messages", names) == [("三", "四")]


_NAMES = st.text(st.characters(codec="utf-8", exclude_characters="."), min_size=1, max_size=5)


@pytest.mark.law
@given(st.lists(_NAMES, min_size=1, max_size=4), st.booleans(), st.sampled_from(sorted(LAYOUTS)))
@settings(deadline=None)
def test_a_dotted_name_is_found_nested_and_a_literal_one_first(parts, literal, layout):
    key = {"instruction": "instruction", "messages": "messages", "sharegpt": "messages"}[layout]
    value = next(iter(LAYOUTS[layout].values()))
    record: dict[str, Any] = {"output": "四"} if layout == "instruction" else {}
    nested: Any = 1 if literal else value
    for part in reversed(parts[1:]):
        nested = {part: nested}
    record[parts[0]] = nested
    name = ".".join(parts)
    if literal:
        record[name] = value
    names = TextFields(
        **{key: name, "input": "no.such.field.here", "system": None, "tools": None, "history": None}
    )
    if "output" in parts[:1]:
        return
    assert turns(record, layout, names) == [("三", "四")]


@pytest.mark.parametrize(
    "text", ["", " ", "\u3000\n", "\u200b\ufeff", "\x00\x07", "\u3164", "\u2800"]
)
def test_a_text_that_leaves_no_mark_is_no_text(text):
    assert not has_visible_text(text)
    assert reason_of({"instruction": text, "output": "x"}).startswith("missing_instruction")
    assert reason_of({"instruction": "x", "output": text}).startswith("missing_answer")


@pytest.mark.parametrize("text", ["文", "a", "。", "😀", "\ufffd", "ﾞ", "\u200b文\u200b", "\ue000"])
def test_a_text_that_can_be_seen(text):
    assert has_visible_text(text)


def test_a_record_without_the_field_says_what_it_has(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [PAIR | {"id": 7}, PAIR])
    _, missing = read(path, "jsonl", id="id")
    assert missing == "missing_id: there is no field 'id'; the record has instruction, output"
