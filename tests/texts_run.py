"""A run whose transcripts fail each check, and whose clips repeat others in each way."""

from __future__ import annotations

import json
import shutil
from itertools import cycle
from pathlib import Path
from typing import Any

import soundfile
import yaml
from rich.console import Console

from pipeline.config.load import load_config
from pipeline.execution.selection import select_stages
from pipeline.jobs.run import JobReport, run_job
from tests.corpus import write_corpus
from tests.stages.speech import synthetic_speech

TEXTS = {
    "plain": "今日はいい天気です",
    "again": "長" * 12,
    "invented": "ご視聴ありがとうございました。",
    "latin": "hello world",
    "hidden": "こんに\u200bちは",
    "short": "あ",
    "long": "とても早口で話さなければ入りきらないほど長い文章がここにあります" * 2,
    "half": "ｶﾞｯｺｳへ行く",
}
EVERY = {
    "normalize": "nfkc",
    "invisible_characters": "reject",
    "min_characters_per_second": 3.0,
    "max_characters_per_second": 60.0,
    "min_script_share": 0.5,
    "max_repeats": 8,
    "invented_phrases": ["default"],
}
_SPEAKERS = ("花子", "太郎", None)
_SEEDS = (*range(25), 0)  # of the audio files; the last one is a copy of the first


def texts_run(shared: Path) -> Path:
    """Make the run once a process, and return its configuration; `shared` outlives each test.

    Two sources of 42 and 21 clips in units of 7. Some ids come again.
    """
    path = shared / "texts" / "pipeline.yaml"
    if not path.exists():
        _write(path.parent)
        run(path)
    return path


def copied_run(shared: Path, folder: Path) -> Path:
    """Copy the run into a folder, and return a configuration of the copy; the sources stay."""
    original = texts_run(shared)
    shutil.copytree(original.parent / "run", folder / "run")
    config = yaml.safe_load(original.read_text()) | {"run_dir": str(folder / "run")}
    path = original.parent / f"{folder.name}.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def run(path: Path, overrides: list[str] | None = None, last: str = "interleave") -> JobReport:
    quiet = Console(stderr=True, quiet=True)
    return run_job(load_config(path, overrides), select_stages(None, last, None, ()), quiet)


def in_section(section: str, keys: dict[str, Any]) -> list[str]:
    """Write settings as overrides of a configuration."""
    return [f"{section}.{key}={json.dumps(value)}" for key, value in keys.items()]


def _write(folder: Path) -> None:
    path = write_corpus(folder, num_samples=3)
    for number, seed in enumerate(_SEEDS):
        audio = synthetic_speech(9600, 16_000, seed)
        soundfile.write(folder / f"said-{number}.flac", audio, 16_000)
    files = [f"said-{number}.flac" for number in range(len(_SEEDS))]
    for name, number in (("said", 30), ("other", 9)):
        rows = [(id, text, "花子") for id, text in TEXTS.items()]
        rows += [(f"n{k}", TEXTS["plain"][: 4 + k % 5], _SPEAKERS[k % 3]) for k in range(number)]
        rows += rows[3:7]  # an id that comes again, in another unit
        lines = [
            json.dumps({"id": id, "audio_filepath": file, "text": text, "speaker": speaker})
            for file, (id, text, speaker) in zip(cycle(files), rows, strict=False)
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    config = yaml.safe_load(path.read_text())
    config["sources"]["speech"] = [
        {
            "name": name, "kind": "manifest", "paths": [f"{name}.jsonl"],
            "fields": {"id": "id", "speaker": "speaker"},
        }
        for name in ("said", "other")
    ]  # fmt: skip
    config["plan"]["clips_per_unit"] = 7
    config["encode"]["threshold_ovrl"] = 0.5
    path.write_text(yaml.safe_dump(config))
