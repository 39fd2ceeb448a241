"""Orpheus' tokenizer as files that every release of transformers since 4.44 reads to the same ids."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from koe.vocabulary import (
    END_OF_AI,
    END_OF_HUMAN,
    END_OF_SPEECH,
    END_OF_TEXT,
    NUM_BASE,
    PAD,
    START_OF_AI,
    START_OF_HUMAN,
    START_OF_TEXT,
)
from stages.text.tokenizer import orpheus_tokenizer, special_tokens


def _spelled(id: int) -> str:
    if id >= NUM_BASE:
        return f"<custom_token_{id - NUM_BASE}>"
    return special_tokens()[id - START_OF_TEXT]


def _chat_template() -> str:
    """Lay a conversation out as `koe.vocabulary.conversation_ids` and the tokenize stage do.

    BOS opens the first turn only. The text of system messages stands before that of the next user.
    Jinja that any engine knows: llama.cpp has one of its own.
    """
    first, later = _spelled(START_OF_HUMAN) + _spelled(START_OF_TEXT), _spelled(START_OF_HUMAN)
    asked = _spelled(END_OF_TEXT) + _spelled(END_OF_HUMAN)
    answered = _spelled(END_OF_TEXT) + _spelled(END_OF_AI)
    answer = _spelled(START_OF_AI)
    return (
        "{%- set ns = namespace(system='', turn='user', opening='" + first + "') -%}"
        "{%- for message in messages -%}"
        "{%- if message['role'] == 'system' -%}"
        "{%- if message['content'] | trim -%}"
        "{%- set ns.system = ns.system + message['content'] + '\\n' -%}"
        "{%- endif -%}"
        "{%- elif message['role'] != ns.turn -%}"
        "{{- raise_exception('user and assistant must take turns, and the user begins') -}}"
        "{%- elif ns.turn == 'user' -%}"
        "{%- set system = ns.system + '\\n' if ns.system else '' -%}"
        "{{- ns.opening + system + message['content'] + '" + asked + "' -}}"
        "{%- set ns.turn = 'assistant' -%}{%- set ns.system = '' -%}"
        "{%- set ns.opening = '" + later + "' -%}"
        "{%- else -%}"
        "{{- '" + answer + "' + message['content'] + '" + answered + "' -}}"
        "{%- set ns.turn = 'user' -%}"
        "{%- endif -%}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- '" + answer + "' -}}{%- endif -%}"
    )


def save_orpheus_tokenizer(base: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the tokenizer of Orpheus' inference: Llama 3's with Orpheus' tokens, and a chat template.

    What ends a text is the end of speech, because llama.cpp's converter and vLLM take it from here.
    Raises: ContractError when the base leaves other ids free; OSError.
    """
    tokenizer = orpheus_tokenizer(base)
    tokenizer.pad_token, tokenizer.eos_token = _spelled(PAD), _spelled(END_OF_SPEECH)
    tokenizer.save_pretrained(folder)
    _change(folder / "tokenizer.json", _spell_merges)
    _change(folder / "tokenizer_config.json", _name_class)


def _spell_merges(state: dict[str, Any]) -> None:
    # tokenizers before 0.20, and so transformers 4.44, know a pair as one text with a space in it;
    # no token holds a space, which is written as another character.
    merges = state["model"]["merges"]
    state["model"]["merges"] = [m if isinstance(m, str) else " ".join(m) for m in merges]


def _name_class(settings: dict[str, Any]) -> None:
    # transformers 5 calls its class TokenizersBackend, which no earlier release knows.
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    settings["chat_template"] = _chat_template()


def _change(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    state = json.loads(path.read_text("utf-8"))
    change(state)
    path.write_text(json.dumps(state, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
