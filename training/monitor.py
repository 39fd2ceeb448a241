"""What shows trouble before the loss does: update sizes, row norms, split losses, and speed."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from koe.errors import ContractError
from koe.vocabulary import CODEBOOK_SIZE, FIRST_AUDIO, NUM_BASE, SLOTS
from training.data.batches import IGNORED, Batch
from training.data.shard_rows import Row
from training.data.shard_summary import MODALITIES
from training.model.distributed import Ranks
from training.model.optim import adam_direction, local, local_new_rows

# Parts of parameter names, in the order in which they are searched, and their groups.
_GROUP_OF = {
    "embed_tokens": "embedding",
    "lm_head": "embedding",  # a separate parameter only if the base model is not tied
    "self_attn": "attention",
    "mlp": "mlp",
    "norm": "norm",
}
_PIECE_NUMBERS = 2**24  # 64 MiB of FP32 bound the temporaries of the largest matrix

# Dense BF16 tensor FLOP/s; NVIDIA's data sheets give twice that, "with sparsity". The first entry
# whose words occur in the device's name counts: an H100 NVL is not an SXM module, and an RTX A1000
# is not an A100.
_PEAK_FLOPS = {
    "GB200": 2500e12,
    "B200": 2250e12,
    "GH200": 989e12,
    "H200 NVL": 835e12,
    "H200": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
}


@torch.no_grad()
def update_ratios(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    rate: float,
    ranks: Ranks,
    *,
    new_rows_factor: float = 1.0,
    first_new_row: int = NUM_BASE,
) -> dict[str, float]:
    """Return ||last update|| / ||weights after it|| of each group of parameters.

    The groups are embedding_old, embedding_new, attention, mlp and norm, as far as they exist and are
    trained; an adapter's matrices count where they stand, and alone.
    The update is computed from AdamW's moments, so this is called after an applied step, with that
    step's `rate` and `new_rows_factor`; clipping is contained in the moments. Every rank must call
    it: their local sums are added up. Replicated parameters (DDP) then count once per rank, which
    does not change a ratio. Reason: the spikes of Marin 32B showed in the update norm before loss
    and gradient norm (marin-community/marin, docs/reports/marin-32b-retro.md).
    """
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    sums: dict[str, torch.Tensor] = {
        f"{name}{part}": torch.zeros(2, dtype=torch.float64, device=ranks.device)
        for name in dict.fromkeys(_GROUP_OF.values())
        for part in (("_old", "_new") if name == "embedding" else ("",))
    }
    for name, parameter in model.named_parameters():
        group = groups.get(id(parameter))
        if group is None:  # an adapter leaves it as it is
            continue
        state: dict[str, Any] = optimizer.state.get(parameter, {})
        weight = local(parameter)
        for group_name, part in _pieces(name, parameter, first_new_row):
            own_rate = rate * (new_rows_factor if group_name == "embedding_new" else 1)
            squares = [torch.linalg.vector_norm(weight[part], dtype=torch.float64).square()]
            update = _update(weight[part], state, group, part, own_rate)
            squares.append(torch.linalg.vector_norm(update, dtype=torch.float64).square())
            sums[group_name] += torch.stack(squares)
    totals = torch.tensor(ranks.sums(torch.cat(list(sums.values())).tolist())).view(-1, 2)
    return {
        name: (update / weight) ** 0.5
        for name, (weight, update) in zip(sums, totals.tolist(), strict=True)
        if weight
    }


def _update(
    weight: torch.Tensor, state: dict[str, Any], group: dict[str, Any], part: slice, rate: float
) -> torch.Tensor:
    """Return what AdamW subtracted to arrive at `weight`."""
    if not state:  # never had a gradient
        return torch.zeros_like(weight)
    update = adam_direction(state, group, part).mul_(rate)
    decay = rate * group["weight_decay"]
    if decay:  # AdamW decays the weight before the step: (weight + update) / (1 - decay)
        update += (weight + update) * (decay / (1 - decay))
    return update


def _pieces(name: str, parameter: torch.Tensor, first_new_row: int) -> Iterator[tuple[str, slice]]:
    """Yield (group, rows of the local shard) that together cover the parameter's shard."""
    group = next((group for key, group in _GROUP_OF.items() if key in name), None)
    if group is None:
        raise ContractError(f"parameter {name} is in no group", "a Llama has no such parameter")
    num_rows = len(local(parameter))
    bounds = [(group, 0, num_rows)]
    if group == "embedding":
        first = local_new_rows(parameter, first_new_row)
        bounds = [("embedding_old", 0, first), ("embedding_new", first, num_rows)]
    step = max(1, _PIECE_NUMBERS // parameter.shape[1:].numel())
    for group_name, start, stop in bounds:
        for begin in range(start, stop, step):
            yield group_name, slice(begin, min(begin + step, stop))


@torch.no_grad()
def row_norms(
    model: nn.Module, ranks: Ranks, *, first_new_row: int = NUM_BASE
) -> dict[str, float | None]:
    """Return the mean norm of the embedding's `old` and `new` rows, None where there are none.

    Every rank must call it.
    """
    weight = next(m.weight for m in model.modules() if isinstance(m, nn.Embedding))
    norms = torch.linalg.vector_norm(local(weight).float(), dim=1).double()
    first = local_new_rows(weight, first_new_row)
    parts = (norms[:first], norms[first:])
    values = [value for part in parts for value in (float(part.sum()), float(len(part)))]
    old_sum, old, new_sum, new = ranks.sums(values)
    return {"old": old_sum / old if old else None, "new": new_sum / new if new else None}


def flops_per_token(
    model_config: LlamaConfig, num_parameters: int, row_tokens: int, frozen: int = 0
) -> tuple[float, float]:
    """Return the FLOPs per token of forward and backward pass, with (full, causal) attention.

    6 for each of `num_parameters` (a tied matrix counts once) except those that are only looked
    up, 4 for each of the `frozen` ones (see `num_frozen`), and 12 x layers x heads x head_dim x row_tokens for attention, as in PaLM's appendix B
    (arXiv 2204.02311); a causal kernel needs half of that. Neither recomputed activations nor the
    boundaries of documents are taken into account.
    """
    heads = model_config.num_attention_heads
    head_dim = model_config.head_dim or model_config.hidden_size // heads
    looked_up = 0  # a tied matrix multiplies too, as the head
    if not model_config.tie_word_embeddings:
        looked_up = model_config.vocab_size * model_config.hidden_size
    matrices = 6.0 * (num_parameters - looked_up) - 2.0 * frozen
    attention = 12.0 * model_config.num_hidden_layers * heads * head_dim * row_tokens
    return matrices + attention, matrices + attention / 2


def num_frozen(model: LlamaForCausalLM) -> int:
    """Count the parameters that are multiplied with, but have no gradient of their own to compute."""
    head = model.lm_head.weight
    return sum(
        weight.numel()
        for name, weight in model.named_parameters()
        if not weight.requires_grad and ("embed_tokens" not in name or weight is head)
    )


def peak_flops(device_name: str, override_tflops: float | None) -> float | None:
    """Return the dense BF16 FLOP/s of a device, None if unknown; `override_tflops` comes first.

    `device_name` is that of `torch.cuda.get_device_name`. Source: NVIDIA's data sheets.
    """
    if override_tflops is not None:
        return override_tflops * 1e12
    if " MIG " in device_name:  # a slice of the GPU
        return None
    found = (flops for name, flops in _PEAK_FLOPS.items() if re.search(rf"\b{name}\b", device_name))
    return next(found, None)


def loss_sums(
    token_losses: torch.Tensor, labels: torch.Tensor, source: torch.Tensor, num_sources: int
) -> torch.Tensor:
    """Add up losses and count supervised tokens: float64 [num_sources + 8, 2], on the device.

    The rows are the sources, the seven slots of a frame, and the tokens that are not audio; the
    last eight together count every supervised token once. `token_losses`, `labels` and `source`
    are [rows, tokens]; `source` is -1 at padding. A loss that is not finite affects only its own
    rows of the result.
    """
    supervised = labels != IGNORED
    slot = (labels - FIRST_AUDIO).div(CODEBOOK_SIZE, rounding_mode="floor")
    slot = torch.where((slot >= 0) & (slot < SLOTS), slot, SLOTS)
    numbers = torch.arange(num_sources + SLOTS + 1, device=labels.device)[:, None]
    # Masks, because a GPU's scatter_add of floats adds in a different order in each run.
    member = (source.flatten() == numbers) | (slot.flatten() == numbers - num_sources)
    member &= supervised.flatten()
    sums = torch.where(member, token_losses.flatten().double(), 0.0).sum(1)
    return torch.stack([sums, member.sum(1).double()], dim=1)


def split_losses(
    sums: torch.Tensor, source_names: Sequence[str]
) -> tuple[dict[str, float | None], list[float | None]]:
    """Return mean losses by source and by slot (7) from `loss_sums`, None without tokens."""
    means = [total / count if count else None for total, count in sums.tolist()]
    by_source = dict(zip(source_names, means[: len(source_names)], strict=True))
    return by_source, means[len(source_names) : len(source_names) + SLOTS]


def split_by_modality(
    sums: torch.Tensor, source_modality: Mapping[str, str]
) -> dict[str, float | None]:
    """Return mean losses by modality from `loss_sums`, None without tokens.

    `source_modality`: the modality of each source, in the order of the rows of `sums`.
    """
    kinds = list(source_modality.values())
    found = {}
    for modality in MODALITIES:
        chosen = [place for place, kind in enumerate(kinds) if kind == modality]
        total, count = sums[chosen].sum(0).tolist()
        found[modality] = total / count if count else None
    return found


def document_losses(
    token_losses: torch.Tensor, labels: torch.Tensor, document_index: torch.Tensor
) -> list[list[tuple[float | None, int]]]:
    """Return (mean loss, supervised tokens) of each document of each row, None without tokens.

    All tensors are [rows, tokens]; `document_index` is -1 at padding.
    """
    supervised = labels != IGNORED
    numbers = torch.arange(int(document_index.max()) + 1, device=labels.device)
    member = document_index.unsqueeze(-1) == numbers  # [rows, tokens, documents]
    member_supervised = member & supervised.unsqueeze(-1)
    losses = torch.where(member_supervised, token_losses.double().unsqueeze(-1), 0.0)
    sums = torch.stack([losses.sum(1), member_supervised.sum(1).double()], dim=-1)
    documents = (document_index.amax(1) + 1).tolist()
    return [
        [(total / count if count else None, int(count)) for total, count in row[:num]]
        for row, num in zip(sums.tolist(), documents, strict=True)
    ]


@dataclass(frozen=True)
class DocumentLoss:
    """Mean loss over the supervised tokens of a document, None where it has none."""

    row: int
    id: str
    source: str
    modality: str
    tokens: int  # supervised
    loss: float | None


def describe_documents(
    rows: Sequence[Row], batch: Batch, token_losses: torch.Tensor
) -> list[DocumentLoss]:
    """Return the loss of every document of a batch that was made of `rows`.

    `token_losses`: [rows, tokens].
    """
    per_row = document_losses(token_losses.cpu(), batch.labels, batch.document_index)
    return [
        DocumentLoss(row.index, id, source, modality, tokens, loss)
        for row, losses in zip(rows, per_row, strict=True)
        for id, source, modality, (loss, tokens) in zip(
            row.document_ids, row.document_sources, row.document_modalities, losses, strict=True
        )
    ]


def worst_first(documents: Sequence[DocumentLoss]) -> list[DocumentLoss]:
    """Sort by loss, the highest first: after those that are not finite, before those without."""

    def badness(document: DocumentLoss) -> float:
        if document.loss is None:
            return -math.inf
        return document.loss if math.isfinite(document.loss) else math.inf

    return sorted(documents, key=badness, reverse=True)
