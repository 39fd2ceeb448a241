"""An export means the same to every release of transformers that people have."""

from __future__ import annotations

import json

import numpy as np
import pytest
import transformers
from tokenizers import Tokenizer
from tokenizers.models import BPE

from koe.vocabulary import (
    END_OF_SPEECH,
    END_OF_TEXT,
    FIRST_AUDIO,
    NUM_EMBEDDINGS,
    PAD,
    START_OF_TEXT,
    conversation_ids,
)
from stages.text.conversation import turns
from stages.text.tokenizer import load_tokenizer, text_tokenizer
from tests.clients import probe
from tests.clients.exports import ROPES
from tests.clients.releases import TRANSFORMERS, Unreachable

pytestmark = pytest.mark.slow

_RANDOM = np.random.default_rng(0)
IDS = _RANDOM.integers(0, NUM_EMBEDDINGS, 200).tolist()
COLUMNS = [0, START_OF_TEXT, *_RANDOM.integers(0, NUM_EMBEDDINGS, 60).tolist()]
TEXTS = [
    "Hello.",
    "こんにちは、世界。",
    "tara: it's 12345 🍣\n\n  ok",
    "<custom_token_10>a<|eot_id|>",
    "",
]
SPOKEN = [FIRST_AUDIO, FIRST_AUDIO + 4096, NUM_EMBEDDINGS - 1]
CHATS = [
    [{"role": "user", "content": "やあ"}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": " 1+1? "},
        {"role": "assistant", "content": "2\n"},
        {"role": "system", "content": " "},
        {"role": "user", "content": "it's?"},
    ],
]
# Rounding of FP32 in another order of operations, relative to the largest logit.
ROUNDING = 1e-5
NAMES = ["default/model", "default/bare", "llama3/model", "llama3/bare", "bf16/model"]


@pytest.fixture(scope="module")
def requests(exports):
    whole = str(exports / "llama3" / "model")
    models = [
        {"kind": "model", "folder": str(exports / name), "ids": IDS, "columns": COLUMNS}
        for name in NAMES
    ]
    return [
        {"kind": "tokenizer", "folder": whole, "texts": TEXTS, "to_decode": [SPOKEN], "chats": CHATS},
        {"kind": "generation", "folder": whole},
        *models,
    ]  # fmt: skip


def asked(requests, folder, run):
    (folder / "requests.json").write_text(json.dumps(requests))
    run(folder / "requests.json", folder / "results.json")
    return json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def installed(requests, tmp_path_factory):
    """What the release answers that koe itself uses."""
    found = asked(requests, tmp_path_factory.mktemp("installed"), probe.main)
    assert found["version"] == transformers.__version__
    return found["results"]


@pytest.fixture(scope="module", params=TRANSFORMERS, ids=lambda release: release.name)
def former(request, requests, tmp_path_factory):
    """What a former release answers."""
    release = request.param

    def run(requests_path, results_path):
        done = release.python(probe.__file__, requests_path, results_path)
        assert done.returncode == 0, done.stderr

    try:
        release.installed()
    except Unreachable as why:
        pytest.skip(f"{release.name} cannot be installed: {why}")
    found = asked(requests, tmp_path_factory.mktemp(release.name), run)
    assert f"transformers-{found['version']}" == release.name
    return found["results"]


def difference(one, other):
    one, other = np.array(one["logits"]), np.array(other["logits"])
    return np.abs(one - other).max() / np.abs(one).max()


def test_the_installed_release_reads_what_was_trained(exports, installed):
    for name, result in zip(NAMES, installed[2:], strict=True):
        rope = name.split("/")[0]
        assert result["dtype"] == ("torch.bfloat16" if rope == "bf16" else "torch.float32")
        config = transformers.AutoConfig.from_pretrained(exports / name)
        assert config.rope_parameters == ROPES.get(rope, ROPES["default"])


def test_a_former_release_computes_the_same(installed, former):
    for name, expected, found in zip(NAMES, installed[2:], former[2:], strict=True):
        is_bare = name.endswith("bare")  # as every export was before it had the keys
        assert found["dtype"] == expected["dtype"]
        if is_bare:
            assert difference(expected, found) > 1000 * ROUNDING
        elif not name.startswith("bf16"):  # which is rounded at each layer, in another order
            assert difference(expected, found) < ROUNDING


def test_a_former_release_reads_the_same_ids(installed, former):
    same = {key: value for key, value in former[0].items() if key != "class"}
    assert same == {key: value for key, value in installed[0].items() if key != "class"}
    assert former[0]["class"] == "PreTrainedTokenizerFast"
    assert former[0]["special"] == [START_OF_TEXT, END_OF_SPEECH, PAD]
    assert former[0]["num_ids"] == NUM_EMBEDDINGS
    assert former[0]["decoded"][0].replace(" ", "").count("<custom_token_") == len(SPOKEN)


def test_a_former_release_ends_where_speech_or_text_ends(installed, former):
    assert former[1] == installed[1]
    assert former[1]["eos_token_id"] == [END_OF_SPEECH, END_OF_TEXT]


def test_the_chat_template_lays_out_what_the_tokenize_stage_does(installed):
    encoder = text_tokenizer(load_tokenizer("llama-models")).open()
    for chat, found in zip(CHATS, installed[0]["chats"], strict=True):
        answered = [*chat, {"role": "assistant", "content": "x"}]
        pairs = turns({"messages": answered}, "messages")
        ids = [tuple(encoder.encode(list(pair))) for pair in pairs]
        whole = conversation_ids(ids).tolist()
        assert found == whole[: -len(encoder.encode(["x"])[0]) - 2]  # without x EOT EOA


def test_messages_out_of_turn_are_refused(exports):
    settings = json.loads((exports / "llama3" / "model" / "tokenizer_config.json").read_text())
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(BPE()), chat_template=settings["chat_template"]
    )
    for roles in (("assistant",), ("user", "user"), ("user", "tool")):
        chat = [{"role": role, "content": "a"} for role in roles]
        with pytest.raises(Exception, match="must take turns"):
            tokenizer.apply_chat_template(chat, tokenize=False)


@pytest.mark.parametrize("rope", ROPES)
def test_vllm_reads_the_same_rope(exports, rope):
    loader = pytest.importorskip("vllm.transformers_utils.config", reason="vLLM is not installed")
    found = loader.get_config(str(exports / rope / "model"), trust_remote_code=False)
    assert found.rope_parameters == ROPES[rope]
    assert found.eos_token_id == [END_OF_SPEECH, END_OF_TEXT]
