"""llama.cpp itself reads an export: the logits, the ids, and where an answer ends."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from koe.vocabulary import END_OF_SPEECH, NUM_EMBEDDINGS, START_OF_TEXT
from tests.clients.exports import ANSWERED, ASKED
from tests.clients.releases import LLAMA_CPP
from training.export import gguf_file

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not LLAMA_CPP.folder.exists(), reason="`make clients` builds llama.cpp"),
]

PROBE = Path(__file__).with_name("probe_llama_cpp.py")
IDS = np.random.default_rng(0).integers(0, NUM_EMBEDDINGS, 200).tolist()
TEXTS = [
    "Hello.",
    "こんにちは、世界。",
    "tara: it's 12345 🍣\n\n  ok",
    "I'LL  \t see\r\n\n THE'RE",
    "<custom_token_10>a<|eot_id|><custom_token_28681>",
]


@pytest.fixture(scope="module")
def asked(exports, tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama-cpp")
    models = {name: exports / name / "model" for name in ("default", "llama3")}
    files = {"llama3": models["llama3"] / "model-f32.gguf", "default": folder / "default.gguf"}
    plain = AutoModelForCausalLM.from_pretrained(models["default"])
    gguf_file.write(files["default"], plain, models["llama3"], "default")
    request = {
        "file": str(files["llama3"]),
        "texts": TEXTS,
        "asked": ASKED,
        "input": IDS,
        "logits": {name: str(path) for name, path in files.items()},
    }
    (folder / "request.json").write_text(json.dumps(request))
    done = LLAMA_CPP.python(PROBE, folder / "request.json", folder / "found.npz")
    assert done.returncode == 0, done.stderr
    with np.load(folder / "found.npz") as found:
        return {**json.loads(str(found["result"])), **{name: found[name] for name in models}}


@pytest.mark.parametrize("name", ["default", "llama3"])
def test_the_logits_are_those_of_transformers(asked, exports, name):
    model = AutoModelForCausalLM.from_pretrained(exports / name / "model").eval()
    with torch.inference_mode():
        expected = model(input_ids=torch.tensor([IDS])).logits[0].numpy()
    assert np.abs(asked[name] - expected).max() < 1e-4 * np.abs(expected).max()


def test_the_ids_are_those_of_the_tokenizer(asked, exports):
    tokenizer = AutoTokenizer.from_pretrained(exports / "llama3" / "model")
    # llama.cpp is told to put no BOS in front, even where it is asked for one
    assert asked["ids"] == [tokenizer(text, add_special_tokens=False).input_ids for text in TEXTS]
    assert asked["special"] == [START_OF_TEXT, END_OF_SPEECH]


def test_an_answer_in_text_ends_by_itself(asked):
    assert asked["answer"] == ANSWERED
    assert asked["reason"] == "stop"
