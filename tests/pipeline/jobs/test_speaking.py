import json
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from koe.errors import ConfigError
from koe.schema import ENCODED
from koe.vocabulary import (
    CODEC_HZ,
    END_OF_HUMAN,
    END_OF_TEXT,
    FIRST_AUDIO,
    FRAME_SAMPLES,
    NUM_EMBEDDINGS,
    PAD,
    SLOTS,
    START_OF_AI,
    START_OF_SPEECH,
    START_OF_TEXT,
)
from pipeline.config.models import PipelineConfig
from pipeline.jobs.exports import export_data, export_run
from pipeline.jobs.speech_samples import SnacDecoder, sample_generator, spoken_text, text_prompts
from stages.settings import TokenizeConfig
from stages.snac.codec import Codec, resolve_codec
from stages.text.tokenizer import load_tokenizer, text_tokenizer
from stages.tokenize import TokenizeSpeech
from tests.clients.hub import server
from tests.stages.speech import write_snac_weights
from tests.training.shards import write_shards
from tests.training.test_export import PROGRESS, write_checkpoint
from training.config import EvaluationConfig, TinyModelConfig, TrainConfig
from training.model.llama import build_model

__all__ = ["server"]

pytestmark = pytest.mark.slow

TEXTS = ["こんにちは、世界。", "tara: The quick brown fox's 12345 jumps.", "<|eot_id|> 🍣"]
CODES = np.random.default_rng(0).integers(0, 4096, 2 * SLOTS).astype(np.uint16)


def config_for(run_dir="run", prompt="{text}", snac=None, **evaluation) -> PipelineConfig:
    return PipelineConfig.model_validate(
        {
            "run_dir": str(run_dir),
            "sources": {"speech": [{"name": "clips", "kind": "manifest", "paths": ["none.jsonl"]}]},
            "snac": snac or {"weights": "untrained", "sha256": None},
            "tokenize": {"speech_prompt": prompt},
            "train": TrainConfig(
                device="cpu",
                base_model=None,
                tiny=TinyModelConfig(hidden_size=16, intermediate_size=32),
                evaluation=EvaluationConfig(**evaluation),
            ).model_dump(),
        }
    )


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_trained_weights_are_decoded_without_touching_the_process(tmp_path):
    weights = str(write_snac_weights(tmp_path))
    settings = {"weights": weights, "sha256": None, "seed": 5, "device": "cuda"}  # never a GPU
    given = sample_generator(config_for(snac=settings))
    assert given is not None
    decoder = pickle.loads(pickle.dumps(given)).decoder
    state = torch.get_rng_state()
    audio = decoder(CODES)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == 2
    spec = resolve_codec(weights, seed=5)
    assert decoder.label == spec.label
    assert decoder.label.startswith("snac_24khz sha256:")
    expected = Codec.open(spec).decode(CODES, 5)
    torch.set_num_threads(2)
    assert audio.shape == (2 * FRAME_SAMPLES,)
    np.testing.assert_array_equal(audio, expected)
    assert np.abs(audio).max() > 0
    again = pickle.loads(pickle.dumps(decoder))  # an open one too
    np.testing.assert_array_equal(again(CODES), expected)


def test_an_untrained_codec_says_so():
    given = sample_generator(config_for())
    assert given is not None
    assert isinstance(given.decoder, SnacDecoder)
    assert given.decoder.label == "UNTRAINED"
    assert given.prompts == ()
    assert given.decoder(CODES).shape == (2 * FRAME_SAMPLES,)


def test_nothing_is_loaded_where_nothing_is_spoken():
    missing = {"weights": "/nowhere/at/all", "sha256": None}
    assert sample_generator(config_for(snac=missing, every_steps=0)) is None
    assert sample_generator(config_for(snac=missing, prompts=0)) is None
    with pytest.raises(ConfigError, match="neither a folder that exists"):
        sample_generator(config_for(snac=missing))


@pytest.fixture(scope="module")
def tokenizer():
    return text_tokenizer(load_tokenizer("llama-models"))


