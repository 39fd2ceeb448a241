"""Japanese instruction samples and conversations in the layouts of public datasets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np

from pipeline.demo import questions
from pipeline.demo.questions import Rng, Sample, one

Generator = Callable[[Rng], Sample]
# The weights give a mean near 150 tokens of Llama 3, some samples of a thousand and a few longer
# than a row, so that packing and splitting have work.
GENERATORS: dict[Generator, float] = {
    questions.shopping: 9,
    questions.arithmetic: 7,
    questions.unit_conversion: 8,
    questions.capitals: 9,
    questions.kanji_readings: 9,
    questions.polite_form: 7,
    questions.translation: 8,
    questions.summary: 9,
    questions.calendar: 8,
    questions.imperial_year: 3,
    questions.arrival: 7,
    questions.list_making: 8,
    questions.odd_one_out: 8,
    questions.table_to_json: 7,
    questions.ledger: 2.6,
    questions.multiplication_table: 0.8,
}


def generate_samples(num_samples: int, rng: Rng) -> list[Sample]:
    """Draw samples of all kinds, each question once."""
    kinds = list(GENERATORS)
    shares = np.array(list(GENERATORS.values()))
    samples: dict[tuple[str, str], Sample] = {}
    while len(samples) < num_samples:
        sample = kinds[int(rng.choice(len(kinds), p=shares / shares.sum()))](rng)
        samples.setdefault((sample.instruction, sample.input), sample)
    return list(samples.values())


def instruction_rows(num_samples: int, rng: Rng) -> list[dict[str, str]]:
    """Return rows in the layout of izumi-lab/llm-japanese-dataset."""
    samples = generate_samples(num_samples, rng)
    return [{"index": str(place), **asdict(sample)} for place, sample in enumerate(samples)]


def conversations(num_conversations: int, rng: Rng) -> list[dict[str, Any]]:
    """Return conversations of two to four turns, every turn about the same kind of question."""
    rows = []
    for place in range(num_conversations):
        kind = one(
            rng,
            [
                questions.arithmetic,
                questions.unit_conversion,
                questions.kanji_readings,
                questions.polite_form,
                questions.translation,
            ],
        )
        messages = []
        for _ in range(int(rng.integers(2, 5))):
            sample = kind(rng)
            question = "\n".join(part for part in (sample.instruction, sample.input) if part)
            messages += [
                {"role": "user", "content": question},
                {"role": "assistant", "content": sample.output},
            ]
        rows.append({"id": f"conversation-{place:03d}", "messages": messages})
    return rows
