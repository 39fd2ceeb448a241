"""Writes the demo corpus: synthesised Japanese speech, instructions and their pipeline.yaml."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch

from koe.errors import ConfigError, StageError, StorageError
from pipeline.demo import containers
from pipeline.demo.broken import BROKEN, to_json
from pipeline.demo.clips import Clip, plan_clips, render
from pipeline.demo.instructions import conversations, instruction_rows
from pipeline.demo.speech import (
    SYNTHESIS_HZ,
    cast,
    read_sentences,
    require_synthesiser,
    synthesise,
)

Progress = Callable[[int, int], None]

CORPUS_VERSION = 2  # raise it when the same parameters give another corpus
MARKER = "demo.json"
CONFIG = "pipeline.yaml"
TRUTH = "truth.jsonl"
MIN_CLIPS = 24  # fewer would leave a source without a clip or a degradation without an example
NUM_CONVERSATIONS = 20
_OURS = ("speech", "text", TRUTH)
# Independent random streams of one seed.
_CAST, _PLAN, _TEXT, _AUDIO = range(4)


@dataclass(frozen=True)
class DemoReport:
    """What the corpus holds; `reused` tells whether it was there already.

    `clips` counts good clips, `degraded` those of them that noise or worse has hit, by kind;
    `broken` counts records that must be quarantined, by reason; `seconds` is of good clips.
    """

    folder: Path
    reused: bool
    clips: int
    seconds: float
    instructions: int
    conversations: int
    clips_by_source: dict[str, int] = field(default_factory=dict)
    degraded: dict[str, int] = field(default_factory=dict)
    unusual: dict[str, int] = field(default_factory=dict)
    broken: dict[str, int] = field(default_factory=dict)

    @property
    def config_path(self) -> Path:
        return self.folder / CONFIG

    def describe(self) -> str:
        """Say in a few lines what there is."""
        verb = "holds the demo already" if self.reused else "now holds the demo"
        broken = ", ".join(f"{reason} {num}" for reason, num in self.broken.items())
        return (
            f"{self.folder} {verb}: {self.clips} clips ({self.seconds:.0f} s, "
            f"{sum(self.degraded.values())} of them degraded), {self.instructions} instructions, "
            f"{self.conversations} conversations\n"
            f"broken on purpose: {sum(self.broken.values())} records ({broken})"
        )


def write_demo(
    folder: Path,
    num_clips: int = 300,
    num_instructions: int = 2000,
    seed: int = 0,
    progress: Progress | None = None,
    workers: int = 2,
) -> DemoReport:
    """Write the demo corpus into `folder`, or find it there.

    The same parameters give the same bytes whatever `workers` is. `progress` is called with the
    steps done and their number. A demo whose writing was interrupted is written anew.

    Raises: ConfigError for a folder with other content, or without the synthesiser; StorageError
    when the folder cannot be written; StageError when a worker dies.
    """
    if num_clips < MIN_CLIPS or num_instructions < 1 or workers < 1:
        raise ConfigError(
            f"a demo of {num_clips} clips and {num_instructions} instructions by {workers} "
            "workers cannot be written",
            f"it needs at least {MIN_CLIPS} clips, one instruction and one worker",
        )
    parameters = {
        "version": CORPUS_VERSION,
        "num_clips": num_clips,
        "num_instructions": num_instructions,
        "seed": seed,
    }
    with _storage_errors(folder):
        if (found := _existing(folder, parameters)) is not None:
            return found
    require_synthesiser()
    clips = make_clips(num_clips, seed, workers, progress or (lambda done, total: None))
    rng = np.random.default_rng([seed, _TEXT])
    rows = instruction_rows(num_instructions, rng)
    dialogues = conversations(NUM_CONVERSATIONS, rng)
    files = _files(clips) | containers.text_files(rows, dialogues)
    report = _report(folder, clips, len(rows), len(dialogues))
    with _storage_errors(folder):
        _write(folder, files, parameters, report)
    return report


def make_clips(num_clips: int, seed: int, workers: int, progress: Progress) -> list[Clip]:
    """Synthesise and render the good clips, in order, on `workers` processes.

    Raises: StageError when a worker dies.
    """
    utterances = cast(min(num_clips, len(read_sentences())), np.random.default_rng([seed, _CAST]))
    total = len(utterances) + num_clips

    def counted(results: Iterator[Any], done: int) -> Iterator[Any]:
        for count, result in enumerate(results, done + 1):
            progress(count, total)
            yield result

    # spawn: forking a process that has started torch's threads may hang
    pool = ProcessPoolExecutor(
        workers,
        multiprocessing.get_context("spawn"),
        initializer=torch.set_num_threads,
        initargs=(1,),
    )
    try:
        spoken = list(counted(pool.map(synthesise, utterances), 0))
        seconds = [len(audio) / SYNTHESIS_HZ for audio in spoken]
        rng = np.random.default_rng([seed, _PLAN])
        plans = plan_clips(utterances, seconds, num_clips, rng)
        parts = [[spoken[place] for place in plan.utterances] for plan in plans]
        results = pool.map(render, plans, parts, [seed] * num_clips)
        return list(counted(results, len(utterances)))
    except BrokenProcessPool as error:
        raise StageError(
            "a worker that synthesises the demo's speech died",
            "the machine may have run out of memory",
            "Run the command again, with fewer workers.",
            stage="demo",
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _files(clips: list[Clip]) -> containers.Files:
    """Lay the clips out in their four sources, and note what was done to each."""
    by_source = {
        source: [clip for clip in clips if clip.plan.source == source]
        for source in ("manifest", "tar", "parquet", "folder")
    }
    truth = [
        {"id": clip.plan.id, "seconds": round(clip.seconds, 3)}
        | {key: getattr(clip.plan, key) for key in ("source", "codec", "speaker", "degradation")}
        | {"audio_hz": clip.plan.audio_hz, "channels": clip.plan.channels}
        for clip in clips
    ]
    return {
        **containers.manifest_files(by_source["manifest"]),
        **containers.tar_files(by_source["tar"]),
        **containers.parquet_files(by_source["parquet"]),
        **containers.folder_files(by_source["folder"]),
        TRUTH: "".join(to_json(line) + "\n" for line in [*truth, *map(asdict, BROKEN)]).encode(),
    }


def _report(folder: Path, clips: list[Clip], num_rows: int, num_dialogues: int) -> DemoReport:
    plans = [clip.plan for clip in clips]
    return DemoReport(
        folder=folder,
        reused=False,
        clips=len(clips),
        seconds=round(sum(clip.seconds for clip in clips), 3),
        instructions=num_rows,
        conversations=num_dialogues,
        clips_by_source=dict(Counter(plan.source for plan in plans)),
        degraded=dict(Counter(plan.degradation for plan in plans if plan.degradation)),
        unusual={
            "stereo": sum(plan.channels == 2 for plan in plans),
            "8 kHz": sum(plan.audio_hz == 8000 for plan in plans),
        },
        broken=dict(Counter(item.reason for item in BROKEN)),
    )


def _existing(folder: Path, parameters: dict[str, Any]) -> DemoReport | None:
    """Return the report of the demo in `folder`, or None where one can be written.

    Raises: ConfigError when something else is there; OSError.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    remedy = "Name another folder, or delete this one."
    marker = folder / MARKER
    if not marker.is_file():
        raise ConfigError(f"the demo cannot be written into {folder}", "it is not empty", remedy)
    try:
        found = json.loads(marker.read_text("utf-8"))
        complete, same = found["complete"], found["parameters"] == parameters
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{marker} is not a demo's marker", str(error), remedy) from error
    if not same:
        raise ConfigError(
            f"{folder} holds another demo", f"it was written with {found['parameters']}", remedy
        )
    if not complete or any(
        not (folder / name).is_file() or (folder / name).stat().st_size != item["bytes"]
        for name, item in found["files"].items()
    ):
        return None
    return DemoReport(folder=folder, reused=True, **found["report"])


def _write(
    folder: Path, files: containers.Files, parameters: dict[str, Any], report: DemoReport
) -> None:
    """Write the marker, the files, the configuration, and the marker again, now complete.

    A configuration that is there already may have been edited and stays.
    """
    folder.mkdir(parents=True, exist_ok=True)
    marker = {"complete": False, "parameters": parameters}
    _write_marker(folder, marker)
    for name in _OURS:
        old = folder / name
        shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    config = folder / CONFIG
    if not config.exists():
        config.write_bytes(resources.files("pipeline.demo").joinpath(CONFIG).read_bytes())
    contents = {
        key: value for key, value in asdict(report).items() if key not in ("folder", "reused")
    }
    digests = {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in files.items()
    }
    _write_marker(folder, marker | {"complete": True, "report": contents, "files": digests})


def _write_marker(folder: Path, marker: dict[str, Any]) -> None:
    temporary = folder / f"{MARKER}.part"
    temporary.write_text(json.dumps(marker, ensure_ascii=False, indent=1) + "\n", "utf-8")
    temporary.replace(folder / MARKER)


@contextmanager
def _storage_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"the demo cannot be written into {folder}",
            str(error),
            "Make room or name another folder, then run the command again.",
        ) from error
