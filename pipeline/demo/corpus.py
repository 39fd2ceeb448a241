"""Writes the demo corpus: real Japanese speech and instructions, and their pipeline.yaml."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from koe.errors import ConfigError, StorageError
from pipeline.demo import layouts
from pipeline.demo.clips import DATA, Clip, make_clips, read_json_lines, recordings
from pipeline.demo.layouts import BROKEN, to_json

CORPUS_VERSION = 3  # raise it when the same parameters give another corpus
MARKER = "demo.json"
CONFIG = "pipeline.yaml"
TRUTH = "truth.jsonl"
MIN_CLIPS = 24  # fewer would leave a degradation without an example


@dataclass(frozen=True)
class DemoReport:
    """What the corpus holds; `reused` says whether it was there already.

    `clips` counts good clips, `degraded` those of them that were degraded, by kind; `broken` counts
    records that must be quarantined, by reason; `seconds` is the length of the good clips.
    """

    folder: Path
    reused: bool
    clips: int
    seconds: float
    instructions: int
    conversations: int
    degraded: dict[str, int]
    broken: dict[str, int]

    def describe(self) -> str:
        """Describe the corpus in a few lines."""
        verb = "already holds" if self.reused else "now holds"
        broken = ", ".join(f"{reason} {num}" for reason, num in self.broken.items())
        return (
            f"{self.folder} {verb} the demo: {self.clips} clips ({self.seconds:.0f} s, "
            f"{sum(self.degraded.values())} of them degraded), {self.instructions} instructions, "
            f"{self.conversations} conversations\n"
            f"broken on purpose: {sum(self.broken.values())} records ({broken})"
        )


def write_demo(
    folder: Path, num_clips: int | None = None, num_samples: int | None = None, seed: int = 0
) -> DemoReport:
    """Write the demo corpus into `folder`, or complete the one that is there.

    The same parameters give the same bytes. None takes all packaged clips, or all samples. Files
    that are missing or differ are written; a configuration may have been edited and stays.

    Raises: ConfigError for a folder with other content, or for more than there is; StorageError
    when the folder cannot be written.
    """
    rows = list(read_json_lines(DATA / "text" / "dolly_ja.jsonl"))
    num_clips = _checked("clips", num_clips, MIN_CLIPS, len(recordings()))
    num_samples = _checked("instructions", num_samples, 1, len(rows))
    parameters = {
        "version": CORPUS_VERSION,
        "num_clips": num_clips,
        "num_samples": num_samples,
        "seed": seed,
    }
    conversations = list(read_json_lines(DATA / "text" / "instruction_ja.jsonl"))
    try:
        _require_own(folder, parameters)
        clips = make_clips(num_clips, seed)
        files = _files(clips) | layouts.text_files(rows[:num_samples], conversations)
        files |= _licences()
        written = _write(folder, files, parameters)
    except OSError as error:
        raise StorageError(
            f"the demo cannot be written into {folder}",
            str(error),
            "Free space or name another folder, then run the command again.",
        ) from error
    return DemoReport(
        folder=folder,
        reused=not written,
        clips=num_clips,
        seconds=sum(clip.seconds for clip in clips),
        instructions=num_samples,
        conversations=len(conversations),
        degraded=dict(Counter(clip.degradation for clip in clips if clip.degradation)),
        broken=dict(Counter(item.reason for item in BROKEN)),
    )


def _checked(what: str, wanted: int | None, least: int, most: int) -> int:
    if wanted is None:
        return most
    if not least <= wanted <= most:
        raise ConfigError(
            f"a demo of {wanted} {what} cannot be written",
            f"the package holds {most} {what}, and the demo needs at least {least}",
            f"Ask for {least} to {most}, or leave the option out for all of them.",
        )
    return wanted


def _files(clips: list[Clip]) -> layouts.Files:
    """Lay the clips out in their four sources, and note what was done to each."""
    by_source = {
        source: [clip for clip in clips if clip.source == source]
        for source in ("manifest", "tar", "parquet", "folder")
    }
    truth = [
        {"id": clip.id, "seconds": round(clip.seconds, 3), "source": clip.source}
        | {"codec": clip.codec, "audio_hz": clip.audio_hz, "channels": clip.channels}
        | {"degradation": clip.degradation}
        for clip in clips
    ]
    return {
        **layouts.manifest_files(by_source["manifest"]),
        **layouts.tar_files(by_source["tar"]),
        **layouts.parquet_files(by_source["parquet"]),
        **layouts.folder_files(by_source["folder"]),
        TRUTH: "".join(to_json(line) + "\n" for line in [*truth, *map(asdict, BROKEN)]).encode(),
    }


def _licences() -> layouts.Files:
    """Return the licences and attributions, which must accompany the data."""
    return {
        f"{room}/{file.name}": file.read_bytes()
        for room in ("speech", "text")
        for file in (DATA / room).iterdir()
        if file.name.startswith(("LICENSE", "README"))
    }


def _require_own(folder: Path, parameters: dict[str, Any]) -> None:
    """Check that `folder` is free, or holds the demo of the same parameters.

    Raises: ConfigError when something else is there; OSError.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    remedy = "Name another folder, or delete this one."
    marker = folder / MARKER
    if not marker.is_file():
        raise ConfigError(f"the demo cannot be written into {folder}", "it is not empty", remedy)
    try:
        found = json.loads(marker.read_text("utf-8"))["parameters"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{marker} is not a demo's marker", str(error), remedy) from error
    if found != parameters:
        raise ConfigError(f"{folder} holds another demo", f"it was written with {found}", remedy)


def _write(folder: Path, files: layouts.Files, parameters: dict[str, Any]) -> bool:
    """Write the marker, then what is missing or differs; say whether anything was written."""
    folder.mkdir(parents=True, exist_ok=True)
    marker = {MARKER: (json.dumps({"parameters": parameters}, indent=1) + "\n").encode()}
    config = folder / CONFIG
    if not config.exists():
        files = files | {CONFIG: (resources.files("pipeline.demo") / CONFIG).read_bytes()}
    written = False
    for name, data in (marker | files).items():
        path = folder / name
        if not path.is_file() or path.read_bytes() != data:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f"{path.name}.part")
            temporary.write_bytes(data)
            temporary.replace(path)
            written = True
    return written
