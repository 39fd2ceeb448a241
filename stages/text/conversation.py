"""The layouts of instruction data, each read as (user, answer) pairs of plain text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from koe.errors import BadRecord
from stages.sources.fields import find, kind_of, lookup, message_list
from stages.sources.settings import CALLS, ConversationLayout, TextFields
from stages.text.unicode import has_visible_text

USER, ASSISTANT, SYSTEM = "user", "assistant", "system"
_ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), USER),
    **dict.fromkeys(("assistant", "gpt", "agent", "bot", "model"), ASSISTANT),
    # OpenAI's API calls the system message of newer models that of the developer.
    **dict.fromkeys(("system", "developer"), SYSTEM),
}
# Messages that call a tool or hold its result, in the layouts of OpenAI and of LLaMA-Factory.
_TOOL_ROLES = frozenset(
    ("tool", "function", "function_call", "tool_call", "observation", "ipython")
)
# Parts of a message in OpenAI's two APIs.
_TEXT_PARTS = ("text", "input_text", "output_text")
_USUAL_NAMES = TextFields()

Message = tuple[str, str]  # who writes it (user, assistant or system), and its text


def turns(
    fields: Mapping[str, Any], layout: ConversationLayout, names: TextFields = _USUAL_NAMES
) -> list[tuple[str, str]]:
    """Read a record as (user, answer) turns, at least one.

    The turns of a history come first. Consecutive messages of one role are joined by a line break;
    a system text is put before the next user message; a last user message without an answer is left
    out if turns remain.

    Raises: BadRecord missing_instruction, missing_answer, unsupported_tools, or bad_conversation
    (wrong types, unknown role, assistant first).
    """
    _require_no_tools(fields, names.tools)
    messages = [*_system(fields, names.system), *_history(fields, names.history)]
    messages += (
        _instruction(fields, names)
        if layout == "instruction"
        else _messages(fields, *names.chat_names(layout))
    )
    pairs = _pairs(_merged(messages))
    for index, (user, answer) in enumerate(pairs):
        where = f"turn {index} of {len(pairs)}"
        _require_unicode(user, where)
        _require_unicode(answer, where)
        if not has_visible_text(user):
            raise BadRecord("missing_instruction", f"the user's text is empty in {where}")
        if not has_visible_text(answer):
            raise BadRecord("missing_answer", f"the answer is empty in {where}")
    return pairs


def ends_unanswered(
    fields: Mapping[str, Any], layout: ConversationLayout, names: TextFields = _USUAL_NAMES
) -> bool:
    """Tell whether the last message of a conversation that can be read is the user's."""
    if layout == "instruction":
        return False
    list_name, role_name, _ = names.chat_names(layout)
    messages = message_list(lookup(fields, list_name))
    return bool(messages) and _role(lookup(messages[-1], role_name), role_name) == USER


def _instruction(fields: Mapping[str, Any], names: TextFields) -> list[Message]:
    parts = (_text_or_blank(fields, name) for name in (names.instruction, names.input))
    user = "\n".join(part for part in parts if part.strip())
    return [(USER, user), (ASSISTANT, _text_or_blank(fields, names.output))]


def _text_or_blank(fields: Mapping[str, Any], name: str) -> str:
    value = lookup(fields, name)
    if value is None:
        return ""
    if not isinstance(value, str):
        detail = f"{name} is {kind_of(value)} ({value!r:.40}), expected text"
        raise BadRecord("bad_conversation", detail)
    return value


def _system(fields: Mapping[str, Any], name: str | None) -> list[Message]:
    text = "" if name is None else _text_or_blank(fields, name)
    return [(SYSTEM, text)] if has_visible_text(text) else []


def _history(fields: Mapping[str, Any], name: str | None) -> list[Message]:
    """Read earlier turns, given as a list of [question, answer]."""
    pairs = lookup(fields, name)
    if not pairs:
        return []
    if not isinstance(pairs, list):
        detail = f"{name} is {kind_of(pairs)}, expected a list of pairs; fields.history says where"
        raise BadRecord("bad_conversation", detail)
    messages: list[Message] = []
    for index, pair in enumerate(pairs):
        is_pair = isinstance(pair, list) and len(pair) == 2
        if not (is_pair and all(isinstance(text, str) for text in pair)):
            detail = f"{name}[{index}] is not a question with its answer: {pair!r:.80}"
            raise BadRecord("bad_conversation", detail)
        messages += [(USER, pair[0]), (ASSISTANT, pair[1])]
    return messages


