"""What a GGUF file holds is the model, computed the way in which llama.cpp does."""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from typing import Any

import pytest
import torch
from gguf import GGUFReader, TokenType
from gguf.quants import dequantize
from torch.nn import functional
from transformers import AutoModelForCausalLM, LlamaConfig

from koe.errors import ConfigError, ContractError
from koe.vocabulary import (
    END_OF_SPEECH,
    END_OF_TEXT,
    FIRST_AUDIO,
    NUM_BASE,
    NUM_EMBEDDINGS,
    PAD,
    START_OF_TEXT,
)
from tests.clients.exports import ROPES, exported, model_with
from training.export import gguf_file

pytestmark = pytest.mark.slow

VOCABULARY = 512
IDS = torch.randint(VOCABULARY, (150,), generator=torch.Generator().manual_seed(0))
LINEAR = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}
OTHER_SHAPE: dict[str, Any] = {
    "tie_word_embeddings": False,
    "attention_bias": True,
    "mlp_bias": True,
    "head_dim": 32,
    "num_key_value_heads": 4,
}


class Computed:
    """The Llama of a GGUF file as llama.cpp computes it (ggml-org/llama.cpp, `src/models/llama.cpp`
    and `ggml_rope_ext` without NeoX order): neighbouring rows of a head are rotated together."""

    def __init__(self, path):
        reader = GGUFReader(path)
        self.of = {key: field.contents() for key, field in reader.fields.items()}
        self.tensors = {
            t.name: torch.from_numpy(dequantize(t.data, t.tensor_type).copy())
            for t in reader.tensors
        }
        self.types = {t.name: t.tensor_type.name for t in reader.tensors}

    def shape(self, name):
        return self.of[f"llama.{name}"]

    def linear(self, x, name):
        return functional.linear(
            x, self.tensors[f"{name}.weight"], self.tensors.get(f"{name}.bias")
        )

    def norm(self, x, name):
        scale = x.pow(2).mean(-1, keepdim=True) + self.shape("attention.layer_norm_rms_epsilon")
        return x * scale.rsqrt() * self.tensors[f"{name}.weight"]

    def rotated(self, x):
        """Rotate [heads, tokens, head]."""
        size = self.shape("rope.dimension_count")
        frequency = self.shape("rope.freq_base") ** (-torch.arange(0, size, 2) / size)
        frequency = frequency / self.tensors.get("rope_freqs.weight", torch.ones(1))
        angle = torch.arange(x.shape[1])[:, None] * frequency
        even, odd = x[..., ::2], x[..., 1::2]
        turned = (even * angle.cos() - odd * angle.sin(), even * angle.sin() + odd * angle.cos())
        return torch.stack(turned, -1).flatten(-2)

    def attention(self, x, block):
        size = self.shape("attention.key_length")
        q, k, v = (
            self.linear(x, f"{block}.attn_{part}").unflatten(1, (-1, size)).transpose(0, 1)
            for part in "qkv"
        )
        share = self.shape("attention.head_count") // self.shape("attention.head_count_kv")
        k, v = (part.repeat_interleave(share, 0) for part in (self.rotated(k), v))
        mixed = functional.scaled_dot_product_attention(self.rotated(q), k, v, is_causal=True)
        return self.linear(mixed.transpose(0, 1).flatten(1), f"{block}.attn_output")

    def logits(self, ids):
        x = self.tensors["token_embd.weight"][ids]
        for number in range(self.shape("block_count")):
            block = f"blk.{number}"
            x = x + self.attention(self.norm(x, f"{block}.attn_norm"), block)
            h = self.norm(x, f"{block}.ffn_norm")
            gate = functional.silu(self.linear(h, f"{block}.ffn_gate"))
            x = x + self.linear(gate * self.linear(h, f"{block}.ffn_up"), f"{block}.ffn_down")
        head = "output" if "output.weight" in self.tensors else "token_embd"
        return self.linear(self.norm(x, "output_norm"), head)


@pytest.fixture(scope="module")
def whole(exports):
    """A file as `koe export --gguf` writes it, and the model beside it."""
    folder = exports / "llama3" / "model"
    return Computed(folder / "model-f32.gguf"), AutoModelForCausalLM.from_pretrained(folder)


