"""Attention within documents of packed rows.

Two kinds compute the same. `varlen` works on the square of each document: a flash kernel takes the
documents' boundaries on a GPU, scaled dot-product attention takes one document after another on a
CPU. `mask`, a dense block mask, works on the square of the row and is the oracle. Measured on a CPU
(FP32, one core, 2 rows of 512 tokens, 6 documents each, width 64 to 256, forward and backward),
varlen takes 0.3 to 0.5 of the mask's time, and a 2-layer body 0.6 to 0.75.

Each kind is an attention function of transformers, so that the model stays Hugging Face's own. A
pass that names no documents (generation) is scaled dot-product attention under both.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch.nn import functional
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from koe.errors import ConfigError

# kind: the name that the model's `set_attn_implementation` knows it by
IMPLEMENTATIONS = {"mask": "sdpa", "varlen": "koe_varlen"}

# Flash kernels work on tiles of this many queries, so rounding the longest length up to a tile costs
# nothing, and a compiled layer, which specialises on the number, sees few different ones.
_TILE_TOKENS = 128


def attention_inputs(
    kind: str, document_index: torch.Tensor, boundaries: Sequence[int] | None = None
) -> dict[str, Any]:
    """Return what LlamaModel.forward needs to keep documents apart; made once per batch.

    `document_index`: integer [rows, tokens], 0, 1, 2.. within a row, -1 at padding. `boundaries` is
    what `document_boundaries` makes of it, for varlen only. Without it the boundaries are computed
    here, which makes the process wait for all of a GPU's work where the index is on a GPU.
    """
    if kind == "mask":
        return {"attention_mask": document_causal_mask(document_index)}
    starts = document_boundaries(document_index) if boundaries is None else boundaries
    longest = max(end - start for start, end in pairwise(starts))
    return {
        # transformers takes anything of four dimensions for a finished mask, and builds none.
        "attention_mask": document_index.new_empty(0, 0, 0, 0),
        "document_starts": torch.tensor(starts, dtype=torch.int32, device=document_index.device),
        "longest_document": -(-longest // _TILE_TOKENS) * _TILE_TOKENS,
    }


def document_boundaries(document_index: torch.Tensor) -> list[int]:
    """Return where documents start in the flattened rows, and the number of all tokens last.

    A run of one index within one row is a document; so is a row's padding.
    """
    index = document_index.cpu()
    starts = torch.ones_like(index, dtype=torch.bool)
    starts[:, 1:] = index[:, 1:] != index[:, :-1]
    return [*starts.flatten().nonzero().squeeze(1).tolist(), index.numel()]


def document_causal_mask(document_index: torch.Tensor) -> torch.Tensor:
    """Mark which token may attend to which: earlier ones of its own document, and itself.

    `document_index`: integer [rows, tokens], -1 at padding. Returns bool [rows, 1, tokens,
    tokens], true where query (third axis) may see key. Padding sees padding, because a query
    that sees nothing would make softmax return NaN.
    """
    num_tokens = document_index.shape[1]
    same = document_index.unsqueeze(2) == document_index.unsqueeze(1)
    causal = torch.ones(num_tokens, num_tokens, dtype=torch.bool, device=same.device).tril()
    return (same & causal).unsqueeze(1)


def _attend_varlen(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    document_starts: torch.Tensor | None = None,
    longest_document: int = 0,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attend within documents; [rows, heads, tokens, width] to [rows, tokens, heads, width]."""
    if document_starts is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )
    if dropout:
        raise ConfigError(
            f"the base model asks for attention dropout of {dropout}",
            "the kernels for packed rows have no dropout",
            "Set attention_dropout to 0 in its config.json, or train.attention: mask.",
        )
    rows, num_tokens = query.shape[0], query.shape[2]
    # To [rows * tokens, heads, width], in the dtype of `value`, which comes straight from its
    # projection: under autocast that is the low one, while the rotation leaves queries and keys in
    # FP32, and autocast does not know `varlen_attn`.
    query, key, value = (
        states.to(value.dtype).transpose(1, 2).flatten(0, 1) for states in (query, key, value)
    )
    if query.device.type == "cpu":
        attended = _each_document(query, key, value, document_starts, scaling)  # pyright: ignore[reportCallIssue]
    else:
        attended = _flash(query, key, value, document_starts, longest_document, scaling)
    return attended.unflatten(0, (rows, num_tokens)), None


def _flash(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    starts: torch.Tensor,
    longest: int,
    scaling: float | None,
) -> torch.Tensor:
    """Attend with torch's flash kernel, which accepts fewer key heads than query heads.

    The docstring of 2.11 does not say so, but the kernel does; pytorch/torchtitan pull request 2259
    relies on that too.
    """
    if query.dtype not in (torch.bfloat16, torch.float16):
        raise ConfigError(
            f"train.attention varlen cannot compute in {query.dtype} on a GPU",
            "the flash kernel takes BF16 and FP16 only",
            "Set train.precision: bf16, or train.attention: mask for FP32.",
        )
    attended = varlen_attn(
        query, key, value, starts, starts, longest, longest, scale=scaling, window_size=(-1, 0)
    )
    assert isinstance(attended, torch.Tensor)  # a pair only if return_aux asks for it
    return attended


@torch.compiler.disable  # lengths differ from batch to batch: each would compile the layer anew
def _each_document(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    starts: torch.Tensor,
    scaling: float | None,
) -> torch.Tensor:
    lengths = starts.diff().tolist()
    documents = zip(*(states.split(lengths) for states in (query, key, value)), strict=True)
    attended = [
        functional.scaled_dot_product_attention(
            *(states.transpose(0, 1).unsqueeze(0) for states in document),
            is_causal=True,
            scale=scaling,
            enable_gqa=True,
        )
        for document in documents
    ]
    return torch.cat(attended, dim=2).squeeze(0).transpose(0, 1)


AttentionInterface.register(IMPLEMENTATIONS["varlen"], _attend_varlen)
AttentionMaskInterface.register(IMPLEMENTATIONS["varlen"], sdpa_mask)  # for generation