def _require_no_tools(fields: Mapping[str, Any], name: str | None) -> None:
    value = lookup(fields, name)
    is_empty = value.strip() in ("", "[]", "{}", "null") if isinstance(value, str) else not value
    if not is_empty:
        detail = f"field {name!r} holds {value!r:.80}; fields.tools: null reads samples without it"
        raise BadRecord("unsupported_tools", detail)


def _messages(
    fields: Mapping[str, Any], list_name: str, role_name: str, content_name: str
) -> Iterator[Message]:
    value = lookup(fields, list_name)
    messages = message_list(value)
    if not messages:
        what = kind_of(value) if messages is None else "an empty list"
        if not find(fields, list_name):
            what = f"missing; the record has {', '.join(map(str, fields)) or 'no fields':.200}"
        raise BadRecord("bad_conversation", f"{list_name} is {what}, expected a list of messages")
    for index, message in enumerate(messages):
        where = f"{list_name}[{index}]"
        if not isinstance(message, Mapping):
            detail = f"{where} is {kind_of(message)}, expected an object"
            raise BadRecord("bad_conversation", detail)
        role = _role(lookup(message, role_name), f"{where}.{role_name}")
        for name in CALLS:
            if message.get(name):
                raise BadRecord("bad_conversation", f"{where}.{name} calls a tool")
        yield role, _content(lookup(message, content_name), f"{where}.{content_name}")


def _role(value: Any, where: str) -> str:
    role = value.strip().lower() if isinstance(value, str) else None
    if role in _TOOL_ROLES:
        raise BadRecord("bad_conversation", f"{where} is {value!r}: tools are not supported")
    if role not in _ROLES:
        detail = f"{where} is {value!r:.40}, expected user, assistant or system"
        raise BadRecord("bad_conversation", detail)
    return _ROLES[role]


def _content(value: Any, where: str) -> str:
    """Read the text of a message, also where it is a list of parts of type text, as for OpenAI."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise BadRecord("bad_conversation", f"{where} is {kind_of(value)}, expected text")
    return "\n".join(_part(part, f"{where}[{index}]") for index, part in enumerate(value))


def _part(part: Any, where: str) -> str:
    if not isinstance(part, Mapping):
        raise BadRecord("bad_conversation", f"{where} is {kind_of(part)}, expected an object")
    kind = part.get("type")
    if kind not in _TEXT_PARTS or not isinstance(part.get("text"), str):
        detail = f"{where} is of type {kind!r:.40}, expected text"
        raise BadRecord("bad_conversation", detail)
    return part["text"]


def _merged(messages: list[Message]) -> list[Message]:
    """Join consecutive messages of one role, and put system messages before the next user's."""
    merged: list[Message] = []
    system: list[str] = []
    for role, content in messages:
        if role == SYSTEM:
            if content.strip():
                system.append(content)
            continue
        if role == USER and system:
            content = "\n".join(system) + "\n\n" + content if content.strip() else content
            system = []
        if merged and merged[-1][0] == role:
            merged[-1] = (role, merged[-1][1] + "\n" + content)
        else:
            merged.append((role, content))
    if system:
        raise BadRecord("bad_conversation", "a system message follows the last user message")
    return merged


def _pairs(merged: list[Message]) -> list[tuple[str, str]]:
    if not merged or merged[0][0] == ASSISTANT:
        raise BadRecord("bad_conversation", "the conversation does not open with a user")
    texts = [content for _, content in merged]
    if len(texts) == 1:
        raise BadRecord("missing_answer", "the only user message has no answer")
    return list(zip(texts[0::2], texts[1::2], strict=False))  # drops a user without an answer


def _require_unicode(text: str, where: str) -> None:
    # JSON may hold half of a surrogate pair, which no encoder accepts.
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadRecord("invalid_unicode", f"{error.reason} in {where}") from error
