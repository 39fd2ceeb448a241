import json

import numpy as np
import pyarrow as pa
import pytest
import soundfile
import torch
from pyarrow import ipc
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from pipeline.errors import ConfigError, StorageError
from pipeline.schema import ROW
from pipeline.vocabulary import (
    CODEC_HZ,
    END_OF_AI,
    END_OF_SPEECH,
    FRAME_SAMPLES,
    SLOTS,
    START_OF_HUMAN,
    START_OF_SPEECH,
    audio_ids,
    speech_ids,
    split_speech_ids,
)
from tests.training.shards import write_shards
from training.config import EvaluationConfig, TinyModelConfig, TrainConfig
from training.data import ShardRows
from training.distributed import single
from training.generation import (
    REPETITION_PENALTY,
    Grammar,
    Prompt,
    Speaking,
    Speech,
    generate,
    grammar,
    speak,
    valid_codes,
    validation_prompts,
    write_samples,
)
from training.model import build_model

ALONE = single("cpu")
CODES = np.random.default_rng(0).integers(0, 4096, 2 * SLOTS).astype(np.uint16)
DOCUMENT = speech_ids([11, 22, 33], CODES)
PROMPT = Prompt("by rote", tuple(DOCUMENT[: -2 * SLOTS - 2].tolist()))


def config_for(**changes) -> TrainConfig:
    tiny = TinyModelConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=1)
    return TrainConfig(device="cpu", base_model=None, precision="fp32", tiny=tiny, **changes)


def settings(**changes) -> EvaluationConfig:
    return EvaluationConfig(**{"max_frames": 3, "temperature": 0, **changes})


@pytest.fixture(scope="module")
def model():
    return build_model(config_for()).train()


@pytest.fixture(scope="module")
def rote():
    """Make a model that says of each token which one follows it in DOCUMENT, and nothing else."""
    model = build_model(config_for())
    chain = torch.from_numpy(DOCUMENT[len(PROMPT.ids) - 1 : -1].astype(np.int64))
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        known = torch.nn.functional.normalize(model.model.embed_tokens.weight[chain[:-1]])
        model.lm_head.weight = torch.nn.Parameter(torch.zeros_like(model.lm_head.weight))
        model.lm_head.weight[chain[1:]] = known
    return model


def spoken_without_cache(model, prompt, num_tokens):
    """Take the likeliest token again and again, each time from a pass over everything."""
    ids = list(prompt.ids)
    for _ in range(num_tokens):
        with torch.no_grad():
            scores = model(input_ids=torch.tensor([ids])).logits[0, -1]
        seen = torch.tensor(sorted(set(ids)))
        penalised = scores[seen]
        scores[seen] = torch.where(
            penalised < 0, penalised * REPETITION_PENALTY, penalised / REPETITION_PENALTY
        )
        ids.append(int(scores.argmax()))
        if ids[-1] == END_OF_SPEECH:
            break
    return ids[len(prompt.ids) :]


def test_prompts_of_unequal_length_are_spoken_as_each_alone(model, rote):
    prompts = [
        PROMPT,
        Prompt("longer", (START_OF_HUMAN, 128000, *range(40, 60), START_OF_SPEECH)),
        Prompt("short", (START_OF_HUMAN, START_OF_SPEECH)),
    ]
    for chosen in (model, rote):
        found = generate(chosen, prompts, settings(), 0, ALONE)
        assert [speech.prompt for speech in found] == prompts
        for speech in found:
            assert speech.ids == spoken_without_cache(chosen, speech.prompt, 3 * SLOTS)


def test_what_is_known_by_rote_is_spoken_and_ends(rote):
    (found,) = generate(rote, [PROMPT], settings(), 0, ALONE)
    assert found.ids == [*audio_ids(CODES).tolist(), END_OF_SPEECH]
    assert grammar(found.ids) == Grammar(2, 2, 1.0, True)
    assert np.array_equal(valid_codes(found.ids), CODES)
    (cut,) = generate(rote, [PROMPT], settings(max_frames=1), 0, ALONE)
    assert cut.ids == found.ids[:SLOTS]
    assert not grammar(cut.ids).ended


