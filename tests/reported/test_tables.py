"""Tables that other readers merged, misread or refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from koe.errors import ConfigError
from koe.schema import unit_table
from stages.ingest import IngestStage
from stages.sources.checks.first_records import check_first_records
from stages.sources.readers import speech_source
from stages.sources.settings import SpeechSourceConfig
from tests.real_data import REPORTS, WORDS
from tests.stages.records import reason, same_for_all_sizes


def words(folder: Path, *names: str) -> None:
    """Put words under these names into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, word in zip(names, sorted(WORDS.glob("*.mp3")), strict=False):
        shutil.copy(word, folder / name)


def ingest(path: Path, **settings: object):
    """Return the clips and the refused records of a table, which is one unit."""
    config = {"name": "s", "kind": "folder", "paths": [str(path)], **settings}
    source = speech_source(SpeechSourceConfig.model_validate(config), 1000)
    (unit,) = source.units()
    outcome = IngestStage((source,)).open()(unit_table([unit]))
    assert outcome.num_records() == unit.records
    return outcome.kept.to_pylist(), outcome.quarantined.to_pylist()


def table(tmp_path: Path, name: str) -> Path:
    return Path(shutil.copy(REPORTS / name, tmp_path))


@pytest.mark.parametrize("by_name", [True, False])
def test_a_tab_separated_file_has_no_quoting(tmp_path, by_name):
    words(tmp_path / "clips", *(f"w{n}.mp3" for n in range(8)))
    names = {"audio": "path", "text": "sentence", "speaker": "client_id"}
    settings = {"fields": names, "audio_root": f"{tmp_path}/clips"}
    path = table(tmp_path, "X/cv.tsv")
    kept, refused = ingest(path, **({"layout": "common_voice"} if by_name else settings))
    assert refused == []
    assert [clip["text"] for clip in kept] == [
        "普通の文0です。",
        '"はい、行きます。',
        *(f"普通の文{n}です。" for n in range(2, 6)),
        'もう帰ります。"',
        "普通の文7です。",
    ]
    assert [clip["speaker"] for clip in kept] == [f"c{n}" for n in range(8)]
    assert all(clip["seconds"] > 0.2 for clip in kept)


def test_quotes_of_common_voice_stand_as_they_are(tmp_path):
    words(tmp_path / "clips", *(f"c{n}.mp3" for n in range(5)))
    table(tmp_path, "E/e05_cv_quotes/validated.tsv")
    kept, refused = ingest(tmp_path, layout="common_voice")
    assert refused == []
    assert [clip["text"] for clip in kept] == [
        '"もう、出発の時間ですか？"と妹は眠そうに尋ねた。',
        '"全部括弧"',
        "ふつう",
        '"開いたまま',
        'おわり"',
    ]


def test_a_file_list_with_speakers_is_refused_until_its_layout_is_named(tmp_path):
    words(tmp_path / "wavs", "w0.wav", "w1.wav", "w2.wav")
    path = table(tmp_path, "E/e02_vits_sid/train.txt")
    with pytest.raises(ConfigError) as caught:
        ingest(path)
    assert "'wavs/w0.wav|0|一つ'" in str(caught.value)
    assert "vits_speaker: file_name|speaker|text" in str(caught.value)
    with pytest.raises(ConfigError, match=r"its first 3 rows.*3 cells for 2 columns.*vits_speaker"):
        ingest(path, layout="vits")
    kept, refused = ingest(path, layout="vits_speaker")
    assert refused == []
    assert [(clip["text"], clip["speaker"]) for clip in kept] == [
        ("一つ", "0"),
        ("二つ", "1"),
        ("三つ", "1"),
    ]


def test_speakers_in_the_place_of_texts_are_pointed_out(tmp_path):
    words(tmp_path / "wavs", "w0.wav", "w1.wav", "w2.wav")
    path = table(tmp_path, "E/e02_vits_sid/train.txt")
    lines = [line.split("|") for line in path.read_text("utf-8").splitlines()]
    path.write_text("".join(f"{wav}|{text}|{speaker}\n" for wav, speaker, text in lines), "utf-8")
    config = {"name": "s", "kind": "folder", "paths": [str(path)], "layout": "vits_speaker"}
    source = speech_source(SpeechSourceConfig.model_validate(config), 1000)
    note = "no transcript has a letter (`0`, `1`, `1`): is fields.text right, or the layout?"
    assert check_first_records(source, list(source.units())) == {note: 3}


@pytest.mark.parametrize("rest", ["\n", "\r", "\r\n"])
def test_a_header_that_ends_with_a_carriage_return_alone(tmp_path, rest):
    words(tmp_path, "w0.mp3", "w1.mp3")
    text = f"file_name,text\rw0.mp3,一つ{rest}w1.mp3,二つ{rest}"
    (tmp_path / "metadata.csv").write_bytes(text.encode())
    kept, refused = ingest(tmp_path)
    assert refused == []
    assert [clip["text"] for clip in kept] == ["一つ", "二つ"]


def test_a_comma_separated_file_with_an_unpaired_quote(tmp_path):
    """X/cv.tsv as a program would save it with commas: the quotes are as broken, the rows as many."""
    lines = (REPORTS / "X/cv.tsv").read_text("utf-8").splitlines()
    path = tmp_path / "cv.csv"
    path.write_text("\n".join(line.replace("\t", ",") for line in lines), encoding="utf-8")
    records = same_for_all_sizes(
        kind="folder", paths=[str(path)], fields={"audio": "path", "text": "sentence"}
    )
    assert [reason(record) for record in records] == ["", "broken_row", *[""] * 6]
    assert records[6].fields["sentence"] == 'もう帰ります。"'


def test_a_path_that_is_named_twice_and_one_without_audio_are_quarantined(tmp_path):
    words(tmp_path / "wavs", "w0.wav", "w1.wav")
    (tmp_path / "train.txt").write_text(
        "wavs/w0.wav|一つ\nwavs/w1.wav|二つ\nwavs/w0.wav|一つ\npath|text\nwavs\\w1.wav|三つ\nwavs/w1.wav|\n"
    )
    kept, refused = ingest(tmp_path / "train.txt", layout="vits")
    assert [clip["text"] for clip in kept] == ["一つ", "二つ"]
    assert [row["reason"] for row in refused] == [
        "duplicate_id",
        "missing_audio",
        "duplicate_id",
        "duplicate_id",
    ]
