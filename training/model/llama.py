"""The language model: a Llama with FP32 weights on packed rows, from token ids to losses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM

from koe.errors import ConfigError, ContractError
from koe.vocabulary import END_OF_TEXT, NUM_EMBEDDINGS, START_OF_TEXT
from training.adapter import add_adapter, require_peft
from training.config import TinyModelConfig, TrainConfig
from training.model.attention import IMPLEMENTATIONS, attention_inputs
from training.model.embeddings import fill_new_rows
from training.model.loss import Losses, next_token_losses

# NVIDIA's matrix multiplication guide asks for BF16 dimensions that are multiples of 64: 156,938
# rows become 156,992. No id uses the added rows; training only lowers their logits.
VOCABULARY_MULTIPLE = 64
LLAMA_3_ROPE_THETA = 500_000.0


class PackedLlama(LlamaForCausalLM):
    """Hugging Face's Llama, which also takes packed rows and returns losses, never all logits.

    Everything goes through `forward`, where FSDP and DDP hook in.
    """

    attention_kind: str = "mask"
    loss_kernel: str = "chunked"
    loss_chunk_tokens: int = 1024
    z_loss: float = 0.0
    adapter_identity: dict[str, Any] | None = None  # see training/adapter.py

    @property
    def num_embeddings(self) -> int:
        return self.model.embed_tokens.num_embeddings

    def hidden_states(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        document_index: torch.Tensor,
        document_boundaries: Sequence[int] | None = None,
    ) -> torch.Tensor:
        """Run the body with documents kept apart: [rows, tokens] to [rows, tokens, width]."""
        return self.model(
            input_ids=input_ids,
            position_ids=position_ids,
            use_cache=False,
            **attention_inputs(self.attention_kind, document_index, document_boundaries),
        ).last_hidden_state

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        input_ids: torch.Tensor | None = None,
        *,
        document_index: torch.Tensor | None = None,
        document_boundaries: Sequence[int] | None = None,
        labels: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        **others: Any,
    ) -> Losses | Any:
        """Return the losses of a batch of packed rows (see `training.data.batches.Batch`).

        For `document_boundaries` see `attention_inputs`. Without `document_index` this is Hugging
        Face's own forward, for generation.
        """
        if document_index is None:
            return super().forward(
                input_ids=input_ids,  # pyright: ignore[reportArgumentType]
                position_ids=position_ids,  # pyright: ignore[reportArgumentType]
                labels=labels,  # pyright: ignore[reportArgumentType]
                **others,
            )
        assert input_ids is not None
        assert position_ids is not None
        assert labels is not None
        device_type = input_ids.device.type
        head = self.lm_head.weight
        compute_dtype = head.dtype
        # On a CPU the head stays in FP32: the loss multiplies in FP32 there anyway, so rounding its
        # operands would only cost accuracy.
        if torch.is_autocast_enabled(device_type) and device_type != "cpu":
            compute_dtype = torch.get_autocast_dtype(device_type)
        return next_token_losses(
            self.hidden_states(input_ids, position_ids, document_index, document_boundaries),
            head,
            labels,
            chunk_tokens=self.loss_chunk_tokens,
            compute_dtype=compute_dtype,
            z_loss=self.z_loss,
            kernel=self.loss_kernel,
        )


def build_model(config: TrainConfig) -> PackedLlama:
    """Build the model of `config` with an embedding for every Orpheus id.

    Weights are the same on every rank, in FP32 unless `master_weights` says otherwise.
    Raises: ConfigError when the base model cannot be loaded or is not a Llama.
    """
    require_peft(config)
    torch.manual_seed(config.seed)  # random weights and added rows are equal on all ranks
    model, had = _load(config) if config.base_model else (_random(config.tiny), 0)
    model.config.use_cache = False
    model.attention_kind = "varlen" if config.attention == "auto" else config.attention
    model.set_attn_implementation(IMPLEMENTATIONS[model.attention_kind])
    model.loss_kernel = "chunked" if config.loss_kernel == "auto" else config.loss_kernel
    model.loss_chunk_tokens = config.loss_chunk_tokens
    model.z_loss = config.z_loss
    if config.master_weights == "bf16":
        model = model.bfloat16()
    else:
        require_master_weights(model)
    if config.adapter:
        add_adapter(model, config, had)
    return model


def _random(shape: TinyModelConfig) -> PackedLlama:
    rows = math.ceil(NUM_EMBEDDINGS / VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
    vocab_size = shape.vocab_size or rows
    return PackedLlama(
        LlamaConfig(
            **shape.model_dump(exclude={"vocab_size"}),
            vocab_size=vocab_size,
            max_position_embeddings=8192,
            rope_parameters={"rope_type": "default", "rope_theta": LLAMA_3_ROPE_THETA},
            tie_word_embeddings=True,
            bos_token_id=START_OF_TEXT if vocab_size > START_OF_TEXT else None,
            eos_token_id=END_OF_TEXT if vocab_size > END_OF_TEXT else None,
            dtype=torch.float32,
        )
    )


def _load(config: TrainConfig) -> tuple[PackedLlama, int]:
    """Load the base model, with a row for every id; also return how many rows it has itself."""
    name = config.base_model
    assert name is not None
    remedy = "Name another hub id or a folder in train.base_model, or null for a tiny random model."
    try:
        model_type = AutoConfig.from_pretrained(name).model_type
        if model_type != "llama":
            raise ConfigError(f"base model {name} is a {model_type}, not a llama", remedy=remedy)
        # Without dtype the checkpoint's would be kept, and BF16 weights lose small updates.
        model = PackedLlama.from_pretrained(name, dtype=torch.float32)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"base model {name} cannot be loaded", reason, remedy) from error
    had = model.num_embeddings
    if had < NUM_EMBEDDINGS:
        # mean_resizing uses a covariance of 1e-9, which gives almost the same row 28,682 times.
        model.resize_token_embeddings(
            NUM_EMBEDDINGS, pad_to_multiple_of=VOCABULARY_MULTIPLE, mean_resizing=False
        )
        matrices = {id(m): m for m in (model.model.embed_tokens.weight, model.lm_head.weight)}
        for matrix in matrices.values():  # a single one if they are tied, as in Llama 3.2
            fill_new_rows(matrix, had, config.new_rows.init, config.seed)
    return model, had


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
