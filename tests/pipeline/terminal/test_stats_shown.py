"""Statistics of a run that is not done yet, in the terminal and from the command line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.stats import RunStats, full_stats, stats_json
from pipeline.terminal.stats import stats_view
from tests.statistics_run import KEYS, THRESHOLDS, opened, run_corpus

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return run_corpus(tmp_path_factory.mktemp("stats") / "corpus")


@pytest.fixture(scope="module")
def stats(corpus) -> RunStats:
    return full_stats(*opened(corpus.parent / "run"), thresholds=THRESHOLDS)


def test_what_is_not_done_yet_is_empty(corpus, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(corpus.parent / "run", run_dir)
    later = {
        "interleave": ("mix", "shard_files"),
        "tokenize": (),
        "encode": ("codebooks", "duplicates"),
        "score": ("scores",),
        "ingest": ("quarantine_examples",),
    }
    shutil.rmtree(run_dir / "shards")
    gone: list[str] = []
    for stage, parts in later.items():
        shutil.rmtree(run_dir / stage)
        gone += parts
        stats = full_stats(*opened(run_dir))
        assert stats_json(stats).keys() == KEYS
        assert [part for part in gone if getattr(stats, part)] == []
        assert stats.clips.adds_up
        assert width_of(stats) <= 80
    assert stats.distributions == {"all": {}, "clips": {}, "second": {}, "text": {}}
    assert stats.thresholds.configured is None


def width_of(stats: RunStats) -> int:
    return max(len(line.rstrip()) for line in shown(stats).splitlines())


def shown(stats: RunStats) -> str:
    console = Console(width=80, color_system=None, no_color=True)
    with console.capture() as capture:
        console.print(stats_view(stats))
    return capture.get()


def test_the_terminal_shows_all_of_it_in_80_columns(stats):
    text = shown(stats)
    assert width_of(stats) <= 80
    for title in ("Records", "Rejected", "Quarantined", "Distributions", "Medians", "Codes used",
                  "Duplicates", "Shards", "Mix along", "Shard files", "1.3 is applied"):  # fmt: skip
        assert title in text
    for reason in ("all_zero_audio", "broken_json", "empty_audio", "missing_transcript"):
        assert reason in text
    row = stats.thresholds.what_if[1]
    assert ["1.9", str(row.clips)] in [line.split()[:2] for line in text.splitlines()]
    quick = replace(stats, distributions={}, mix=(), codebooks=())
    assert "DNSMOS of" in shown(quick)


def koe(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = "from pipeline.cli import main; main()"
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)


def test_the_command_line_asks_what_if(corpus):
    done = koe("stats", "-c", str(corpus), "--json", "--what-if", "1.9,2.05")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [row["threshold"] for row in found["thresholds"]["what_if"]] == [1.9, 2.05]
    assert found.keys() >= KEYS
    wrong = koe("stats", "-c", str(corpus), "--what-if", "high")
    assert wrong.returncode == 2
    assert "--what-if high" in wrong.stderr


def test_one_source_shows_its_record_counts_and_distributions_only(corpus, stats):
    done = koe("stats", "-c", str(corpus), "--source", "second")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    lines = [line.split() for line in done.stdout.splitlines()]
    counts = next(line for line in lines if line[:1] == ["second"])
    assert counts[1] == "1"
    seconds = next(line for line in lines if line[:1] == ["seconds"])
    values = stats.distributions["second"]["seconds"]
    assert seconds[1:3] == ["1", f"{values.mean:.2f}"]
    for words in ("Medians", "Shards", "missing_transcript", "of all"):
        assert words not in done.stdout
    whole = koe("stats", "-c", str(corpus), "--source", "second", "--json")
    assert set(json.loads(whole.stdout)["sources"]) == set(stats.sources)
    wrong = koe("stats", "-c", str(corpus), "--source", "third")
    assert wrong.returncode == 2
    assert "clips, second, text" in wrong.stderr
