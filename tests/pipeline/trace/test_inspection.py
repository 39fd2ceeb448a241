"""What `koe inspect` reads of shards: by name, path and URL; documents and their turns."""

from __future__ import annotations

import numpy as np
import pytest

from koe.errors import ConfigError
from koe.schema import TEXT
from pipeline.terminal.trace import documents_view
from pipeline.trace.document import (
    Document,
    document_json,
    documents_of,
    find_shard,
    split_place,
    turns,
)
from tests.written_run import CODES, KINDS, SPOKEN, WRITTEN, run_dir_of, shown, spelled, write_run


@pytest.fixture(params=KINDS)
def root(request, tmp_path) -> str:
    return run_dir_of(request.param, tmp_path)


@pytest.mark.parametrize(
    ("argument", "place"),
    [
        ("train-00000", ("train-00000", 0)),
        ("train-00000:12", ("train-00000", 12)),
        ("train-00000.arrow:3", ("train-00000.arrow", 3)),
        ("/data/run/shards/x.arrow:3", ("/data/run/shards/x.arrow", 3)),
        ("memory://run/shards/x.arrow", ("memory://run/shards/x.arrow", 0)),
        ("memory://run/shards/x.arrow:7", ("memory://run/shards/x.arrow", 7)),
        ("tar/speech-000/koe-00113", ("tar/speech-000/koe-00113", 0)),
        ("folder/a.wav:3", ("folder/a.wav", 3)),
        ("train-00000:x", ("train-00000:x", 0)),
    ],
)
def test_a_row_is_a_number_behind_the_last_colon(argument, place):
    assert split_place(argument) == place


@pytest.mark.parametrize("name", ["train-00000:x", "train-00000:", "train-00000:-1"])
def test_what_can_be_no_record_must_be_a_shard(name, tmp_path):
    with pytest.raises(ConfigError, match="Write SHARD:ROW"):
        find_shard(name, str(tmp_path))


@pytest.mark.parametrize("name", ["a/train-00001.arrow", "a/0", "elsewhere/shards/x.arrow"])
def test_a_name_with_a_slash_may_be_the_id_of_a_record(name, tmp_path):
    write_run(str(tmp_path))
    assert find_shard(name, str(tmp_path)) is None


def test_a_shard_is_found_by_name_path_and_url(root):
    write_run(root)
    for name, run_dir in (
        ("train-00001", root),
        ("shards/train-00001.arrow", root),
        ("train-00001.arrow", root),
        (f"{root}/shards/train-00001.arrow", f"{root}/elsewhere"),
    ):
        shard = find_shard(name, run_dir)
        assert shard is not None
        first, second = documents_of(shard, 1)
        assert (first.id, second.id, second.part) == ("a/1", "t/1", 1)
        np.testing.assert_array_equal(first.codes, CODES)
        assert first.clip is not None
        assert first.clip["text"] == "text of a/1"
        assert second.clip is None
        with pytest.raises(ConfigError, match=r"no row 2.*0\.\.1"):
            documents_of(shard, 2)
    with pytest.raises(ConfigError, match=r"no shard train-9.*train-00001\.arrow"):
        find_shard("train-9", root)


def test_a_copied_shard_traces_its_clips_in_the_run(tmp_path):
    ledger = write_run(str(tmp_path / "run"))
    copy = tmp_path / "copy.arrow"
    copy.write_bytes(ledger.storage.read_bytes("shards/train-00001.arrow"))
    shard = find_shard(str(copy), str(tmp_path / "run"))
    assert shard is not None
    (first, _) = documents_of(shard, 1)
    assert first.clip is not None
    assert first.clip["audio_path"] == "/audio/a/1.wav"
    with pytest.raises(ConfigError, match="is not a shard because it has no column input_ids"):
        find_shard(str(tmp_path / "run/encode/a0.arrow"), str(tmp_path / "run"))


def test_turns_have_their_speakers_in_later_parts_too():
    assert turns(WRITTEN) == [
        ("user", [1, 2]), ("assistant", [3]), ("user", [4]), ("assistant", [5]),
    ]  # fmt: skip
    answer = int(np.flatnonzero(WRITTEN == 3)[0])
    assert turns(WRITTEN[answer:])[:2] == [("assistant", [3]), ("user", [4])]
    assert turns(np.array([7, 8])) == [("", [7, 8])]
    assert turns(SPOKEN) == [("user", [5, 6])]


def test_documents_as_json_and_as_panels_without_a_blank_line(tmp_path):
    write_run(str(tmp_path))
    shard = find_shard("train-00001", str(tmp_path))
    assert shard is not None
    speech, text = documents_of(shard, 1)
    found = document_json(speech, spelled, raw=True)
    assert (found["tokens"], found["frames"], found["text"]) == (len(SPOKEN), 2, "5 6")
    assert found["clip"]["ovrl"] == 3.5
    assert found["ids"][0] == "<start_of_human>"
    whole = Document("t/0", "t", TEXT, "t", 0, WRITTEN, None, None)
    assert document_json(whole, spelled, raw=False)["turns"] == [
        {"role": "user", "text": "1 2"}, {"role": "assistant", "text": "3"},
        {"role": "user", "text": "4"}, {"role": "assistant", "text": "5"},
    ]  # fmt: skip
    view = shown(documents_view([speech, text, whole], lambda ids: spelled(ids) + "\n", raw=False))
    assert "\x1b" not in view
    lines = [" ".join(line.strip("│ ╭╰─╮╯\n").split()) for line in view.splitlines()]
    assert lines.count("") == 3  # the lower borders
    assert "transcript 5 6" in lines
    assert "user 1 2" in lines
    assert "assistant 3" in lines
