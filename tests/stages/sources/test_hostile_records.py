"""Records of Lhotse and NeMo with any value in any place: none stops a unit or costs another."""

from __future__ import annotations

import copy
import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from stages.sources.base import SpeechFiles
from tests.stages.sources import nemo_source, shar_source
from tests.stages.sources.lhotse_sets import dialogues, two_channels, write_shar
from tests.stages.sources.nemo_sets import write_tarred
from tests.stages.sources.reading import ingested

ODD: list[Any] = [
    None, True, 0, -1, 1.5, 1e308, 10**30, 10**400, "", "x", "9" * 5000, "１２", [], [1], [[]], ["a", None],
    [[0, 1], {"a": [1]}], {}, {"a": 1}, float("nan"), float("inf"), "\x00", "../..", "a\nb",
    {"type": "shar"}, "/etc/hostname",
]  # fmt: skip
ABSENT = object()
UNIT = {"unit_records": 1000}  # one, where an id that is repeated is found
# Keys that lines may have, and these do not.
MORE = ["transforms", "custom", "tracks", "type", "channel", "offset", "_skipme", "features", "id"]


class Lines(NamedTuple):
    """The lines of a set, of which `odd` is changed, and what reads them."""

    good: list[dict[str, Any]]
    path: Path
    read: Callable[[], SpeechFiles]

    def write(self, lines: list[dict[str, Any]]) -> None:
        data = "\n".join(map(json.dumps, lines)).encode()
        self.path.write_bytes(gzip.compress(data) if self.path.suffix == ".gz" else data)


def lines_of(path: Path, read: Callable[[], SpeechFiles]) -> Lines:
    data = path.read_bytes()
    text = gzip.decompress(data) if path.suffix == ".gz" else data
    return Lines([json.loads(line) for line in text.splitlines()], path, read)


def nemo(folder: Path) -> Lines:
    entries = nemo_source.recordings(folder, num_files=2, num_parts=2)
    write_tarred(folder / "set", entries, num_shards=1)
    path = folder / "set/tarred_audio_manifest.json"
    return lines_of(
        path, lambda: nemo_source.source_of(path, **UNIT, fields={"speaker": "speaker"})
    )


def shar(folder: Path, **settings: Any) -> Lines:
    write_shar(dialogues(folder, 2), folder / "shar")
    path = folder / "shar/cuts.000000.jsonl.gz"
    return lines_of(path, lambda: shar_source.source_of(path, **UNIT, **settings))


def shar_by_cut(folder: Path) -> Lines:
    return shar(folder, fields={"id": "id_in_cut", "speaker": "speaker_in_cut"})


def shar_with_texts(folder: Path) -> Lines:
    return shar(folder, supervisions="speakers_and_text")


def channels(folder: Path) -> Lines:
    """Write a cut twice, whose recording stands in its line the first time."""
    write_shar(two_channels(folder), folder / "shar")
    path = folder / "shar/cuts.000000.jsonl.gz"
    (line,) = lines_of(path, lambda: shar_source.source_of(path, **UNIT)).good
    bare = {key: value for key, value in line.items() if key != "recording"}
    return Lines([bare, line], path, lambda: shar_source.source_of(path, **UNIT))


def supervisions(folder: Path) -> Lines:
    shar_source.prepared(folder / "data", ".jsonl")
    path = folder / "data/tv_supervisions_train.jsonl"
    return lines_of(path, lambda: shar_source.source_of(path, **UNIT))


def recordings(folder: Path) -> Lines:
    path = supervisions(folder).path
    return lines_of(
        folder / "data/tv_recordings_train.jsonl", lambda: shar_source.source_of(path, **UNIT)
    )


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """Yield the path of every value inside of `value`."""
    inside = value.items() if isinstance(value, dict) else enumerate(value)
    for key, part in inside:
        yield (*path, key)
        if isinstance(part, dict | list):
            yield from places(part, (*path, key))


def changed(line: dict[str, Any], path: tuple, value: Any) -> dict[str, Any]:
    line = copy.deepcopy(line)
    holder: Any = line
    for key in path[:-1]:
        holder = holder[key]
    if value is ABSENT:
        del holder[path[-1]]
    else:
        holder[path[-1]] = value
    return line


KINDS = [nemo, shar_by_cut, shar_with_texts, channels, supervisions, recordings]


@pytest.mark.law
@pytest.mark.parametrize("kind", KINDS)
def test_no_value_stops_a_unit_or_costs_another_record(tmp_path, kind):
    lines = kind(tmp_path)
    *others, line = lines.good
    lines.write(others)
    expected, _ = ingested(lines.read())
    assert expected
    known = list(places(line))
    for path in [*known, *((key,) for key in MORE if key not in line)]:
        values = [*ODD, ABSENT] if path in known else ODD
        # the first of an id stays, so the others come first
        lines.write([*others, *(changed(line, path, value) for value in values)])
        kept, _ = ingested(lines.read())
        assert {key: row for key, row in kept.items() if key in expected} == expected, path
