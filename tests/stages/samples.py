"""Sample tables in the Orpheus layout for tests of packing and interleaving."""

import numpy as np
import pyarrow as pa

from koe.schema import EXCLUDED, SAMPLE, SPEECH, TEXT
from koe.vocabulary import conversation_ids, speech_ids
from stages.packing.order import unit_samples


def text_sample(rng, num_tokens):
    """A conversation of 8 or more tokens, random text in one turn."""
    text = rng.integers(0, 128000, max(num_tokens - 8, 0)).tolist()
    half = len(text) // 2
    return conversation_ids([(text[:half], text[half:])])


def speech_sample(rng, num_text, num_frames):
    codes = rng.integers(0, 4096, 7 * num_frames).astype(np.uint16)
    return speech_ids(rng.integers(0, 128000, num_text).tolist(), codes)


def sample_table(source, modality, ids, num_frames, first=0):
    """A SAMPLE table of `ids`, named `source/first` and on."""
    rows = [
        {
            "id": f"{source}/{first + i}",
            "source": source,
            "modality": modality,
            "frames": frames,
            "input_ids": sample.tolist(),
        }
        for i, (sample, frames) in enumerate(zip(ids, num_frames, strict=True))
    ]
    return pa.Table.from_pylist(rows, schema=SAMPLE)


def text_unit(rng, lengths, source="dolly", first=0):
    ids = [text_sample(rng, length) for length in lengths]
    return sample_table(source, TEXT, ids, [0] * len(ids), first)


def speech_unit(rng, frames, source="jvs", first=0, num_text=12):
    ids = [speech_sample(rng, num_text, number) for number in frames]
    return sample_table(source, SPEECH, ids, frames, first)


def corpus(seed=0, text_units=3, speech_units=3, num_samples=60, overlong=True):
    """Unit tables by name, in plan order: text and speech of log-normal lengths."""
    rng = np.random.default_rng(seed)
    tables = {}
    for u in range(speech_units):
        frames = np.clip(rng.lognormal(np.log(70), 0.5, num_samples), 5, 280).astype(int)
        if overlong:
            frames[0] = 700
        tables[f"jvs-{u:05d}"] = speech_unit(rng, frames.tolist(), first=u * num_samples)
    for u in range(text_units):
        lengths = np.clip(rng.lognormal(np.log(250), 0.9, num_samples), 10, 2000).astype(int)
        if overlong:
            lengths[0] = 5000
        tables[f"dolly-{u:05d}"] = text_unit(rng, lengths.tolist(), first=u * num_samples)
    return tables


def changed(settings, **changes):
    """Return `settings` with other values, unchecked: tests of packing use shorter rows."""
    return settings.model_copy(update=changes)


def excluded(order, outcome):
    """The samples (EXCLUDED) without a place, rejected or quarantined."""
    return pa.concat_tables([EXCLUDED.empty_table(), *order.excluded(outcome)])


def described(tables):
    return [
        unit_samples(i, name, lambda table=table: table)
        for i, (name, table) in enumerate(tables.items())
    ]


def reader(tables):
    by_index = list(tables.values())
    return lambda index: by_index[index]
