"""Headers read in one step are those that tarfile reads; planning in parallel changes nothing."""

import io
import tarfile

import numpy as np
import pytest

from stages.sources import planning
from stages.sources.readers import speech_source
from stages.sources.settings import SpeechSourceConfig
from stages.sources.tars import members as tar_members
from tests.stages.audio_files import sample, write_tar

STYLES = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)


def archive(style):
    buffer = io.BytesIO()
    names = ["a/1.json", "a/1.flac", "b" * 90 + "/" + "c" * 60 + ".wav", "d/", "/e.wav", "../f.wav"]
    with tarfile.open(fileobj=buffer, mode="w", format=style) as tar:
        for number, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size, info.mtime = 700 * number, number * 10**8
            info.uname = "user" * (number % 2)
            tar.addfile(info, io.BytesIO(bytes(info.size)))
    return buffer.getvalue()


def members(data, monkeypatch, tarfile_only):
    """All members and gaps."""
    with monkeypatch.context() as patch:
        if tarfile_only:
            patch.setattr(tar_members, "plain_member", lambda header, place: None)
        return list(tar_members.read_members(io.BytesIO(data), 0))


@pytest.mark.parametrize("style", STYLES)
def test_most_headers_are_read_in_one_step_and_as_tarfile_reads_them(style, monkeypatch):
    data = archive(style)
    asked = members(data, monkeypatch, tarfile_only=True)
    assert len(asked) >= 5
    assert members(data, monkeypatch, tarfile_only=False) == asked
    quick = tar_members.plain_member(data[:512], 0)
    assert quick == asked[0]


def test_damaged_headers_are_read_as_tarfile_reads_them(monkeypatch):
    """Any byte of a header may be anything, with a checksum that fits or does not."""
    rng = np.random.default_rng(0)
    whole = {style: archive(style) for style in STYLES}
    for trial in range(600):
        data = bytearray(whole[STYLES[trial % 3]])
        for place in rng.integers(0, 512, rng.integers(1, 4)).tolist():
            data[place] = int(rng.choice([0, 32, 47, 48, 55, 56, 95, 128, 255, data[place] ^ 1]))
        if trial % 2:
            data[148:156] = b" " * 8
            data[148:156] = b"%06o\0 " % sum(data[:512])
        asked = members(bytes(data), monkeypatch, tarfile_only=True)
        assert members(bytes(data), monkeypatch, tarfile_only=False) == asked


def test_global_headers_rename_no_member(tmp_path, monkeypatch):
    """A unit that begins behind them could not know of them."""
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT, pax_headers={"path": "x/1.wav"}) as tar:
        tar.addfile(tarfile.TarInfo("y.wav"))
    data = path.read_bytes()
    (member,) = members(data, monkeypatch, tarfile_only=False)
    assert member.name == "y.wav"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["webdataset", "manifest"])
def test_files_scanned_by_several_processes_give_the_same_units(tmp_path, monkeypatch, kind):
    for number in range(7):
        write_tar(tmp_path / f"{number}.tar", [m for k in range(number) for m in sample(f"{k}")])
        lines = "".join(f'{{"audio_filepath": "{k}.wav"}}\n' for k in range(number))
        (tmp_path / f"{number}.jsonl").write_text(lines)
    (tmp_path / "5.tar").write_bytes((tmp_path / "5.tar").read_bytes()[:2000])
    suffix = "tar" if kind == "webdataset" else "jsonl"
    source = speech_source(
        SpeechSourceConfig(name="s", kind=kind, paths=[f"{tmp_path}/*.{suffix}"]), 2
    )
    alone = list(source.units())
    monkeypatch.setattr(planning, "_ALONE_SECONDS", 0.0)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1})
    scanned = []
    assert list(source.units(lambda path, stamp: scanned.append(path))) == alone
    assert scanned == sorted(scanned)
    assert len(scanned) == 7
    known = {unit.path: unit for unit in alone[:1]}
    again = source.units(lambda path, stamp: [known[path]] if path in known else None)
    assert list(again) == alone
