"""The data report of real runs: complete, unfinished, and with something missing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from koe.errors import ConfigError, StorageError
from tests.corpus import write_corpus
from tests.reports import report, run_to
from tests.webpage import Page, check_accessible, check_loads_nothing

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_corpus(tmp_path_factory.mktemp("corpus"))
    run_to(path, "interleave")
    return path


@pytest.fixture
def corpus(done: Path, tmp_path: Path) -> Iterator[Path]:
    """A run whose source files may be removed: they come back."""
    kept = shutil.copytree(done.parent, tmp_path / "kept")
    yield done
    shutil.copytree(kept, done.parent, dirs_exist_ok=True)


@pytest.fixture(scope="module")
def complete(done: Path, tmp_path_factory: pytest.TempPathFactory) -> Page:
    """The report of a run in which all is well."""
    return report(done, tmp_path_factory.mktemp("report") / "new" / "folder")


def test_a_run_is_shown_with_its_sound_and_what_it_left_out(complete: Page):
    assert complete.tags.count("audio") == 16  # 8 clips were scored: original and reconstruction
    assert "rejected below_threshold: ovrl" in complete.text
    quarantined = sorted(
        row[4] for row in complete.data["left-out"]["records"] if row[3] == "quarantined"
    )
    assert quarantined == [
        "all_zero_audio", "broken_json", "empty_audio", "missing_answer", "missing_transcript",
    ]  # fmt: skip
    assert "UNTRAINED: its reconstructions are noise" in complete.text
    assert "record counts add up" in complete.text
    shapes = [
        f["layout"]["shapes"][0]["x0"]
        for f in complete.figures.values()
        if f["layout"].get("shapes")
    ]
    assert 1.3 in shapes  # the threshold


def test_the_page_is_for_everyone(complete: Page):
    check_accessible(complete)


def test_the_page_loads_nothing(done: Path, tmp_path: Path):
    page = report(done, tmp_path, num_clips=1)
    check_loads_nothing(page)
    assert page.tags.count("script") == 4
    assert [file.name for file in tmp_path.iterdir()] == ["index.html"]
    assert (tmp_path / "index.html").stat().st_size < 15e6


def test_a_missing_source_file_is_reported_and_its_codes_are_still_decoded(
    corpus: Path, tmp_path: Path, complete: Page
):
    (corpus.parent / "0.flac").unlink()  # kept: codes are stored
    (corpus.parent / "7.flac").unlink()  # rejected: nothing is left of it
    page = report(corpus, tmp_path)
    assert page.tags.count("audio") == complete.tags.count("audio") - 3
    assert page.text.count("the source cannot be read: missing_audio") == 2
    assert "no codes, and no audio to encode" in page.text


def test_the_page_is_made_when_all_sources_are_gone(corpus: Path, tmp_path: Path, complete: Page):
    for file in corpus.parent.glob("*.flac"):
        file.unlink()
    page = report(corpus, tmp_path)
    assert page.text.count("the source cannot be read: missing_audio") == 8
    assert page.tags.count("audio") == 7  # of the clips that were encoded
    assert page.figures == complete.figures


def test_without_the_codec_there_are_originals_and_the_reason(done: Path, tmp_path: Path):
    page = report(done, tmp_path, "snac.weights=./nowhere")
    assert page.tags.count("audio") == 8
    assert "Originals only" in page.text
    assert "nowhere" in page.text
    assert "No reconstruction no codec" in page.text


def test_another_codec_does_not_decode_the_runs_codes(done: Path, tmp_path: Path):
    page = report(done, tmp_path, "snac.seed=1")
    assert page.tags.count("audio") == 8
    assert "the run was encoded by UNTRAINED (seed 0), but snac.weights is UNTRAINED (seed 1)" in (
        page.text
    )
    assert "Set snac.weights and snac.seed to those of the run" in page.text


def test_sound_that_would_make_the_page_too_large_is_left_out(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("pipeline.report.clips.MAX_SOUND_BYTES", 60_000)
    page = report(done, tmp_path)
    assert 0 < page.tags.count("audio") < 16
    assert "left out to keep the page small" in page.text


def test_no_clips_may_be_asked_for_but_not_fewer(done: Path, tmp_path: Path):
    page = report(done, tmp_path, num_clips=0)
    assert "audio" not in page.tags
    assert "No clip has been scored yet, or none was asked for" in page.text
    with pytest.raises(ConfigError, match="-1 clips"):
        report(done, tmp_path, num_clips=-1)


def test_a_folder_that_cannot_be_written_is_named(done: Path, tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"file is a file\. Name a folder"):
        report(done, tmp_path / "file", num_clips=0)
    with pytest.raises(StorageError, match=r"file/report.*cannot be"):
        report(done, tmp_path / "file/report", num_clips=0)


def test_before_anything_is_scored_the_page_shows_what_came_in(tmp_path: Path):
    path = write_corpus(tmp_path)
    run_to(path, "ingest")
    page = report(path, tmp_path / "report")
    assert page.tiles["Clips in"] == "12"
    assert page.tiles["Clips kept"] == "0"
    assert "75.0% not done yet" in page.text
    assert "No clip has been scored yet" in page.text
    sections = [e.named["id"] for e in page.elements if e.tag == "section"]
    assert sections == ["flow", "sources", "lengths", "transcripts", "clips", "left-out-records"]
    check_accessible(page)


def test_a_run_of_text_only_shows_no_speech(tmp_path: Path):
    path = write_corpus(tmp_path)
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    del settings["sources"]["speech"]
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    run_to(path, "interleave")
    page = report(path, tmp_path / "report")
    assert "Clips in" not in page.tiles
    assert page.tiles["Samples kept"] == "39"
    assert "0.0% speech" in page.text
    sections = [e.named["id"] for e in page.elements if e.tag == "section"]
    assert sections == ["flow", "sources", "lengths", "mix", "left-out-records", "shards"]
    check_accessible(page)
