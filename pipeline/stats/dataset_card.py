"""The dataset card of a run's shards: `README.md` beside them, as Hugging Face reads it.

The same run gives the same bytes: the card holds no date and no path of the machine.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from koe.dataflow import CARD, INTERLEAVE
from koe.errors import StageError
from koe.printable import escape_control_characters
from koe.schema import QUARANTINED, REJECTED, ROW, SPEECH
from koe.vocabulary import CODEBOOK_SIZE, FIRST_AUDIO, NAMES, NUM_EMBEDDINGS, SLOTS
from pipeline.run_dir.ledger import Ledger
from pipeline.run_dir.reading import read_index
from pipeline.stats import Account, RunStats
from pipeline.stats.model import ShardStats

_SIZES = ((1e3, "n<1K"), (1e4, "1K<n<10K"), (1e5, "10K<n<100K"), (1e6, "100K<n<1M"),
          (1e7, "1M<n<10M"), (1e8, "10M<n<100M"), (1e9, "100M<n<1B"))  # fmt: skip
_COLUMNS = {
    "input_ids": "token ids of the row's documents, one after the other, not padded",
    "document_lengths": "tokens of each document; they sum to the row's",
    "document_sources": "source of each document",
    "document_ids": "id of the clip or instruction sample, unique in this dataset",
    "document_modalities": "speech or text",
    "document_units": "unit of the run's ledger that the document was made in",
    "document_parts": "0: the whole sample; 1, 2, ...: pieces of one longer than a row",
}


def write_card(ledger: Ledger, stats: RunStats) -> None:
    """Write the card of the shards that the index describes. Raises: StageError when there is no index."""
    index = read_index(ledger)
    if index is None:
        raise StageError("the shards are not complete yet", remedy="Run `koe run`.")
    ledger.storage.write_bytes(CARD, dataset_card(index, stats).encode())


def dataset_card(index: dict[str, Any], stats: RunStats) -> str:
    """Return the card's Markdown, from the index and the statistics of the run."""
    parts = [
        _front_matter(stats.shards),
        "# Packed speech and text tokens\n",
        "Training rows of an Orpheus-style speech LLM (Llama 3 and SNAC tokens), made by koe. "
        f"A row holds documents of at most {index['max_row_tokens']:,} tokens together.\n",
    ]
    if not stats.has_trained_codec:
        parts.append(
            "> **UNTRAINED codec.** The speech tokens are noise, good for trials of the pipeline "
            "only.\n"
        )
    parts += [
        "## Load\n",
        "```python\nfrom datasets import load_dataset\n\n"
        'rows = load_dataset("path/to/this/folder")\n```\n',
        "## Rows\n",
        _splits(stats.shards),
        _shards(stats.shards),
        "## Sources\n",
        _sources(stats.sources),
        "## How it was made\n",
        _making(index, stats),
        "## Row layout\n",
        _layout(),
    ]
    return "\n".join(parts)


def _front_matter(shards: ShardStats) -> str:
    size = next((name for most, name in _SIZES if shards.rows < most), "n>1B")
    # Only the owners of the sources know the license and the language of the data.
    lines = ["license: unknown", "tags: [koe, orpheus, snac, speech]"]
    lines += [f"size_categories: [{size}]", "configs:", "- config_name: default", "  data_files:"]
    for split in shards.splits:
        lines += [f"  - split: {_scalar(split)}", f"    path: {_scalar(f'{split}-*.arrow')}"]
    return "\n".join(["---", *lines, "---", ""])


def _splits(shards: ShardStats) -> str:
    rows = [
        (_plain(split), f"{sums.rows:,}", f"{sums.tokens:,}")
        for split, sums in shards.splits.items()
    ]
    return _table(("split", "rows", "tokens"), rows)


