from __future__ import annotations

import io
import json
import re
import shutil
import struct
import zlib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import soundfile
from rich.console import Console

from pipeline.config_file import load_config
from pipeline.errors import ConfigError, StorageError
from pipeline.job import run_job
from pipeline.ledger import Ledger
from pipeline.plan import load_plan
from pipeline.report import write_data_report
from pipeline.report.page import Content, page
from pipeline.report.spectrogram import BANDS, COLUMNS, mp3, picture, png, power
from pipeline.report.survey import BEST, BORDERLINE, WORST, Extremes, LeftOut
from pipeline.schema import EXCLUDED
from pipeline.selection import select_stages
from pipeline.stats import full_stats
from pipeline.storage import Storage
from pipeline.vocabulary import CODEC_HZ
from tests.corpus import write_corpus

QUIET = Console(stderr=True, quiet=True)
EVIL = "<img src=x onerror=alert(1)></script><script>alert(2)</script>"
QUANTITIES = ("seconds", "characters", "characters_per_second", "tokens", "sig", "bak", "ovrl")


class Page(HTMLParser):
    """The page as a browser takes it apart."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self._within, self._data = "", {"figures": "", "left-out": ""}
        self.feed(text)
        self.figures = json.loads(self._data["figures"])
        self.rows = json.loads(self._data["left-out"])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.tags.append(tag)
        self._within = str(named.get("id") or tag)
        self.addresses += [str(named[key]) for key in ("src", "href") if key in named]

    def handle_data(self, data: str) -> None:
        if self._within in self._data:
            self._data[self._within] += data
        elif self._within not in ("script", "style"):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def described() -> dict[str, Any]:
    return {
        "count": 3,
        "mean": 2.0,
        "quantiles": {"p5": 1.0, "p50": 2.0, "p95": 3.0},
        "histogram": {"edges": [1, 2, 3], "counts": [1, 2]},
    }


def written_stats(name: str = "clips") -> dict[str, Any]:
    """Return what `koe stats --json` prints, written by hand; `name` is the speech source's."""
    account = {"kept": 6, "rejected": {"below_threshold": 3}, "quarantined": {name: 1}}
    account |= {"pending": 0, "closed": True}
    return {
        "accounting": {"clips_in": 10, **account},
        "samples": {"samples_in": 10, **account},
        "sources": {
            name: {"modality": "speech", "clips_in": 10, "hours_in": 2.0, "hours_kept": 1.0, **account},
            "text": {"modality": "text", "samples_in": 10, **account},
        },
        "distributions": {
            "all": {q: described() for q in (*QUANTITIES, "text_tokens")},
            name: {q: described() for q in QUANTITIES},
            "text": {},
        },
        "thresholds": {
            "configured": 2.5,
            "what_if": [
                {"threshold": 2.0, "clips": 9, "hours": 1.9, "share": 0.9, "uncertain": 2},
                {"threshold": 3.0, "clips": 3, "hours": 0.5, "share": 0.3, "uncertain": 0},
            ],
        },
        "codebooks": [
            {"slot": slot, "codebook": 0, "used": 2, "share": 0.1, "perplexity": 1.5,
             "ranks": [1, 2, 4096], "counts_sorted": [9, 1, 0]}
            for slot in range(7)
        ],
        "duplicates": {"audio": {"groups": 1, "clips": 1, "hours": 0.1, "examples": [[name, "b"]]}},
        "mix": [
            {"progress": 0.5, "speech_tokens": 90, "text_tokens": 10, "rows": 1, "fill": 0.98,
             "documents_per_row": 3.0}
        ],
        "shards": {"num_shards": 1, "rows": 1, "tokens": 100, "fill": 0.98, "row_capacity": 102,
                   "tokens_by_modality": {"speech": 90, "text": 10}},
        "shard_files": [{"path": name, "split": "train", "rows": 1, "tokens": 100, "bytes": 10,
                         "sha256": "ab" * 32, "fill": 0.98}],
        "codec": {"label": name, "trained": False},
    }  # fmt: skip


def excluded(number: int, reason: str = "below_threshold", **changes: str) -> pa.Table:
    row = {"source": "clips", "stage": "encode", "outcome": "rejected", "reason": reason}
    row |= {"detail": "ovrl 2", "location": "here", **changes}
    return pa.Table.from_pylist([{"id": f"{reason}{n}", **row} for n in range(number)], EXCLUDED)


