"""The text of the stability experiment: instruction samples, and a tokenizer trained on them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from tokenizers import ByteLevelBPETokenizer

from koe.errors import ConfigError

Encode = Callable[[str], list[int]]


PACKAGED = Path(str(resources.files("pipeline.demo"))) / "data" / "text" / "dolly_ja.jsonl"


@dataclass(frozen=True)
class Record:
    """An instruction sample as plain text."""

    user: str
    answer: str


def read_records(path: Path) -> list[Record]:
    """Read JSON lines with `instruction`, `input` and `output`, as izumi-lab's dataset has.

    Raises: ConfigError when there is no such file.
    """
    if not path.is_file():
        raise ConfigError(
            f"there are no records in {path}", "there is no such file", "Name one with --data."
        )
    with open(path, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [
        Record("\n".join(filter(None, (r["instruction"], r["input"]))), r["output"]) for r in rows
    ]


def train_encoder(records: list[Record], num_text: int) -> Encode:
    """Train a byte-level BPE of `num_text` tokens on the records; it knows every byte."""
    bpe = ByteLevelBPETokenizer()
    texts = (text for record in records for text in (record.user, record.answer))
    bpe.train_from_iterator(texts, vocab_size=num_text, show_progress=False)
    return lambda text: bpe.encode(text).ids