def _shards(shards: ShardStats) -> str:
    by_modality = ", ".join(
        f"{_plain(name)} {count:,}" for name, count in shards.tokens_by_modality.items() if count
    )
    return (
        f"{shards.num_shards:,} shards, {shards.documents:,} documents, "
        f"{shards.tokens:,} tokens ({by_modality}). Rows are filled to {shards.fill:.2%}; the "
        f"longest holds {shards.max_row_tokens:,} tokens of {shards.row_capacity:,}.\n"
    )


def _sources(sources: Mapping[str, Account]) -> str:
    rows = []
    for name, account in sources.items():
        counts = (f"{account.records_in:,}", f"{account.kept:,}")
        left_out = (_reasons(account.reasons(outcome)) for outcome in (REJECTED, QUARANTINED))
        hours = f"{account.hours_kept:.3f} of {account.hours_in:.3f}"
        hours = hours if account.modality == SPEECH else ""
        rows.append((_plain(name), account.modality, *counts, *left_out, hours))
    heads = ("source", "modality", "in", "kept", "rejected", "quarantined", "hours kept")
    return _table(heads, rows)


def _reasons(counts: dict[str, int]) -> str:
    return ", ".join(f"{_plain(reason)} {count:,}" for reason, count in counts.items()) or "0"


def _making(index: dict[str, Any], stats: RunStats) -> str:
    codec, scores, settings = stats.codec, stats.scores, index[INTERLEAVE]
    tokenizer, threshold = index["tokenizer"], stats.thresholds.configured
    kept = "" if threshold is None else f"; kept above overall quality {threshold:g}"
    lines = []
    if scores:
        lines.append(f"scored by {_plain(', '.join(scores.scorers))}: {scores.clips:,} clips{kept}")
    if codec:
        lines.append(f"codec: {_plain(codec.label)}, weights SHA-256 {_code(codec.sha256)}")
    lines.append(f"tokenizer: {_plain(tokenizer['name'])}, SHA-256 {_code(tokenizer['sha256'])}")
    lines.append(f"shuffled, mixed and packed with {_code(json.dumps(settings, sort_keys=True))}")
    return "".join(f"- {line}\n" for line in lines)


def _layout() -> str:
    columns = [(f"`{field.name}`", str(field.type), _COLUMNS[field.name]) for field in ROW]
    ids = [(f"{id}", name) for id, name in NAMES.items()]
    ids.append((f"{FIRST_AUDIO}..{NUM_EMBEDDINGS - 1}", "codes of SNAC"))
    return "\n".join(
        [
            _table(("column", "type", "holds"), columns),
            "No token separates documents: `document_lengths` does, and attention and positions "
            "should restart at each. A speech document is\n",
            "`start_of_human start_of_text TEXT end_of_text end_of_human start_of_ai "
            "start_of_speech CODES end_of_speech end_of_ai`,\n",
            "a text document turns of `start_of_human start_of_text USER end_of_text end_of_human "
            "start_of_ai ANSWER end_of_text end_of_ai`, with `start_of_text` in the first only.\n",
            _table(("id", "token"), ids),
            f"A frame of speech is {SLOTS} codes in the order c0 c1 c2 c2 c1 c2 c2 of SNAC's three "
            f"codebooks; the code k of slot s (0 to {SLOTS - 1}) is the id {FIRST_AUDIO} + "
            f"{CODEBOOK_SIZE} s + k.\n",
        ]
    )


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(_cell(cell) for cell in line)} |\n" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _plain(text: str) -> str:
    """Spell out what Markdown and HTML would act on: names come from files that others wrote."""
    text = escape_control_characters(" ".join(text.split()))
    return html.escape(text, quote=False).replace("`", "&#96;").replace("[", "\\[")


def _code(text: str) -> str:
    return f"`{escape_control_characters(' '.join(text.split())).replace('`', chr(39))}`"


def _scalar(text: str) -> str:
    """Write a text as one value of YAML; plain where it needs no quotes."""
    return text if re.fullmatch(r"[A-Za-z][\w.*-]*", text) else json.dumps(text)
