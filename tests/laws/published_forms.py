"""One corpus written in the forms that corpora are published in."""

from __future__ import annotations

import csv
import io
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import soundfile
import webdataset
import zstandard
from lhotse import CutSet, MonoCut, Recording, RecordingSet, SupervisionSegment, SupervisionSet

from tests.stages.sources.nemo_sets import write_manifest, write_tarred

AUDIO_HZ = 16_000


@dataclass(frozen=True)
class Part:
    """A clip of a recording: its file, whose number is `recording`, and where it lies there."""

    recording: int
    path: Path
    start: float
    seconds: float
    text: str
    speaker: str

    @property
    def id(self) -> str:
        return f"r{self.recording}-{round(self.start * 1000)}"

    def entry(self) -> dict[str, Any]:
        place = {"audio_filepath": str(self.path), "offset": self.start, "duration": self.seconds}
        return {**place, "text": self.text, "speaker": self.speaker}

    def supervision(self) -> SupervisionSegment:
        place = (self.id, f"r{self.recording}", self.start, self.seconds)
        return SupervisionSegment(*place, channel=0, text=self.text, speaker=self.speaker)


Writer = Callable[[Path, Sequence[Part]], None]


def by_recording(parts: Sequence[Part]) -> Iterator[tuple[Recording, list[Part]]]:
    for number in dict.fromkeys(part.recording for part in parts):
        own = [part for part in parts if part.recording == number]
        yield Recording.from_file(own[0].path, recording_id=f"r{number}"), own


def cut_of(recording: Recording, parts: Sequence[Part]) -> MonoCut:
    supervisions = [part.supervision() for part in parts]
    return MonoCut(
        f"cut-{recording.id}", 0, recording.duration, 0, supervisions, recording=recording
    )


def write_plain(folder: Path, parts: Sequence[Part]) -> None:
    write_manifest(folder / "manifest.jsonl", [part.entry() for part in parts])


def write_lines_zst(folder: Path, parts: Sequence[Part]) -> None:
    write_plain(folder, parts)
    text = (folder / "manifest.jsonl").read_bytes()
    middle = len(text) // 2  # two frames, of which the second begins inside a line
    data = zstandard.compress(text[:middle]) + zstandard.compress(text[middle:])
    (folder / "manifest.jsonl.zst").write_bytes(data)


def write_nemo(folder: Path, parts: Sequence[Part]) -> None:
    write_tarred(folder / "nemo", [part.entry() for part in parts], num_shards=1)


def write_shar(folder: Path, parts: Sequence[Part]) -> None:
    cuts = CutSet.from_cuts(cut_of(*pair) for pair in by_recording(parts))
    (folder / "shar").mkdir()
    cuts.to_shar(folder / "shar", fields={"recording": "flac"}, shard_size=2)


def write_supervisions(folder: Path, parts: Sequence[Part]) -> None:
    pairs = list(by_recording(parts))
    RecordingSet.from_recordings(r for r, _ in pairs).to_file(folder / "tv_recordings.jsonl.gz")
    found = [part.supervision() for _, own in pairs for part in own]
    SupervisionSet.from_segments(found).to_file(folder / "tv_supervisions.jsonl.gz")


def flac(part: Part) -> bytes:
    """Return a clip as a file of its own."""
    start, frames = round(part.start * AUDIO_HZ), round(part.seconds * AUDIO_HZ)
    audio, _ = soundfile.read(part.path, start=start, frames=frames, dtype="int16")
    file = io.BytesIO()
    soundfile.write(file, audio, AUDIO_HZ, format="FLAC")
    return file.getvalue()


def write_webdataset(folder: Path, parts: Sequence[Part]) -> None:
    """Write a .tar.gz of each clip alone, as such sets have them."""
    with webdataset.TarWriter(str(folder / "clips.tar.gz"), compress=True) as tar:
        for part in parts:
            fields = {"text": part.text, "speaker": part.speaker}
            tar.write({"__key__": part.id, "flac": flac(part), "json": fields})


def write_tars_and_table(folder: Path, parts: Sequence[Part]) -> None:
    """Write audio alone into hexadecimal tars, as ReazonSpeech has it, and a table in no order."""
    names = {part.id: f"{number % 2:03x}/{number:013x}.flac" for number, part in enumerate(parts)}
    for number in {name[:3] for name in names.values()}:
        with tarfile.open(folder / f"{number}.tar", "w") as tar:
            for part in parts:
                if names[part.id].startswith(number):
                    info = tarfile.TarInfo(f"./{names[part.id]}")
                    info.size = len(data := flac(part))
                    tar.addfile(info, io.BytesIO(data))
    rows = [f"{names[part.id]}\t{part.speaker}\t{part.text}\n" for part in reversed(parts)]
    (folder / "all.tsv").write_text("".join(rows), encoding="utf-8")


def write_table(name: str, mark: str, *header: str) -> Writer:
    """Write clips as files, and a table with their name, speaker and text."""

    def write(folder: Path, parts: Sequence[Part]) -> None:
        (folder / "clips").mkdir()
        root = "" if name == "validated.tsv" else "clips/"
        with (folder / name).open("w", encoding="utf-8", newline="") as file:
            quoting = csv.QUOTE_MINIMAL if mark == "," else csv.QUOTE_NONE
            table = csv.writer(file, delimiter=mark, quoting=quoting)
            table.writerows([header] if header else [])
            for part in parts:
                (folder / f"clips/{part.id}.flac").write_bytes(flac(part))
                table.writerow([f"{root}{part.id}.flac", part.speaker, part.text])

    return write
