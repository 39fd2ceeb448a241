"""What evaluation speaks: prompts of the validation split, and files of what was said."""

import json

import numpy as np
import pyarrow as pa
import pytest
import soundfile
from pyarrow import ipc
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from koe.errors import StorageError
from koe.schema import ROW
from koe.vocabulary import (
    CODEC_HZ,
    END_OF_SPEECH,
    FRAME_SAMPLES,
    SLOTS,
    speech_ids,
    split_speech_ids,
)
from tests.training.shards import write_shards
from tests.training.speaking import ALONE, PROMPT, config_for, settings, whole
from training.data.shard_rows import ShardRows
from training.generation import Prompt, SampleGenerator, Speech, validation_prompts
from training.model.llama import build_model
from training.samples import speak, write_samples


def test_prompts_come_from_whole_speech_documents(tmp_path):
    shards = write_shards(tmp_path, row_tokens=240, num_documents=6, seed=1)
    rows = ShardRows(shards, "validation")
    documents = {}
    for number in range(len(rows)):
        row, start = rows[number], 0
        for place, length in enumerate(row.document_lengths.tolist()):
            if row.document_modalities[place] == "speech":
                documents[row.document_ids[place]] = row.input_ids[start : start + length]
            start += length
    assert len(documents) > 3
    found = validation_prompts(rows, 100)
    assert [prompt.name for prompt in found] == list(documents)
    for prompt in found:
        text_ids, codes = split_speech_ids(documents[prompt.name])
        assert list(prompt.ids) == speech_ids(text_ids, codes)[: len(prompt.ids)].tolist()
        assert len(documents[prompt.name]) == len(prompt.ids) + len(codes) + 2
    assert validation_prompts(rows, 2) == found[:2]
    assert validation_prompts(rows, 0) == []


def test_parts_and_repeated_documents_are_passed_over(tmp_path):
    shards = write_shards(tmp_path, row_tokens=240, num_documents=6, seed=1)
    path = shards / "validation-00000.arrow"
    rows = ipc.open_file(str(path)).read_all().to_pylist()
    speech = [
        (row, place)
        for row in rows
        for place, kind in enumerate(row["document_modalities"])
        if kind == "speech"
    ]
    (first, at), (second, part), (third, twin) = speech[:3]
    second["document_parts"][part] = 1
    third["document_ids"][twin] = first["document_ids"][at]
    with ipc.new_file(str(path), ROW) as writer:
        writer.write_table(pa.Table.from_pylist(rows, schema=ROW))
    names = [prompt.name for prompt in validation_prompts(ShardRows(shards, "validation"), 100)]
    assert len(names) == len(speech) - 2 == len(set(names))
    assert second["document_ids"][part] not in names


class Tone:
    """A decoder whose audio tells which codes it was given."""

    label = "tone"

    def __call__(self, flat_codes):
        audio = np.full(len(flat_codes) // SLOTS * FRAME_SAMPLES, 0.5, np.float32)
        audio[0], audio[1] = flat_codes[0] / 4096, 3.0  # out of range: must be clipped, not wrap
        return audio


TONE = SampleGenerator(decoder=Tone())


def test_samples_are_written_with_their_audio(tmp_path):
    speeches = [
        Speech(PROMPT, [*whole(2), END_OF_SPEECH]),
        Speech(Prompt("silent", (1,)), [5, 6, 7]),
        Speech(Prompt("broken", (2,)), [*whole(1), 5]),
    ]
    with SummaryWriter(str(tmp_path / "board")) as board:
        summary = write_samples(tmp_path, 500, speeches, TONE, board)
    assert summary == {
        "step": 500,
        "codec": "tone",
        "prompts": 3,
        "frames": 5,
        "valid_share": 3 / 5,
        "ended_share": 1 / 3,
        "folder": "samples/step-00000500",
    }
    folder = tmp_path / summary["folder"]
    assert sorted(path.name for path in folder.iterdir()) == ["00.wav", "02.wav", "samples.json"]
    audio, hz = soundfile.read(folder / "00.wav", dtype="float32")
    assert hz == CODEC_HZ
    assert audio.shape == (2 * FRAME_SAMPLES,)
    assert audio[1] == pytest.approx(1.0, abs=1e-3)
    assert audio[2] == pytest.approx(0.5, abs=1e-3)
    stored = json.loads((folder / "samples.json").read_text())
    assert {key: stored[key] for key in summary} == summary
    assert [sample["prompt"]["name"] for sample in stored["samples"]] == [
        "by rote",
        "silent",
        "broken",
    ]
    assert [sample["wav"] for sample in stored["samples"]] == ["00.wav", None, "02.wav"]
    assert stored["samples"][0]["ids"] == speeches[0].ids
    assert stored["samples"][1]["grammar"] == {
        "frames": 1, "valid_frames": 0, "valid_share": 0.0, "ended": False,
    }  # fmt: skip
    events = EventAccumulator(str(tmp_path / "board"))
    events.Reload()
    assert events.Tags()["audio"] == ["samples/00", "samples/02"]
    assert events.Audio("samples/00")[0].sample_rate == CODEC_HZ
    for name in ("valid_share", "ended_share"):
        (event,) = events.Scalars(f"samples/{name}")
        assert (event.step, event.value) == (500, pytest.approx(summary[name]))


def test_a_step_taken_again_replaces_its_samples(tmp_path):
    write_samples(tmp_path, 7, [Speech(PROMPT, whole(1))] * 2, TONE, None)
    summary = write_samples(tmp_path, 7, [Speech(PROMPT, [])], SampleGenerator(), None)
    assert (summary["codec"], summary["valid_share"]) == (None, 0.0)
    folder = tmp_path / "samples" / "step-00000007"
    assert [path.name for path in folder.iterdir()] == ["samples.json"]


def test_samples_that_cannot_be_written_are_a_storage_error(tmp_path):
    (tmp_path / "samples").write_text("")
    with pytest.raises(StorageError, match=r"samples .*cannot be written"):
        write_samples(tmp_path, 1, [Speech(PROMPT, whole(1))], TONE, None)


def test_speaking_joins_both_kinds_of_prompts(tmp_path):
    model = build_model(config_for()).train()
    rows = ShardRows(write_shards(tmp_path / "shards", row_tokens=80), "validation")
    config = config_for(evaluation=settings(prompts=1, max_frames=1))
    summary = speak(
        model, rows, ALONE, config, SampleGenerator((PROMPT,), Tone()), tmp_path, 4, None
    )
    assert summary is not None
    stored = json.loads((tmp_path / summary["folder"] / "samples.json").read_text())
    names = [validation_prompts(rows, 1)[0].name, "by rote"]
    assert [sample["prompt"]["name"] for sample in stored["samples"]] == names
    silent = config_for(evaluation=settings(prompts=0))
    assert speak(model, rows, ALONE, silent, None, tmp_path, 5, None) is None
    assert not (tmp_path / "samples" / "step-00000005").exists()
