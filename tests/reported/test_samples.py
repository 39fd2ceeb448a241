"""Instruction samples that are unusual: read as what they say, or named; nothing is left out unsaid."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from koe.errors import BadRecord, ConfigError, attempt
from koe.schema import unit_table
from koe.stage import Outcome, check_outcome
from stages.sources.checks.first_records import check_first_records
from stages.sources.readers import text_source
from stages.sources.settings import TextSourceConfig
from stages.text.conversation import ends_unanswered, turns
from stages.text.tokenizer import load_tokenizer, text_tokenizer
from stages.tokenize import TokenizeText
from tests.stages.audio_files import write_lines

USER, BOT = ("user", "問"), ("assistant", "答")
TOLD = ("system", "指示")


def said(*messages: tuple[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": text} for role, text in messages]}


def result(record: dict[str, Any], layout: str = "messages") -> Any:
    found = attempt(turns, record, layout)
    return str(found) if isinstance(found, BadRecord) else found


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([USER, BOT], [("問", "答")]),
        ([("Human", "問"), ("GPT", "答")], [("問", "答")]),
        ([(" User ", "問"), ("ASSISTANT", "答")], [("問", "答")]),
        ([("prompter", "問"), ("model", "答")], [("問", "答")]),
        ([("ユーザー", "問"), BOT], "messages[0].role is 'ユーザー', expected user, assistant or"),
        ([("narrator", "問"), BOT], "messages[0].role is 'narrator', expected user, assistant or"),
        ([(7, "問"), BOT], "messages[0].role is 7, expected user"),
        ([USER], "missing_answer: the only user message has no answer"),
        ([USER, USER], "missing_answer: the only user message has no answer"),
        ([TOLD, USER], "missing_answer: the only user message has no answer"),
        ([TOLD], "a system message follows the last user message"),
        ([BOT], "the conversation does not open with a user"),
        ([BOT, USER, BOT], "the conversation does not open with a user"),
        ([TOLD, BOT], "a system message follows the last user message"),
        ([USER, BOT, TOLD, USER, BOT], [("問", "答"), ("指示\n\n問", "答")]),
        ([USER, TOLD, BOT], "a system message follows the last user message"),
        ([USER, BOT, TOLD], "a system message follows the last user message"),
        ([USER, ("assistant", "")], "missing_answer: the answer is empty in turn 0 of 1"),
        ([USER, ("assistant", ["答"])], "messages[1].content[0] is text, expected an object"),
        ([USER, ("assistant", 42)], "messages[1].content is a number, expected text"),
        ([("user", [{"type": "text", "text": "問"}]), BOT], [("問", "答")]),
        (
            [
                ("user", [{"type": "input_text", "text": "問"}]),
                ("assistant", [{"type": "output_text", "text": "答"}]),
            ],
            [("問", "答")],
        ),
        (
            [("user", [{"text": "問"}]), BOT],
            "messages[0].content[0] is of type None, expected text",
        ),
        (
            [
                ("user", [{"type": "text", "text": "何"}, {"type": "image_url", "image_url": {}}]),
                BOT,
            ],
            "messages[0].content[1] is of type 'image_url', expected text",
        ),
        ([("user", [{"type": "image"}]), BOT], "is of type 'image', expected text"),
        ([("user", [{"type": "input_audio"}]), BOT], "is of type 'input_audio', expected text"),
        ([("user", []), BOT], "missing_instruction: the user's text is empty in turn 0 of 1"),
        ([USER, BOT, USER], [("問", "答")]),  # the last message is left out, and counted
    ],
)
def test_conversations(messages, expected):
    found = result(said(*messages))
    assert expected in found if isinstance(expected, str) else found == expected


@pytest.mark.parametrize(
    ("record", "why"),
    [
        ({"output": ["答", "別"]}, "output is a list (['答', '別']), expected text"),
        ({"output": 42}, "output is a number (42), expected text"),
        ({"output": {"text": "答"}}, "output is an object ({'text': '答'}), expected text"),
        ({"output": ""}, "missing_answer: the answer is empty in turn 0 of 1"),
        ({"output": None}, "missing_answer: the answer is empty in turn 0 of 1"),
        ({"instruction": ["問"]}, "instruction is a list (['問']), expected text"),
        ({"instruction": None}, "missing_instruction: the user's text is empty in turn 0 of 1"),
    ],
)
def test_instructions(record, why):
    assert why in result({"instruction": "問", "output": "答"} | record, "instruction")


@pytest.mark.parametrize(
    ("value", "why"),
    [(None, "is null"), ([], "is an empty list"), ("[]", "is text"), ({}, "is an object")],
)
def test_conversations_that_are_none(value, why):
    found = result({"conversations": value}, "sharegpt")
    assert found == f"bad_conversation: conversations {why}, expected a list of messages"


@pytest.fixture(scope="module")
def tokenized() -> Callable[..., Outcome]:
    """Run tokenize on the one unit of a file; settings are those of the source."""
    tokenizer = text_tokenizer(load_tokenizer("llama-models"))
    tokenizer.open()  # for all tests

    def run(path: Path, **settings: Any) -> Outcome:
        where = {"name": "s", "kind": "jsonl", "layout": "messages", "paths": [str(path)]}
        source = text_source(TextSourceConfig.model_validate(where | settings), 1000)
        (unit,) = source.units()
        stage = TokenizeText(tokenizer, source=source)
        return check_outcome(stage, unit.records, stage.open()(unit_table([unit])))

    return run


UNANSWERED = "the last message of the user has no answer, and is left out"


def test_a_last_message_without_an_answer_is_counted(tmp_path, tokenized):
    chats = [said(USER, BOT), said(USER, BOT, USER), said(USER, BOT, USER, USER), said(USER)]
    outcome = tokenized(write_lines(tmp_path / "a.jsonl", chats))
    assert (outcome.kept.num_rows, outcome.notes) == (3, {UNANSWERED: 2})
    assert not ends_unanswered({"instruction": "問", "output": "答"}, "instruction")


def test_what_messages_hold_beside_their_text_is_counted_once_a_record(tmp_path, tokenized):
    thinking = {"role": "assistant", "content": "答", "reasoning_content": "考", "weight": 0}
    told = [{"role": "user", "content": "問", "from": "x"}, thinking]
    records = [{"messages": told * 2}, said(USER, BOT), {"messages": told, "images": ["a.png"]}]
    assert tokenized(write_lines(tmp_path / "a.jsonl", records)).notes == {
        "`from` looks like who writes a message and is not read: fields.role": 2,
        "`images` looks like media that the text is about and is not read": 1,
        "`reasoning_content` looks like what was thought before it and is not read": 2,
        "`weight` looks like how much a message counts and is not read": 2,
    }


def test_what_messages_hold_beside_their_text_is_said_of_parquet_too(tmp_path):
    message = {"role": "user", "content": "問", "reasoning": "考", "id": 1, "tool_calls": None}
    answer = message | {"role": "assistant"}
    table = pa.Table.from_pylist(
        [{"messages": [message, answer], "id": 7, "images": [b"x"], "image": None}]
    )
    pq.write_table(table, tmp_path / "a")
    where = {"name": "s", "kind": "parquet", "paths": [f"{tmp_path}/a"]}
    assert check(where, {"id": "id"}, "messages") == {
        "`images` looks like media that the text is about and is not read": 1,
        "`reasoning` looks like what was thought before it and is not read": 1,
    }


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_ranked_answers_are_read_where_the_configuration_names_one(tmp_path, kind):
    record = {"prompt": "問", "chosen": "答", "rejected": "別"}
    path = str(tmp_path / "a")
    if kind == "jsonl":
        write_lines(tmp_path / "a", [record])
    else:
        pq.write_table(pa.Table.from_pylist([record]), path)
    where = {"name": "s", "kind": kind, "paths": [path]}
    with pytest.raises(ConfigError, match=r"no (field|column) 'instruction' for instruction"):
        check(where, {})
    with pytest.raises(ConfigError, match=r"for output .*did you mean 'chosen'"):
        check(where, {"instruction": "prompt"})
    check(where, {"instruction": "prompt", "output": "chosen"})


def check(where: dict[str, Any], fields: dict[str, str], layout: str = "instruction") -> dict:
    source = text_source(TextSourceConfig(**where, layout=layout, fields=fields), 10)
    return check_first_records(source, list(source.units()))


def test_a_better_answer_beside_the_conversation_is_said(tmp_path, tokenized):
    """As in LLaMA-Factory's ranking data, whose conversations end with the user."""
    record = said(USER, BOT, USER) | {"chosen": {"role": "assistant", "content": "答二"}}
    assert tokenized(write_lines(tmp_path / "a.jsonl", [record])).notes == {
        "`chosen` looks like the conversation and is not read: fields.messages": 1,
        UNANSWERED: 1,
    }
    whole = {"chosen": said(USER, BOT)["messages"], "rejected": said(USER, BOT)["messages"]}
    path = write_lines(tmp_path / "b.jsonl", [whole])
    assert tokenized(path, fields={"messages": "chosen"}).kept.num_rows == 1


@pytest.mark.parametrize(
    ("layout", "record", "other"),
    [
        ("instruction", said(USER, BOT), "messages"),
        ("instruction", {"conversations": [{"from": "human", "value": "問"}]}, "sharegpt"),
        ("sharegpt", said(USER, BOT), "messages"),
        ("messages", {"instruction": "問", "output": "答"}, "instruction"),
    ],
)
@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
def test_records_of_another_layout_are_refused_with_its_name(tmp_path, layout, record, other, kind):
    path = tmp_path / "a.jsonl"
    if kind == "parquet":
        datasets.Dataset.from_list([record]).to_parquet(path)
    else:
        write_lines(path, [record] if kind == "jsonl" else [[record]])
    with pytest.raises(ConfigError, match=f"Set layout: {other}"):
        check({"name": "s", "kind": kind, "paths": [str(path)]}, {}, layout)
