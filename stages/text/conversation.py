"""The layouts of instruction data, each read as (user, answer) pairs of plain text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from koe.errors import BadRecord
from stages.sources.settings import ConversationLayout, TextFields

USER, ASSISTANT, SYSTEM = "user", "assistant", "system"
_ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), USER),
    **dict.fromkeys(("assistant", "gpt", "agent", "bot", "model"), ASSISTANT),
    "system": SYSTEM,
}
_USUAL_NAMES = TextFields()
_CHAT_NAMES = {
    "messages": ("messages", "role", "content"),
    "sharegpt": ("conversations", "from", "value"),
}


def turns(
    fields: Mapping[str, Any], layout: ConversationLayout, names: TextFields = _USUAL_NAMES
) -> list[tuple[str, str]]:
    """Read a record as (user, answer) turns, at least one.

    Consecutive messages of one role are joined by a line break; a system message is put before the
    next user message; a last user message without an answer is left out if turns remain.

    Raises: BadRecord missing_instruction, missing_answer, or bad_conversation (wrong types,
    unknown role, assistant first).
    """
    if layout == "instruction":
        pairs = [_instruction(fields, names)]
    else:
        pairs = _pairs(_merged(_messages(fields, layout, names)))
    for index, (user, answer) in enumerate(pairs):
        where = f"turn {index} of {len(pairs)}"
        if not user.strip():
            raise BadRecord("missing_instruction", f"the user's text is empty in {where}")
        if not answer.strip():
            raise BadRecord("missing_answer", f"the answer is empty in {where}")
        _require_unicode(user, where)
        _require_unicode(answer, where)
    return pairs


def _instruction(fields: Mapping[str, Any], names: TextFields) -> tuple[str, str]:
    instruction = _text_or_blank(fields, names.instruction)
    extra = _text_or_blank(fields, names.input)
    user = "\n".join(part for part in (instruction, extra) if part.strip())
    return user, _text_or_blank(fields, names.output)


def _text_or_blank(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadRecord("bad_conversation", f"{name} is {type(value).__name__}, expected text")
    return value


def _messages(
    fields: Mapping[str, Any], layout: ConversationLayout, names: TextFields
) -> Iterator[tuple[str, str]]:
    """Yield (user | assistant | system, text)."""
    usual = _CHAT_NAMES[layout]
    list_name, role_name, content_name = (
        chosen or default
        for chosen, default in zip((names.messages, names.role, names.content), usual, strict=True)
    )
    messages = fields.get(list_name)
    if not isinstance(messages, list) or not messages:
        raise BadRecord("bad_conversation", f"{list_name} is not a list of messages")
    for index, message in enumerate(messages):
        where = f"{list_name}[{index}]"
        if not isinstance(message, Mapping):
            raise BadRecord("bad_conversation", f"{where} is {type(message).__name__}")
        role, content = message.get(role_name), message.get(content_name)
        if not isinstance(role, str) or role.strip().lower() not in _ROLES:
            raise BadRecord("bad_conversation", f"{where}.{role_name} is {role!r:.40}")
        if not isinstance(content, str):
            raise BadRecord(
                "bad_conversation", f"{where}.{content_name} is {type(content).__name__}"
            )
        yield _ROLES[role.strip().lower()], content


def _merged(messages: Iterator[tuple[str, str]]) -> list[tuple[str, str]]:
    """Join consecutive messages of one role, and put system messages before the next user's."""
    merged: list[tuple[str, str]] = []
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


def _pairs(merged: list[tuple[str, str]]) -> list[tuple[str, str]]:
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