def tokenized(tokenizer, prompt, text, speaker):
    """Run the tokenize stage on one clip, and return its document up to start_of_speech."""
    row = {
        "id": "clips/0", "source": "clips", "text": text, "speaker": speaker, "audio_kind": "file",
        "audio_path": "0.flac", "audio_member": "", "audio_offset": 0, "audio_bytes": 1,
        "start_seconds": 0.0, "seconds": 1.0, "audio_hz": CODEC_HZ, "channels": 1,
        "source_ovrl": None, "sig": 3.0, "bak": 3.0, "ovrl": 3.0, "windows": 1,
        "ovrl_error": 0.0, "scorer": "test", "frames": 2, "codes": CODES.tolist(),
    }  # fmt: skip
    stage = TokenizeSpeech(tokenizer, TokenizeConfig(speech_prompt=prompt))
    ids = stage.open()(pa.Table.from_pylist([row], schema=ENCODED)).kept["input_ids"][0].as_py()
    return tuple(ids[: ids.index(START_OF_SPEECH) + 1])


@pytest.fixture(scope="module")
def prompts():
    return text_prompts(config_for(texts=TEXTS))


def test_texts_are_laid_out_as_the_tokenize_stage_does(tokenizer, prompts):
    assert [prompt.name for prompt in prompts] == TEXTS
    for prompt in prompts:
        assert prompt.ids == tokenized(tokenizer, "{text}", prompt.name, None)
    template = "[{speaker}] {text}!"
    (prompt,) = text_prompts(config_for(prompt=template, texts=["[葵] こんにちは!"]))
    assert prompt.ids == tokenized(tokenizer, template, "こんにちは", "葵")
    assert text_prompts(config_for()) == []


