"""Where the benchmarks find their recordings, and what they say when there are none."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from benchmarks import dnsmos, snac, stability
from benchmarks.clips import PACKAGED, clip_lengths, real_clips, recordings
from benchmarks.results import run_command
from tests.real_data import DATA


def test_the_demos_recordings_are_the_default(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["benchmark"])
    assert dnsmos._options().data == snac._options().data == PACKAGED
    assert len(recordings(PACKAGED)) == 150


def test_recordings_of_any_format_are_found_in_subfolders():
    assert {path.suffix for path in recordings(DATA)} == {".flac", ".mp3", ".opus", ".wav"}


def test_clips_have_the_drawn_lengths_and_are_the_same_every_time():
    clips, again = (real_clips(4, 16_000, DATA / "utterances") for _ in range(2))
    assert [len(clip) for clip in clips] == [int(n * 16_000) for n in clip_lengths(4)]
    for clip, other in zip(clips, again, strict=True):
        np.testing.assert_array_equal(clip, other)
        assert 0.01 < np.abs(clip).max() <= 1


@pytest.mark.parametrize(
    ("command", "arguments"),
    [(dnsmos.main, []), (snac.main, []), (stability.main, ["run", "--work", "work"])],
    ids=["dnsmos", "snac", "stability"],
)
def test_an_absent_folder_is_a_message_with_a_remedy(
    command, arguments, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    absent = str(tmp_path / "absent")
    monkeypatch.setattr(sys, "argv", ["benchmark", *arguments, "--data", absent])
    with pytest.raises(SystemExit) as exit_:
        run_command(command)
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: there are no")
    assert absent in error
    assert "--data" in error


def test_too_few_recordings_are_a_message(tmp_path, monkeypatch, capsys):
    arguments = ["--clips", "100", "--data", str(DATA / "utterances")]
    monkeypatch.setattr(sys, "argv", ["benchmark", *arguments])
    with pytest.raises(SystemExit) as exit_:
        run_command(snac.main)
    assert exit_.value.code == 2
    assert "holds 12 recordings" in capsys.readouterr().err