def left_out(*tables: pa.Table, most: int = 100) -> LeftOut:
    found = LeftOut(most)
    for table in tables:
        found.add(table)
    return found


def content(stats: dict[str, Any], found: LeftOut | None = None, **changes: Any) -> Content:
    made: dict[str, Any] = {"title": "run", "about": "", "stats": stats, "threshold": 2.5}
    made |= {"left_out": found or left_out(), "clips": [], "codec": "snac", "trained": True}
    return Content(**made | changes)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_corpus(tmp_path_factory.mktemp("corpus"))
    run_job(load_config(path), select_stages(None, "interleave", None, ()), QUIET)
    return path


@pytest.fixture
def corpus(done: Path, tmp_path: Path) -> Iterator[Path]:
    """A run whose source files may be removed: they come back."""
    kept = shutil.copytree(done.parent, tmp_path / "kept")
    yield done
    shutil.copytree(kept, done.parent, dirs_exist_ok=True)


def report(path: Path, folder: Path, *overrides: str, num_clips: int = 6) -> Page:
    config = load_config(path, list(overrides))
    ledger = Ledger(Storage(config.run_dir))
    plan = load_plan(ledger.storage)
    assert plan is not None
    stats = full_stats(plan, ledger)
    return Page(
        write_data_report(config, plan, ledger, stats, folder, num_clips).read_text(
            encoding="utf-8"
        )
    )


def test_a_run_is_shown_with_its_sound_and_what_it_left_out(done: Path, tmp_path: Path):
    page = report(done, tmp_path / "new" / "report")
    assert page.tags.count("audio") == 16  # 8 clips were scored: original and reconstruction
    assert "rejected below_threshold: ovrl" in page.text
    assert sorted(row[4] for row in page.rows if row[3] == "quarantined") == [
        "all_zero_audio", "broken_json", "empty_audio", "missing_answer", "missing_transcript",
    ]  # fmt: skip
    assert "UNTRAINED: its reconstructions are noise" in page.text
    assert "books closed" in page.text
    threshold = [f["layout"]["shapes"][0]["x0"] for f in page.figures if f["layout"].get("shapes")]
    assert 1.3 in threshold


def test_the_page_loads_nothing(done: Path, tmp_path: Path):
    page = report(done, tmp_path, num_clips=1)
    assert all(re.match(r"data:|#[a-z-]+$", address) for address in page.addresses)
    assert "link" not in page.tags
    assert page.tags.count("script") == 4
    assert (tmp_path / "index.html").stat().st_size < 15e6
    assert sorted(file.name for file in tmp_path.iterdir()) == ["index.html"]


def test_a_source_file_that_is_gone_is_said_and_its_codes_are_still_heard(
    corpus: Path, tmp_path: Path
):
    whole = report(corpus, tmp_path).tags.count("audio")
    (corpus.parent / "0.flac").unlink()  # kept: codes are stored
    (corpus.parent / "7.flac").unlink()  # rejected: nothing is left of it
    page = report(corpus, tmp_path)
    assert page.tags.count("audio") == whole - 3
    assert page.text.count("the source cannot be read: missing_audio") == 2
    assert "no codes, and no audio to encode" in page.text


def test_without_the_codec_there_are_originals_and_the_reason(done: Path, tmp_path: Path):
    page = report(done, tmp_path, "snac.weights=./nowhere")
    assert page.tags.count("audio") == 8
    assert "Originals only" in page.text
    assert "nowhere" in page.text