def test_a_text_that_names_no_speaker_is_refused():
    assert spoken_text("やあ", "Read: {text}") == "Read: やあ"
    assert spoken_text("葵: a\nb", "{speaker}: {text}") == "葵: a\nb"
    with pytest.raises(ConfigError, match=r"names no speaker.*'SPEAKER: やあ'"):
        spoken_text("やあ", "{speaker}: {text}")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Make a run directory with shards and one checkpoint; return its config and the model."""
    run_dir = tmp_path_factory.mktemp("run")
    config = config_for(run_dir)
    index = write_shards(run_dir / "shards") / "index.json"
    content = {**json.loads(index.read_text()), "codec": {"label": "UNTRAINED (seed 0)"}}
    index.write_text(json.dumps(content))
    model = build_model(config.train)
    write_checkpoint(run_dir / "train", model)
    return config, model


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    config, _ = run
    out = tmp_path_factory.mktemp("export") / "model"
    export_run(config, out, None, "fp32")
    return out


def test_a_run_is_exported_with_model_and_card(run, exported):
    found = AutoModelForCausalLM.from_pretrained(exported).eval()
    ids = torch.arange(FIRST_AUDIO, FIRST_AUDIO + 9).view(1, -1)
    with torch.no_grad():
        assert torch.equal(found(input_ids=ids).logits, run[1].eval()(input_ids=ids).logits)
    card = (exported / "README.md").read_text()
    assert "UNTRAINED (seed 0)" in card
    assert f"{PROGRESS.steps:,}" in card


@pytest.fixture(scope="module")
def orpheus(exported):
    return AutoTokenizer.from_pretrained(exported)


def test_the_tokenizer_is_that_of_orpheus_inference(orpheus):
    assert len(orpheus) == NUM_EMBEDDINGS == 156_938
    assert orpheus.convert_tokens_to_ids("<custom_token_10>") == FIRST_AUDIO == 128_266
    assert orpheus.convert_tokens_to_ids("<custom_token_28681>") == NUM_EMBEDDINGS - 1
    assert (orpheus.pad_token, orpheus.pad_token_id) == ("<custom_token_7>", PAD)
    assert orpheus.bos_token == "<|begin_of_text|>"
    # Orpheus' decoder reads the codes from decoded text, where they must not be skipped as special.
    spelled = orpheus.decode([FIRST_AUDIO, FIRST_AUDIO + 1], skip_special_tokens=True)
    assert spelled.replace(" ", "") == "<custom_token_10><custom_token_11>"


def test_koe_documents_begin_as_the_prompts_of_orpheus_engine(orpheus, prompts):
    """canopyai/Orpheus-TTS, orpheus_tts_pypi/orpheus_tts/engine_class.py, `_format_prompt`."""
    for prompt in prompts[:2]:
        text_ids = orpheus(prompt.name).input_ids
        assert text_ids[0] == START_OF_TEXT
        engine = [128259, *text_ids, 128009, 128260, 128261, 128257]
        assert list(prompt.ids) == engine
        assert engine[-4:] == [END_OF_TEXT, END_OF_HUMAN, START_OF_AI, START_OF_SPEECH]
        # The engine hands the prompt over as a string, and who tokenises that as usual puts one
        # more start_of_text in front, which no document of koe has.
        assert orpheus(orpheus.decode(engine)).input_ids == [START_OF_TEXT, *engine]
    # A text that spells a control token stays text here; in the engine it becomes that token.
    spelled = prompts[2]
    assert spelled.ids.count(END_OF_TEXT) == 1
    assert orpheus(spelled.name).input_ids.count(END_OF_TEXT) == 1
    assert len(spelled.ids) != len(orpheus(spelled.name).input_ids) + 5


def test_a_checkpoint_that_is_not_there_is_named(run, tmp_path):
    config, _ = run
    with pytest.raises(ConfigError, match=r"of step 7 because it has step-00001234"):
        export_run(config, tmp_path / "out", 7, "bf16")
    with pytest.raises(ConfigError, match=r"of step 2000 because"):  # an earlier one is not it
        export_run(config, tmp_path / "out", 2000, "bf16")
    with pytest.raises(ConfigError, match="it is empty"):
        export_run(config_for(tmp_path), tmp_path / "out", None, "bf16")
    with pytest.raises(ConfigError, match="--dtype fp8 is not one of bf16, fp32"):
        export_run(config, tmp_path / "out", None, "fp8")
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # huggingface_hub's own
def test_a_run_is_uploaded_with_its_card(run, tmp_path, server):
    config, _ = run
    url = export_run(config, tmp_path / "model", None, "bf16", gguf=True, repository="me/voice")
    assert url == f"{server.url}/me/voice"
    own = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    assert server.files["me/voice"] == own
    assert "model-bf16.gguf" in own
    card = own["README.md"].decode()
    assert 'Llama.from_pretrained("me/voice", "model-bf16.gguf"' in card
    assert str(tmp_path) not in card


def test_what_cannot_be_uploaded_is_refused_before_any_work(run, tmp_path, server):
    config, _ = run
    server.refuse = 403
    with pytest.raises(ConfigError, match=r"me/voice cannot be written.*hf auth login"):
        export_run(config, tmp_path / "model", None, "bf16", repository="me/voice")
    with pytest.raises(ConfigError, match=r"cannot be uploaded .* it is no local folder"):
        export_run(config, "memory://x/model", None, "bf16", repository="me/voice")
    assert not (tmp_path / "model").exists()
    server.refuse = None
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine").write_text("kept")
    with pytest.raises(ConfigError, match="model already exists"):
        export_run(config, tmp_path / "model", None, "bf16", repository="me/voice")
    assert not server.files


def test_the_documents_of_a_run_are_labelled_as_it_is_trained(run, tmp_path):
    config, _ = run
    config = config.model_copy(
        update={"train": config.train.model_copy(update={"loss_on": "response"})}
    )
    assert export_data(config, tmp_path / "as trained", None)["train"] > 0
    assert export_data(config, tmp_path / "all", "all")["train"] > 0
    asked, every = (
        pq.read_table(tmp_path / name / "train-0.parquet")["labels"].to_pylist()
        for name in ("as trained", "all")
    )
    ignored = [sum(label == -100 for label in labels) for labels in asked]
    assert all(count > 1 for count in ignored)
    assert {sum(label == -100 for label in labels) for labels in every} == {1}
    with pytest.raises(ConfigError, match="has no shards"):
        export_data(config_for(tmp_path), tmp_path / "none", None)


def test_a_corrupt_checkpoint_is_never_exported(run, tmp_path):
    path = write_checkpoint(tmp_path / "train", run[1])
    part = next(path.glob("*.distcp"), None) or max(path.iterdir(), key=lambda p: p.stat().st_size)
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    for steps in (None, PROGRESS.steps):
        with pytest.raises(ConfigError, match="has no complete checkpoint"):
            export_run(config_for(tmp_path), tmp_path / "out", steps, "fp32")
