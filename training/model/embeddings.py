"""Initial values of the embedding rows that the base model does not have."""

from __future__ import annotations

import math

import numpy as np
import torch

from koe.errors import ContractError
from koe.vocabulary import CODEBOOK_SIZE, FIRST_AUDIO, NUM_EMBEDDINGS, SLOTS, unflatten_codes

SMALL_STD = 0.02  # Llama's own initializer_range
_CHUNK_ROWS = 8192  # old rows that are centred at once: 96 MiB at width 3072
_SHARE = math.sqrt(0.5)  # of each of two draws, so that their sum has the variance of one


@torch.no_grad()
def fill_new_rows(weight: torch.Tensor, first_new_row: int, init: str, seed: int) -> None:
    """Fill `weight` [rows, width] in place from `first_new_row` on; the rows before stay.

    `mean_cov` draws from the normal distribution with the mean and the covariance of the old rows.
    The new logits are then as large as the old ones, so that the new ids do not outweigh all text
    at the start, as rows near zero may (Hewitt 2021, "Initializing New Word Embeddings for
    Pretrained Language Models"). `per_codebook` does the same, but half of an audio row's variance
    is shared by its slot and half by its code, see `_audio_noise`. `small_random` is N(0, 0.02).

    The noise depends on `seed` alone and is drawn on the CPU, so every rank gets the same rows.
    Raises: ContractError when there is no old row to learn from, or `init` is unknown.
    """
    num_rows, width = weight.shape
    if not 0 < first_new_row <= num_rows:
        raise ContractError(
            f"new embedding rows cannot start at {first_new_row} of {num_rows}",
            "they are drawn after the rows before them",
        )
    num_new = num_rows - first_new_row
    if not num_new:
        return
    generator = torch.Generator().manual_seed(seed)
    if init == "small_random":
        rows = torch.randn(num_new, width, generator=generator) * SMALL_STD
    elif init in ("mean_cov", "per_codebook"):
        mean, root = _mean_and_root(weight[:first_new_row])
        noise = torch.randn(num_new, width, generator=generator)
        if init == "per_codebook":
            ids = torch.arange(first_new_row, num_rows)
            audio = (ids >= FIRST_AUDIO) & (ids < NUM_EMBEDDINGS)
            noise[audio] = _audio_noise(ids[audio], width, generator)
        rows = torch.addmm(mean, noise, root)
    else:
        raise ContractError(
            f"{init!r} is not a way to initialise embedding rows", "the config has other names"
        )
    weight[first_new_row:] = rows.to(weight)


def _mean_and_root(old: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean [width] of `old` [rows, width] and the root of its covariance, FP32.

    The symmetric root is the only one that does not depend on the signs or the rotation of
    eigenvectors, which differ between libraries and so between ranks. Fewer rows than `width`, or
    equal ones, give eigenvalues of zero.
    """
    num_rows, width = old.shape
    mean = old.mean(0, dtype=torch.float64).cpu()
    covariance = torch.zeros(width, width, dtype=torch.float64)
    for part in old.split(_CHUNK_ROWS):
        centred = (part.cpu() - mean).float()
        covariance += centred.T @ centred
    values, vectors = torch.linalg.eigh(covariance / num_rows)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    return mean.float(), root.float()


def _audio_noise(ids: torch.Tensor, width: int, generator: torch.Generator) -> torch.Tensor:
    """Return standard normal noise [ids, width] that depends on slot and code.

    Rows of one slot share half of the variance, so that the seven slots differ from the first step
    on; rows of one entry of a codebook share the other half, whichever slot it is in. Two rows that
    share neither are independent.
    """
    codebooks = unflatten_codes(np.arange(SLOTS))  # the slots that each codebook fills
    codebook_of_slot = torch.empty(SLOTS, dtype=torch.int64)
    for codebook, slots in enumerate(codebooks):
        codebook_of_slot[torch.from_numpy(slots)] = codebook
    of_slot = torch.randn(SLOTS, width, generator=generator)
    of_code = torch.randn(len(codebooks) * CODEBOOK_SIZE, width, generator=generator)
    slot, code = (ids - FIRST_AUDIO) // CODEBOOK_SIZE, (ids - FIRST_AUDIO) % CODEBOOK_SIZE
    return _SHARE * (of_slot[slot] + of_code[codebook_of_slot[slot] * CODEBOOK_SIZE + code])
