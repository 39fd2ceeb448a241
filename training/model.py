"""The language model with FP32 master weights, and the module that the loop trains."""

from __future__ import annotations

import math

import torch
from torch import nn
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM

from pipeline.errors import ConfigError, ContractError
from pipeline.vocabulary import END_OF_TEXT, NUM_EMBEDDINGS, START_OF_TEXT
from training.attention import document_causal_mask
from training.config import TinyModelConfig, TrainConfig
from training.loss import next_token_losses

# 64 is the multiple that NVIDIA's matrix multiplication guide asks of BF16 dimensions: 156,938
# rows become 156,992. No id reaches the added ones; training only pushes them away.
VOCABULARY_MULTIPLE = 64
LLAMA_3_ROPE_THETA = 500_000.0


def build_model(config: TrainConfig) -> LlamaForCausalLM:
    """Build the model of `config`, weights in FP32, with an embedding for every Orpheus id.

    Raises: ConfigError when the base model cannot be had or is no Llama.
    """
    torch.manual_seed(config.seed)  # of random weights and of added rows, equal on all ranks
    model = _load(config.base_model) if config.base_model else _random(config.tiny)
    model.config.use_cache = False
    require_master_weights(model)
    return model


def _random(shape: TinyModelConfig) -> LlamaForCausalLM:
    rows = math.ceil(NUM_EMBEDDINGS / VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
    vocab_size = shape.vocab_size or rows
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_hidden_layers,
        num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_key_value_heads,
        max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": LLAMA_3_ROPE_THETA},
        tie_word_embeddings=True,
        bos_token_id=START_OF_TEXT if vocab_size > START_OF_TEXT else None,
        eos_token_id=END_OF_TEXT if vocab_size > END_OF_TEXT else None,
        dtype=torch.float32,
    )
    config._attn_implementation = "sdpa"
    return LlamaForCausalLM(config)


def _load(name: str) -> LlamaForCausalLM:
    remedy = "Name another hub id or a folder in train.base_model, or null for a tiny random model."
    try:
        model_type = AutoConfig.from_pretrained(name).model_type
        if model_type != "llama":
            raise ConfigError(f"base model {name} is a {model_type}, not a llama", remedy=remedy)
        # Without dtype the checkpoint's own would be kept: BF16 weights swallow small updates.
        model = LlamaForCausalLM.from_pretrained(
            name, dtype=torch.float32, attn_implementation="sdpa"
        )
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"base model {name} cannot be loaded", reason, remedy) from error
    if model.model.embed_tokens.num_embeddings < NUM_EMBEDDINGS:
        model.resize_token_embeddings(
            NUM_EMBEDDINGS, pad_to_multiple_of=VOCABULARY_MULTIPLE, mean_resizing=True
        )
    return model


def require_master_weights(model: nn.Module) -> None:
    """Assert that every weight is FP32.

    Raises: ContractError naming the first that is not.
    """
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32:
            raise ContractError(
                f"weight {name} is {parameter.dtype}",
                "master weights must be FP32: at a learning rate of 5e-5 an update is often "
                "smaller than half a BF16 step and would be lost",
            )


class PackedCausalLM(nn.Module):
    """Llama on packed rows, from token ids to losses: what DDP wraps and the loop calls."""

    def __init__(self, llama: LlamaForCausalLM, loss_chunk_tokens: int) -> None:
        super().__init__()
        self.llama = llama
        self.loss_chunk_tokens = loss_chunk_tokens

    @property
    def num_embeddings(self) -> int:
        return self.llama.model.embed_tokens.num_embeddings

    def hidden_states(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        document_index: torch.Tensor,
    ) -> torch.Tensor:
        """Run the body, documents apart: [rows, tokens] to [rows, tokens, width]."""
        return self.llama.model(
            input_ids=input_ids,
            position_ids=position_ids,
            attention_mask=document_causal_mask(document_index),
            use_cache=False,
        ).last_hidden_state

    def forward(
        self,
        input_ids: torch.Tensor,
        labels: torch.Tensor,
        position_ids: torch.Tensor,
        document_index: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the summed loss of a batch and its parts (see `next_token_losses`)."""
        device_type = input_ids.device.type
        # On a CPU the head stays in FP32: without AVX512-BF16 its products are 10 to 100 times
        # slower in BF16 (measured on AVX2: 1.9 s against 0.09 s for 256 tokens, width 64).
        mixed = torch.is_autocast_enabled(device_type) and device_type != "cpu"
        return next_token_losses(
            self.hidden_states(input_ids, position_ids, document_index),
            self.llama.lm_head.weight,
            labels,
            chunk_tokens=self.loss_chunk_tokens,
            compute_dtype=torch.get_autocast_dtype(device_type) if mixed else torch.float32,
        )
