"""What listens to the speech of an evaluation, and that it never stops a run."""

import json
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter
from transformers import (
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2Processor,
)

from koe.vocabulary import CODEC_HZ, FRAME_SAMPLES, SLOTS
from tests.training.helpers import one_thread
from tests.training.speaking import PROMPT, whole
from training.generation import Prompt, SampleGenerator, Speech
from training.listening import Listener, Listening, Recogniser, spoken_characters, undisturbed
from training.samples import write_samples

__all__ = ["one_thread"]

AUDIO = np.full(CODEC_HZ, 0.1, np.float32)


def scores_of(audio):
    return {"sig": 3.0, "bak": 4.0, "ovrl": float(audio[0])}


def listener(heard="こんにちは", text="こんにちは。", score=scores_of):
    return Listener(score, lambda audio: heard, lambda ids: text)


def test_a_sample_that_says_its_prompt_has_no_errors():
    listening = Listening(listener("コンニチハ!  ABC１", "ｺﾝﾆﾁﾊ、abc 1。"))
    judged = listening((1, 2), AUDIO)
    assert judged["character_error_rate"] == 0
    assert judged["ovrl"] == pytest.approx(0.1)
    assert judged["heard"] == "コンニチハ!  ABC１"
    assert listening.summary == {
        "ovrl": pytest.approx(0.1), "sig": 3.0, "bak": 4.0, "character_error_rate": 0.0,
    }  # fmt: skip


def test_errors_are_counted_over_all_characters():
    texts, heard = iter(["abcdefgh", "xy"]), iter(["abcdefgX", ""])
    listening = Listening(Listener(None, lambda audio: next(heard), lambda ids: next(texts)))
    assert listening((1,), AUDIO)["character_error_rate"] == 1 / 8
    assert listening((2,), AUDIO)["character_error_rate"] == 1.0
    assert listening.summary == {"character_error_rate": 3 / 10}


def test_nothing_to_hear_is_an_error_and_has_no_score():
    listening = Listening(listener())
    judged = listening((1,), None)
    assert judged == {
        "sig": None, "bak": None, "ovrl": None,
        "text": "こんにちは。", "heard": "", "character_error_rate": 1.0,
    }  # fmt: skip
    assert listening.summary["ovrl"] is None


def test_without_a_listener_nothing_is_added():
    listening = Listening(Listener())
    assert listening((1,), AUDIO) == listening.summary == {}


@pytest.mark.parametrize("part", ["score", "recognise", "text_of"])
def test_a_failure_is_said_once_and_leaves_its_value_out(part, capsys):
    def fail(_):
        raise RuntimeError("no memory\nand more lines")

    parts = {"score": scores_of, "recognise": lambda audio: "abc", "text_of": lambda ids: "abc"}
    listening = Listening(Listener(**parts | {part: fail}))
    judged = [listening((1,), AUDIO), listening((2,), AUDIO)]
    assert capsys.readouterr().err.count("failed: RuntimeError: no memory; training goes on") == 1
    known = {key for key, value in judged[0].items() if value is not None}
    missing = {
        "score": {"sig", "bak", "ovrl"},
        "recognise": {"heard", "character_error_rate"},
        "text_of": {"text", "character_error_rate"},
    }[part]
    assert known == {"sig", "bak", "ovrl", "text", "heard", "character_error_rate"} - missing
    if part != "score":
        assert listening.summary["character_error_rate"] is None


TEXTS = st.text(max_size=12)


@given(TEXTS, TEXTS)
def test_the_error_rate_does_not_depend_on_form_case_or_marks(text, other):
    wanted, found = spoken_characters(text), spoken_characters(other)
    assert spoken_characters(wanted) == wanted
    assert spoken_characters(f" {text}。!") == wanted
    listening = Listening(listener(other, text))
    rate = listening((1,), AUDIO)["character_error_rate"]
    if not wanted:
        assert rate is None
    else:
        assert (rate == 0) == (wanted == found)
        assert rate == Levenshtein.distance(wanted, found) / len(wanted)


def test_listening_leaves_random_state_and_threads_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with undisturbed():
        torch.set_num_threads(2)
        torch.rand(100)
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == 1


@pytest.fixture(scope="module")
def recogniser(tmp_path_factory):
    """A wav2vec 2.0 with random weights, small, in a folder."""
    folder = tmp_path_factory.mktemp("recogniser")
    letters = ["<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefgh"]
    vocabulary = folder / "letters.json"
    vocabulary.write_text(json.dumps({letter: number for number, letter in enumerate(letters)}))
    torch.manual_seed(0)
    config = Wav2Vec2Config(
        vocab_size=len(letters), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, conv_dim=(8, 8), conv_stride=(40, 8), conv_kernel=(40, 8),
        num_feat_extract_layers=2, num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    Wav2Vec2ForCTC(config).save_pretrained(folder)
    extractor = Wav2Vec2FeatureExtractor(sampling_rate=16_000)
    Wav2Vec2Processor(extractor, Wav2Vec2CTCTokenizer(str(vocabulary))).save_pretrained(folder)
    return folder


def test_a_recogniser_of_transformers_listens(recogniser):
    heard = Recogniser(str(recogniser))
    audio = np.random.default_rng(0).normal(0, 0.1, CODEC_HZ).astype(np.float32)
    first = heard(audio)
    assert isinstance(first, str)
    assert first
    assert pickle.loads(pickle.dumps(heard))(audio) == first


def test_a_recogniser_that_is_not_there_is_said_and_not_tried_again(tmp_path, capsys, monkeypatch):
    listener = Listener(None, Recogniser(str(tmp_path / "none")), lambda ids: "abc")
    assert Listening(listener)((1,), AUDIO)["character_error_rate"] is None
    said = capsys.readouterr().err
    assert "the recogniser failed" in said
    monkeypatch.setattr("transformers.pipeline", None)  # whoever calls it would say another reason
    assert Listening(listener)((1,), AUDIO)["heard"] is None
    assert capsys.readouterr().err == said
    assert torch.get_num_threads() == 1


class Tone:
    label = "tone"

    def __call__(self, flat_codes):
        return np.full(len(flat_codes) // SLOTS * FRAME_SAMPLES, 0.5, np.float32)


def test_what_was_heard_is_written_beside_the_samples(tmp_path):
    speeches = [Speech(PROMPT, whole(2)), Speech(Prompt("silent", (1,)), [5, 6, 7])]
    generator = SampleGenerator((), Tone(), listener("こんにちわ"))
    with SummaryWriter(str(tmp_path / "board")) as board:
        summary = write_samples(tmp_path, 500, speeches, generator, board)
    assert summary["ovrl"] == 0.5
    assert summary["character_error_rate"] == (1 + 5) / 10
    stored = json.loads((tmp_path / summary["folder"] / "samples.json").read_text())
    assert {key: stored[key] for key in summary} == summary
    first, silent = stored["samples"]
    assert (first["text"], first["heard"], first["character_error_rate"]) == (
        "こんにちは。", "こんにちわ", 0.2,
    )  # fmt: skip
    assert (silent["ovrl"], silent["character_error_rate"]) == (None, 1.0)
    events = EventAccumulator(str(tmp_path / "board"))
    events.Reload()
    for name in ("sig", "bak", "ovrl", "character_error_rate"):
        (event,) = events.Scalars(f"samples/{name}")
        assert (event.step, event.value) == (500, pytest.approx(summary[name]))