def test_sound_that_would_make_the_page_too_large_is_left_out(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("pipeline.report.tables.MOST_SOUND_BYTES", 60_000)
    page = report(done, tmp_path)
    assert 0 < page.tags.count("audio") < 16
    assert "left out to keep the page small" in page.text


def test_no_clips_may_be_asked_for_but_not_fewer(done: Path, tmp_path: Path):
    assert "audio" not in report(done, tmp_path, num_clips=0).tags
    with pytest.raises(ConfigError, match="-1 clips"):
        report(done, tmp_path, num_clips=-1)


def test_a_folder_that_cannot_be_written_is_named(done: Path, tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"index\.html cannot be written"):
        report(done, tmp_path / "file", num_clips=0)


def test_every_key_of_the_statistics_may_be_absent():
    whole = Page(page(content(written_stats())))
    assert len(whole.figures) == 16
    for key in written_stats():
        stats = written_stats()
        del stats[key]
        Page(page(content(stats)))
    assert not Page(page(content({}))).figures


def test_no_text_becomes_markup():
    rows = excluded(1, EVIL, source=EVIL, detail=EVIL, location=EVIL)
    found = Page(page(content(written_stats(EVIL), left_out(rows), title=EVIL, codec=EVIL)))
    assert "img" not in found.tags
    assert found.tags.count("script") == 4
    assert found.rows == [[f"{EVIL}0", EVIL, "encode", "rejected", EVIL, EVIL, EVIL]]
    for figure in found.figures:  # plotly takes a text for markup, but not what only marks a trace
        for trace in figure["data"]:
            trace.pop("meta", None)
        assert "<img" not in json.dumps(figure)


def test_excluded_records_are_balanced_over_their_reasons_and_all_are_counted():
    found = left_out(
        excluded(80), excluded(3, "rare"), excluded(60), excluded(50, "other"), most=43
    )
    reasons = [row["reason"] for row in found.shown()]
    assert {reason: reasons.count(reason) for reason in set(reasons)} == {
        "below_threshold": 20, "other": 20, "rare": 3,
    }  # fmt: skip
    assert found.counts.total() == 193
    assert found.losses({"clips"})[0] == ("encode", "rejected", "below_threshold", 140)
    assert found.losses({"elsewhere"}) == []
    text = Page(page(content(written_stats(), found))).text
    assert "43 of 193 records are shown" in text


def test_extremes_are_those_of_all_units_and_no_clip_is_shown_twice():
    scores = np.random.default_rng(0).uniform(1, 5, (10, 100))
    extremes = Extremes(2.5, 4)
    for number, unit in enumerate(scores):
        extremes.add(f"u{number}", unit)
    picked = extremes.pick()
    ordered = np.sort(scores.ravel())
    assert [place.ovrl for place in picked[BEST]] == ordered[::-1][:4].tolist()
    assert [place.ovrl for place in picked[WORST]] == ordered[:4][::-1].tolist()
    above, below = ordered[ordered > 2.5][:2], ordered[ordered <= 2.5][-2:]
    assert [p.ovrl for p in picked[BORDERLINE]] == [*above[::-1], *below[::-1]]
    assert all(scores[int(p.unit[1:]), p.row] == p.ovrl for p in picked[BEST])


def test_of_few_clips_each_kind_gets_some():
    extremes = Extremes(2.5, 6)
    extremes.add("u", np.array([1.0, 2.0, 2.4, 2.6, 3.0, 4.0]))
    picked = extremes.pick()
    assert sum(map(len, picked.values())) == 6
    assert {2.4, 2.6} <= {place.ovrl for place in picked[BORDERLINE]}
    assert min(picked[WORST]).ovrl == 1.0
    assert max(picked[BEST]).ovrl == 4.0


def test_a_tone_is_seen_at_its_pitch_and_heard_again():
    times = np.arange(2 * CODEC_HZ) / CODEC_HZ
    tone = (0.5 * np.sin(2 * np.pi * 3000 * times)).astype(np.float32)
    decibels = power(tone)
    assert decibels.shape == (BANDS, COLUMNS)
    assert abs(decibels.mean(axis=1).argmax() - 3000 / 12000 * BANDS) <= 1
    heard, rate = soundfile.read(io.BytesIO(mp3(tone)))
    assert rate == CODEC_HZ
    assert abs(len(heard) / rate - 2) < 0.15
    spectrum = np.abs(np.fft.rfft(heard))
    assert abs(spectrum.argmax() / len(heard) * rate - 3000) < 2
    assert len(picture(decibels, 0.0)) < 20_000
    assert power(np.zeros(10, np.float32)).shape == (BANDS, COLUMNS)  # shorter than a window


def test_a_png_holds_its_pixels():
    pixels = np.arange(6, dtype=np.uint8).reshape(2, 3)
    palette = np.arange(18, dtype=np.uint8).reshape(6, 3)
    data = png(pixels, palette)
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    chunks, place = {}, 8
    while place < len(data):
        (size,) = struct.unpack_from(">I", data, place)
        body = data[place + 4 : place + 8 + size]
        assert struct.unpack_from(">I", data, place + 8 + size) == (zlib.crc32(body),)
        chunks[body[:4]], place = body[4:], place + 12 + size
    assert struct.unpack(">IIBB", chunks[b"IHDR"][:10]) == (3, 2, 8, 3)
    assert zlib.decompress(chunks[b"IDAT"]) == b"\0\0\1\2\0\3\4\5"
    assert chunks[b"PLTE"] == palette.tobytes()
