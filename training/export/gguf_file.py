"""Writes a model for llama.cpp: its weights, its tokenizer and what ends an answer, in one GGUF file.

Source: ggml-org/llama.cpp, `conversion/llama.py` (names, order of rows, factors of RoPE) and
`src/llama-vocab.cpp` (tokens). Its own converter takes the end from the tokenizer's settings.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from koe.errors import ConfigError, ContractError
from koe.vocabulary import END_OF_SPEECH, END_OF_TEXT, PAD, START_OF_TEXT

ARCHITECTURE = "llama"
_NAMES = {"bf16": "model-bf16.gguf", "fp32": "model-f32.gguf"}  # as llama.cpp calls the types
# Those that only change the frequencies of RoPE, which a file holds as one factor for each.
_ROPE_TYPES = ("default", "linear", "llama3")


def name_of(dtype: str) -> str:
    """Name the file that holds weights of a type of `training.export.weights.DTYPES`."""
    return _NAMES[dtype]


def require_form(config: LlamaConfig) -> None:
    """Refuse what cannot be written, before any work.

    Raises: ConfigError without the package `gguf`, and for a model that llama.cpp would compute
    otherwise.
    """
    _library()
    rope_type, activation = _rope(config)["rope_type"], config.hidden_act
    if rope_type not in _ROPE_TYPES or activation != "silu":
        raise ConfigError(
            f"a model with RoPE of the type {rope_type} and the activation {activation} cannot be "
            "written as GGUF",
            f"koe knows how llama.cpp computes {', '.join(_ROPE_TYPES)} and silu only",
            "Export without --gguf, and convert the folder with llama.cpp's convert_hf_to_gguf.py.",
        )


def write(path: Path, model: LlamaForCausalLM, tokenizer_folder: Path, name: str) -> None:
    """Write `model`, in its own precision, with the tokenizer of a folder.

    Vectors are FP32, as llama.cpp wants them. Raises: ContractError for a weight that llama.cpp has no
    name for, or a tokenizer of more ids than the model; OSError.
    """
    gguf = _library()
    tensors = dict(_tensors(model))
    writer = gguf.GGUFWriter(path, ARCHITECTURE)
    try:
        writer.add_name(name)
        _add_sampling(writer, model.generation_config)
        _add_shape(writer, model.config)
        _add_tokenizer(writer, tokenizer_folder, model.config.vocab_size)
        is_bf16 = model.dtype == torch.bfloat16
        types = gguf.LlamaFileType
        writer.add_file_type(types.MOSTLY_BF16 if is_bf16 else types.ALL_F32)
        for tensor_name, tensor in tensors.items():
            _add_tensor(writer, tensor_name, tensor)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _library() -> Any:
    try:
        import gguf
    except ImportError as error:
        raise ConfigError(
            "a GGUF file cannot be written",
            f"the package gguf cannot be imported ({error})",
            "Install it with `pip install 'koe-pretrain[gguf]'`.",
        ) from error
    return gguf


def _rope(config: LlamaConfig) -> dict[str, Any]:
    parameters: Any = config.rope_parameters
    return parameters


def _add_sampling(writer: Any, generation: Any) -> None:
    """Write how answers are sampled, which llama.cpp's programs take where nobody says otherwise."""
    if generation.do_sample:
        writer.add_sampling_temp(generation.temperature)
        writer.add_sampling_top_p(generation.top_p)
        writer.add_sampling_penalty_repeat(generation.repetition_penalty)


def _add_shape(writer: Any, config: LlamaConfig) -> None:
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(_rope(config)["rope_theta"])


def _add_tokenizer(writer: Any, folder: Path, num_embeddings: int) -> None:
    types = _library().TokenType
    state = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    settings = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    found = {id: (token, types.NORMAL) for token, id in state["model"]["vocab"].items()}
    for token in state["added_tokens"]:
        # What is no control token is spelled in the text of an answer: Orpheus' codes are read there.
        name = token["content"]
        is_control = token["special"] or name in (settings["eos_token"], settings["pad_token"])
        found[token["id"]] = name, types.CONTROL if is_control else types.USER_DEFINED
    if max(found) >= num_embeddings:
        raise ContractError(
            f"the tokenizer has the id {max(found)}",
            f"the model has {num_embeddings} embeddings",
            "Use a model and a tokenizer of the same vocabulary.",
        )
    listed = [found.get(id, (f"[PAD{id}]", types.UNUSED)) for id in range(num_embeddings)]
    writer.add_tokenizer_model("gpt2")  # byte-level pairs
    writer.add_tokenizer_pre("llama-bpe")  # Llama 3's way of cutting a text into words
    writer.add_token_list([token for token, _ in listed])
    writer.add_token_types([kind for _, kind in listed])
    writer.add_token_merges(state["model"]["merges"])
    writer.add_bos_token_id(START_OF_TEXT)
    writer.add_eos_token_id(END_OF_SPEECH)
    writer.add_eot_token_id(END_OF_TEXT)
    writer.add_pad_token_id(PAD)
    writer.add_add_bos_token(
        False
    )  # it is the second token of a sample, and no other stands before it
    writer.add_chat_template(settings["chat_template"])


def _tensors(model: LlamaForCausalLM) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of the file by their names in it."""
    gguf = _library()
    config = model.config
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for key, tensor in model.state_dict().items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        name = names.get_name(key, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise ContractError(f"llama.cpp has no name for the weight {key} of a Llama")
        num_heads = heads.get(key.split(".")[-2])
        yield name, tensor if num_heads is None else _paired(tensor, num_heads)
    factors = _rope_factors(config)
    if factors is not None:
        yield "rope_freqs.weight", factors


def _paired(rows: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Order the rows of each head in pairs: llama.cpp rotates a row with the next one, transformers
    with the one that lies half a head further."""
    return rows.unflatten(0, (num_heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def _rope_factors(config: LlamaConfig) -> torch.Tensor | None:
    """Divide RoPE's plain frequencies by those of the model, [half a head]; None where they are plain."""
    if _rope(config)["rope_type"] == "default":
        return None
    plain = copy.deepcopy(config)
    plain.rope_parameters = {"rope_type": "default", "rope_theta": _rope(config)["rope_theta"]}
    return _frequencies(plain) / _frequencies(config)


def _frequencies(config: LlamaConfig) -> torch.Tensor:
    found: Any = LlamaRotaryEmbedding(config).inv_freq
    return found


def _add_tensor(writer: Any, name: str, tensor: torch.Tensor) -> None:
    tensor = tensor.detach()
    if tensor.dim() == 1 or tensor.dtype == torch.float32:
        writer.add_tensor(name, tensor.float().contiguous().numpy())
    else:  # numpy has no BF16
        kind = _library().GGMLQuantizationType.BF16
        writer.add_tensor(name, tensor.contiguous().view(torch.uint8).numpy(), raw_dtype=kind)