def test_speech_is_a_function_of_the_seed(model):
    prompts = [PROMPT, Prompt("other", PROMPT.ids[2:])]
    warm = settings(temperature=1.0, top_p=1.0, max_frames=1)
    first, again, other = (
        [speech.ids for speech in generate(model, prompts, warm, seed, ALONE)] for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other
    assert first[0] != first[1]


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_training_does_not_notice(model, temperature):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state, saved = torch.get_rng_state(), model.config.to_dict()
    attention = model.config._attn_implementation
    generate(model, [PROMPT], settings(temperature=temperature, max_frames=1), 5, ALONE)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    assert model.config.to_dict() == saved
    assert model.config.use_cache is False
    assert model.config._attn_implementation == attention
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # dynamo's own
def test_nothing_is_compiled_to_speak():
    compiled = []

    def count(graph, _):
        compiled.append(graph)
        return graph.forward

    model = build_model(config_for()).train()
    expected = generate(model, [PROMPT], settings(), 0, ALONE)
    for layer in model.model.layers:
        layer.compile(backend=count)
    model(input_ids=torch.arange(8).view(1, -1))
    assert len(compiled) == 1
    assert generate(model, [PROMPT], settings(), 0, ALONE) == expected
    model(input_ids=torch.arange(8).view(1, -1))
    assert len(compiled) == 1


def test_a_base_models_own_sampling_does_not_count(model):
    (expected,) = generate(model, [PROMPT], settings(max_frames=1), 0, ALONE)
    own = model.generation_config
    own.do_sample, own.temperature, own.top_p = True, 5.0, 0.5
    own.no_repeat_ngram_size, own.eos_token_id = 0, expected.ids[2]
    try:
        (found,) = generate(model, [PROMPT], settings(max_frames=1), 0, ALONE)
    finally:
        own.do_sample, own.temperature, own.top_p, own.eos_token_id = False, None, None, None
    assert found == expected


def test_a_model_without_the_ids_is_refused():
    small = build_model(config_for().model_copy(update={"tiny": TinyModelConfig(vocab_size=512)}))
    with pytest.raises(ConfigError, match=r"512 embeddings cannot speak.*evaluation.prompts: 0"):
        generate(small, [PROMPT], settings(), 0, ALONE)
    assert generate(small, [], settings(), 0, ALONE) == []
    assert small.training


def whole(num_frames):
    return audio_ids(np.arange(num_frames * SLOTS, dtype=np.uint16)).tolist()


@pytest.mark.parametrize(
    ("ids", "expected", "num_valid"),
    [
        ([], Grammar(0, 0, 0.0, False), 0),
        ([END_OF_SPEECH], Grammar(0, 0, 0.0, True), 0),
        (whole(3), Grammar(3, 3, 1.0, False), 3),
        ([*whole(3), END_OF_SPEECH], Grammar(3, 3, 1.0, True), 3),
        ([*whole(2), END_OF_SPEECH, END_OF_AI, 7], Grammar(2, 2, 1.0, True), 2),
        (whole(2)[:-1], Grammar(2, 1, 0.5, False), 1),
        ([*whole(2)[:-1], END_OF_SPEECH], Grammar(2, 1, 0.5, True), 1),
        ([*whole(1), 5, *whole(2)[8:], *whole(1)], Grammar(3, 2, 2 / 3, False), 1),
        (whole(2)[1:], Grammar(2, 0, 0.0, False), 0),  # all one slot late
        ([128265, *whole(1)[1:]], Grammar(1, 0, 0.0, False), 0),
        ([*whole(1)[:-1], 156938], Grammar(1, 0, 0.0, False), 0),
    ],
)
def test_grammar(ids, expected, num_valid):
    assert grammar(ids) == expected
    codes = valid_codes(ids)
    assert codes.dtype == np.uint16
    assert audio_ids(codes).tolist() == ids[: num_valid * SLOTS]


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


def test_samples_are_written_with_their_audio(tmp_path):
    speeches = [
        Speech(PROMPT, [*whole(2), END_OF_SPEECH]),
        Speech(Prompt("silent", (1,)), [5, 6, 7]),
        Speech(Prompt("broken", (2,)), [*whole(1), 5]),
    ]
    with SummaryWriter(str(tmp_path / "board")) as board:
        summary = write_samples(tmp_path, 500, speeches, Tone(), board)
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
    write_samples(tmp_path, 7, [Speech(PROMPT, whole(1))] * 2, Tone(), None)
    summary = write_samples(tmp_path, 7, [Speech(PROMPT, [])], None, None)
    assert (summary["codec"], summary["valid_share"]) == (None, 0.0)
    folder = tmp_path / "samples" / "step-00000007"
    assert [path.name for path in folder.iterdir()] == ["samples.json"]


def test_samples_that_cannot_be_written_are_a_storage_error(tmp_path):
    (tmp_path / "samples").write_text("")
    with pytest.raises(StorageError, match=r"samples .*cannot be written"):
        write_samples(tmp_path, 1, [Speech(PROMPT, whole(1))], Tone(), None)


def test_speaking_joins_both_kinds_of_prompts(model, tmp_path):
    rows = ShardRows(write_shards(tmp_path / "shards", row_tokens=80), "validation")
    config = config_for(evaluation=settings(prompts=1, max_frames=1))
    summary = speak(model, rows, ALONE, config, Speaking((PROMPT,), Tone()), tmp_path, 4, None)
    assert summary is not None
    stored = json.loads((tmp_path / summary["folder"] / "samples.json").read_text())
    names = [validation_prompts(rows, 1)[0].name, "by rote"]
    assert [sample["prompt"]["name"] for sample in stored["samples"]] == names
    silent = config_for(evaluation=settings(prompts=0))
    assert speak(model, rows, ALONE, silent, None, tmp_path, 5, None) is None
    assert not (tmp_path / "samples" / "step-00000005").exists()
