"""What the pipeline gives evaluations to listen with."""

import pickle

import numpy as np
import pytest

from koe.errors import ConfigError
from koe.vocabulary import CODEC_HZ, speech_ids
from pipeline.jobs.listening import PromptText, SpeechScorer, listener, spoken_part
from stages.audio.decode import resample
from stages.dnsmos.scorer import DnsmosScorer, find_model
from stages.text.tokenizer import PACKAGE, load_tokenizer, text_tokenizer
from tests.pipeline.jobs.test_speaking import config_for
from training.listening import Recogniser

RNG = np.random.default_rng(0)


@pytest.mark.slow
def test_speech_is_scored_as_clips_are():
    times = np.arange(2 * CODEC_HZ) / CODEC_HZ
    audio = (0.3 * np.sin(2 * np.pi * 220 * times) * (times % 0.4 < 0.3)).astype(np.float32)
    scorer = pickle.loads(pickle.dumps(SpeechScorer(None, "all")))
    expected = DnsmosScorer(find_model().path).score(resample(audio, CODEC_HZ, 16_000), "all")
    assert scorer(audio) == {name: getattr(expected, name) for name in ("ovrl", "sig", "bak")}
    louder = np.clip(audio + RNG.normal(0, 0.2, len(audio)).astype(np.float32), -1, 1)
    assert scorer(louder)["bak"] < expected.bak


@pytest.mark.parametrize(
    ("prompt", "template", "expected"),
    [
        ("やあ", "{text}", "やあ"),
        ("葵: やあ: ね\nまた", "{speaker}: {text}", "やあ: ね\nまた"),
        ("Read (slowly): やあ", "Read (slowly): {text}", "やあ"),
        ("やあ、と葵", "{text}、と{speaker}", "やあ"),
        ("something else", "{speaker}: {text}", "something else"),
    ],
)
def test_the_speaker_is_not_to_be_heard(prompt, template, expected):
    assert spoken_part(prompt, template) == expected


@pytest.mark.slow
def test_the_text_of_a_prompt_is_read_from_its_ids():
    (ids,) = text_tokenizer(load_tokenizer(PACKAGE)).open().encode(["葵: こんにちは、世界。"])
    prompt = speech_ids(ids, np.empty(0, np.uint16))[:-2].tolist()
    text_of = pickle.loads(pickle.dumps(PromptText(PACKAGE, "{speaker}: {text}")))
    assert text_of(prompt) == "こんにちは、世界。"


def test_only_what_is_asked_for_listens(tmp_path):
    assert listener(config_for(), trained_codec=False) is None
    assert listener(config_for(score_speech=False), trained_codec=True) is None
    scored = listener(config_for(), trained_codec=True)
    assert scored is not None
    assert isinstance(scored.score, SpeechScorer)
    assert scored.recognise is scored.text_of is None
    name = "openai/whisper-large-v3"
    only_heard = listener(config_for(score_speech=False, recogniser=name), trained_codec=True)
    assert only_heard is not None
    assert only_heard.score is None
    assert isinstance(only_heard.recognise, Recogniser)
    assert only_heard.recognise.name == name
    with pytest.raises(ConfigError, match="there is no such folder"):
        listener(config_for(recogniser=str(tmp_path / "none")), trained_codec=True)