def written(folder, model):
    """Write a model of a small vocabulary, which costs a hundredth, and read the file."""
    tokens = {f"t{id}": id for id in range(VOCABULARY)}
    state = {"model": {"vocab": tokens, "merges": ["t 1"]}, "added_tokens": []}
    (folder / "tokenizer.json").write_text(json.dumps(state))
    settings = {"chat_template": "", "eos_token": "t1", "pad_token": "t2"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    gguf_file.write(folder / "model.gguf", model, folder, "name")
    return Computed(folder / "model.gguf")


def assert_computes(found, model):
    with torch.inference_mode():
        expected = model.eval()(input_ids=IDS[None]).logits[0]
        logits = found.logits(IDS)
    assert expected.std() > 0.05
    assert (logits - expected).abs().max() < 1e-5 * expected.abs().max()


def test_an_export_holds_the_model_for_llama_cpp(whole):
    found, model = whole
    assert_computes(found, model)
    assert found.of["general.architecture"] == "llama"
    assert found.of["general.name"] == "model"
    assert set(found.types.values()) == {"F32"}
    sampling = [found.of[f"general.sampling.{key}"] for key in ("temp", "top_p", "penalty_repeat")]
    assert sampling == pytest.approx([0.6, 0.95, 1.1])
    factors = found.tensors.pop("rope_freqs.weight")
    with pytest.raises(AssertionError):  # they are not for show
        assert_computes(found, model)
    found.tensors["rope_freqs.weight"] = factors


@pytest.mark.parametrize(
    ("rope", "changes"),
    [(ROPES["default"], {}), (ROPES["llama3"], OTHER_SHAPE), (LINEAR, {})],
    ids=["default", "other shape", "linear"],
)
def test_every_shape_of_a_llama_is_computed(tmp_path, rope, changes):
    model = model_with(rope, vocab_size=VOCABULARY, **changes)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    found = written(tmp_path, model)
    assert_computes(found, model)
    assert ("output.weight" in found.tensors) == bool(changes)
    assert ("rope_freqs.weight" in found.tensors) == (rope["rope_type"] != "default")


def test_bf16_keeps_its_bits_and_vectors_are_fp32(tmp_path):
    model = model_with(ROPES["default"], vocab_size=VOCABULARY).bfloat16()
    found = written(tmp_path, model)
    vectors = {name: kind for name, kind in found.types.items() if kind != "BF16"}
    assert set(vectors.values()) == {"F32"}
    assert all(name.endswith("norm.weight") for name in vectors)
    rounded = model_with(ROPES["default"], vocab_size=VOCABULARY)
    rounded.load_state_dict(model.state_dict())
    assert torch.equal(found.tensors["token_embd.weight"], rounded.model.embed_tokens.weight)
    assert_computes(found, rounded)


def test_the_tokenizer_is_that_of_the_folder(whole):
    of = whole[0].of
    ids = {name: of[f"tokenizer.ggml.{name}_token_id"] for name in ("bos", "eos", "eot", "padding")}
    assert ids == {"bos": START_OF_TEXT, "eos": END_OF_SPEECH, "eot": END_OF_TEXT, "padding": PAD}
    assert of["tokenizer.ggml.add_bos_token"] is False
    assert of["tokenizer.ggml.model"] == "gpt2"
    assert of["tokenizer.ggml.pre"] == "llama-bpe"
    tokens, kinds = of["tokenizer.ggml.tokens"], of["tokenizer.ggml.token_type"]
    assert len(tokens) == len(kinds) == 156_992
    assert tokens[END_OF_TEXT] == "<|eot_id|>"
    assert tokens[FIRST_AUDIO] == "<custom_token_10>"
    assert len(set(tokens)) == len(tokens)
    types = (TokenType.NORMAL, TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNUSED)
    bounds = [0, START_OF_TEXT, NUM_BASE, NUM_EMBEDDINGS, 156_992]
    for id in (END_OF_SPEECH, PAD):  # never spelled in an answer
        assert kinds[id] == TokenType.CONTROL
        kinds[id] = TokenType.USER_DEFINED
    for (start, stop), kind in zip(pairwise(bounds), types, strict=True):
        assert set(kinds[start:stop]) == {kind}
    assert len(of["tokenizer.ggml.merges"]) > 100_000
    assert "take turns" in of["tokenizer.chat_template"]


def test_what_llama_cpp_would_compute_otherwise_is_refused(tmp_path):
    for changes, message in (
        (
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "dynamic",
        ),
        ({"hidden_act": "gelu"}, "activation gelu"),
    ):
        with pytest.raises(ConfigError, match=message):
            gguf_file.require_form(LlamaConfig(**changes))
    gguf_file.require_form(LlamaConfig())


def test_a_tokenizer_of_more_ids_than_the_model_is_refused(tmp_path):
    model = model_with(ROPES["default"], vocab_size=VOCABULARY - 1)
    with pytest.raises(ContractError, match=r"has the id 511.*has 511 embeddings"):
        written(tmp_path, model)


def test_without_the_package_nothing_is_begun(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    model = model_with(ROPES["default"])
    with pytest.raises(ConfigError, match=r"pip install 'koe-pretrain\[gguf\]'"):
        exported(tmp_path, model, gguf=True)
    assert not (tmp_path / "model").exists()
