"""What planning finds in a tar is kept for the workers, and what it lists is not sent to them."""

from __future__ import annotations

import pickle

import fsspec
import pytest

from stages.sources.readers import speech_source
from stages.sources.settings import SpeechSourceConfig
from stages.sources.tars import member_index as tar_index
from tests.stages.sources.lhotse_sets import dialogues, write_shar
from tests.stages.sources.nemo_sets import write_tarred
from tests.stages.sources.nemo_source import recordings


@pytest.fixture(autouse=True)
def forget():
    tar_index._index_tar.cache_clear()


@pytest.fixture(params=["nemo_tarred", "shar"])
def source_in(request, tmp_path):
    """Write a set, and return what opens it anew with a folder for what is kept."""
    if request.param == "shar":
        write_shar(dialogues(tmp_path), tmp_path / "set")
        paths = f"{tmp_path}/set/cuts.*.jsonl.gz"
    else:
        write_tarred(tmp_path / "set", recordings(tmp_path))
        paths = f"{tmp_path}/set/sharded_manifests/*.json"
    config = SpeechSourceConfig(name="s", kind=request.param, paths=[paths])
    return lambda folder: speech_source(config, 3, folder)


def records(source, units):
    return [record for unit in units for record in source.records_of(unit)]


@pytest.mark.parametrize("url", ["", "memory://tar-index"])
def test_workers_look_at_no_header_that_planning_has_seen(tmp_path, source_in, monkeypatch, url):
    folder = url or str(tmp_path / "index")
    units = list(source_in(folder).units())
    expected = records(source_in(""), units)
    assert all(record.audio for record in expected)
    tar_index._index_tar.cache_clear()
    monkeypatch.setattr(tar_index, "read_members", None)
    assert records(source_in(folder), units) == expected
    if url:
        fsspec.filesystem("memory").rm("/tar-index", recursive=True)


def test_what_was_kept_and_is_broken_or_of_another_tar_is_not_believed(tmp_path, source_in):
    folder = tmp_path / "index"
    units = list(source_in(str(folder)).units())
    expected = records(source_in(""), units)
    for number, path in enumerate(sorted(folder.glob("*.members"))):
        path.write_bytes(path.read_bytes()[:20] if number else b"")
    tar_index._index_tar.cache_clear()
    assert records(source_in(str(folder)), units) == expected
    for tar in (tmp_path / "set").glob("*.tar"):
        tar.write_bytes(tar.read_bytes()[:1024] + bytes(2048))  # another stamp
    tar_index._index_tar.cache_clear()
    found = records(source_in(str(folder)), list(source_in(str(folder)).units()))
    assert {record.bad.reason if record.bad else "" for record in found} != {""}


def test_a_source_takes_nothing_along_to_other_processes(source_in):
    source = source_in("")
    before = pickle.dumps(source)
    units = list(source.units())
    assert pickle.dumps(source) == before
    assert records(pickle.loads(before), units) == records(source, units)


LISTING = {
    "NemoTarredSource": ("_found", "_manifests", "_tars", "files"),
    "SharSource": ("_shards", "files"),
}


def test_planning_in_another_process_lists_no_folder(source_in, monkeypatch):
    files = source_in("").files()
    expected = [list(source_in("").all_slices(file)) for file in files]
    other = pickle.loads(pickle.dumps(source_in("")))
    for name in LISTING[type(other).__name__]:
        monkeypatch.setattr(type(other), name, None)
    assert [list(other.all_slices(file)) for file in files] == expected
