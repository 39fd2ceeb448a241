"""SNAC's encoder for a GPU: a launch of rows of several clips at once, to codes.

The arithmetic is that of `snac/layers.py` and `snac/vq.py` (snac 1.2.1). Rows are time steps and
columns channels, as in `encoder.py`, whose folded weights this uses: 1x1 and strided convolutions
are then products of matrices, and all else is a pass over memory (`pointwise.py`). Nothing goes
back to the host before the codes of all three levels are there.

Products are taken of so many frames at a time, always the same number: the library chooses its
kernel, and with it the order of a sum, by the size of a product. A launch of any number of chunks
therefore gives a clip the same codes, at any place in it.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from snac import SNAC
from torch import Tensor
from torch.nn.functional import normalize, pad

from koe.vocabulary import FRAME_SAMPLES
from stages.native.build import Unavailable
from stages.native.repeatable import deterministic_inference, fp32_products
from stages.snac.encoder import Block
from stages.snac.kernels import TAPS
from stages.snac.pointwise import Pointwise, outside_zeroed

# 21.8 s: the last product, of 1,024 rows, then makes about half of an H200 busy, and each value
# of the first block is read from memory once.
CHUNK_FRAMES = 256

_NO_GPU = "torch finds no CUDA device on this machine"

# How far from the package's modules, in parts of the largest value, an encoder without fault may be.
# On a CPU FP32 was at most 2e-5 apart; TF32 keeps 10 bits of FP32's 23.
_FP32_APART, _TF32_APART = 1e-3, 0.1


class RowsEncoder:
    """Encodes launches of a multiple of `chunk_frames` frames, on the device of the model."""

    def __init__(self, model: SNAC, pointwise: Pointwise, chunk_frames: int = CHUNK_FRAMES) -> None:
        """Copy the encoder of `model` (weight norm removed; see `encoder.supports`)."""
        encoder: Any = model.encoder
        first, *blocks, last = encoder.block
        self.chunk_frames = chunk_frames
        self._pointwise = pointwise
        # One tap more, of zeros: rows of 8 values are aligned as the products want them.
        self._first = pad(first.weight[:, 0].t(), (0, 0, 0, 1)).contiguous()
        offsets = [first.bias, *(block.block[-1].bias for block in blocks)]
        self._blocks = [Block.of(*pair) for pair in zip(blocks, offsets[:-1], strict=True)]
        self._offset = offsets[-1]
        self._taps = last.weight[:, 0].t().contiguous()
        self._bias = last.bias
        self._levels = [_Level.of(level) for level in model.quantizer.quantizers]

    @property
    def width(self) -> int:
        """How many channels of the latents there are."""
        return len(self._bias)

    @property
    def context(self) -> int:
        """How many frames on either side of a frame its codes depend on."""
        reach, hop = TAPS // 2, 1
        for block in self._blocks:
            reach += hop * (block.stride // 2 + sum(unit.reach for unit in block.units))
            hop *= block.stride
        return -(-(reach + hop * (TAPS // 2)) // FRAME_SAMPLES)

    def encode(self, audio: Tensor, inside: Tensor) -> Tensor:
        """Encode a launch: float32 [2048 F], zero in the gaps, to int16 [F, 7].

        `inside`, uint8 [F], marks the frames that are of a clip. The columns are the codes of a
        frame, level by level.
        """
        rows = self.latents(audio, inside)
        with fp32_products():  # they are few, and their last bits choose the codes
            chunks = rows.chunk(len(inside) // self.chunk_frames)
            return torch.cat([self.quantized(chunk) for chunk in chunks])

    def latents(self, audio: Tensor, inside: Tensor) -> Tensor:
        """Return what is quantised: [4 F, channels]; outside clips it means nothing."""
        taps = len(self._first)
        windows = pad(audio, (TAPS // 2, taps - 1 - TAPS // 2)).unfold(0, taps, 1)
        x = audio.new_empty(len(audio), self._first.shape[1])
        self._product(windows, self._first, x, inside)
        for block in self._blocks:
            x = self._run(block, x, inside)
        x = pad(outside_zeroed(x + self._offset, inside), (0, 0, TAPS // 2, TAPS // 2))
        rows = len(x) - TAPS + 1
        out = self._bias.addcmul(self._taps[0], x[:rows])
        for k in range(1, TAPS):
            out.addcmul_(self._taps[k], x[k:][:rows])
        return out

    def _run(self, block: Block, x: Tensor, inside: Tensor) -> Tensor:
        """Return the output of a block, without its bias; overwrites `x`."""
        for unit in block.units:
            hidden = self._pointwise.unit(x, unit.constants, unit.dilation, inside)
            self._product(hidden, unit.weight, x, inside, onto=True)
        rows, stride = len(x), block.stride
        activated = self._pointwise.snake(x, block.snake, inside, stride // 2)
        out = x.new_empty(rows // stride, len(block.bias))
        # Windows overlap by half: two products of rows side by side, and none is copied.
        for half, weight in enumerate(block.weight.chunk(2)):
            windows = activated[half * stride :][:rows].view(len(out), -1)
            self._product(windows, weight, out, inside, onto=half > 0)
        return out

    def _product(
        self, rows: Tensor, weight: Tensor, out: Tensor, inside: Tensor, onto: bool = False
    ) -> None:
        """Write rows @ weight to `out`, or add it there, chunk by chunk."""
        chunks = len(inside) // self.chunk_frames
        for some, into in zip(rows.chunk(chunks), out.chunk(chunks), strict=True):
            torch.addmm(into, some, weight, beta=int(onto), out=into)

    def quantized(self, rows: Tensor) -> Tensor:
        """Choose the codes of a chunk: [4 F, channels] to int16 [F, 7]."""
        found = []
        for level in self._levels:
            codes, rows = level.quantize(rows)
            found.append(codes.view(self.chunk_frames, -1))
        return torch.cat(found, dim=1).to(torch.int16)


def fused_pointwise(device: str) -> Pointwise:
    """Return the kernels of Triton for a GPU, checked against torch.

    Raises: Unavailable where there is no GPU, no Triton or no C compiler, or when they disagree.
    """
    if not torch.cuda.is_available():
        raise Unavailable(_NO_GPU)
    try:
        from stages.snac.fused import checked_pointwise  # Triton is on machines with CUDA alone
    except ImportError as error:
        raise Unavailable(f"Triton cannot be imported ({error})") from error
    return checked_pointwise(device)


@cache
def why_not_fused() -> str:
    """Say why Triton's kernels do not run on this machine's GPU; empty where they do.

    They are tried in a process of their own, so that this one, which may not be the one that
    encodes, takes no memory of the GPU.
    """
    if not torch.cuda.is_available():
        return _NO_GPU
    command = [sys.executable, "-m", "stages.snac.fused"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    said = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"]
    return said[-1] if done.returncode else ""


def require_agreement(encoder: RowsEncoder, model: SNAC, device: str, tf32: bool) -> None:
    """Compare the encoder with the package's modules in FP32, on noise of two lengths in one launch.

    Raises: Unavailable when what is quantised differs by more than rounding.
    """
    audio = torch.zeros(encoder.chunk_frames * FRAME_SAMPLES, device=device)
    inside = torch.zeros(encoder.chunk_frames, dtype=torch.uint8, device=device)
    noise = torch.sin(torch.arange(len(audio), device=device) ** 2 * 1e-3)
    clips = [(1, 3), (5, 2)]  # first frame, frames
    for at, frames in clips:
        samples = slice(at * FRAME_SAMPLES, (at + frames) * FRAME_SAMPLES)
        audio[samples], inside[at : at + frames] = noise[samples], 1
    with deterministic_inference(tf32):
        rows = encoder.latents(audio, inside).view(encoder.chunk_frames, -1, encoder.width)
    for at, frames in clips:
        samples = slice(at * FRAME_SAMPLES, (at + frames) * FRAME_SAMPLES)
        with deterministic_inference():
            expected = model.encoder(audio[samples][None, None])[0].t()
        difference = (rows[at : at + frames].flatten(0, 1) - expected).abs().max()
        apart = (difference / expected.abs().max()).item()
        if not apart < (_TF32_APART if tf32 else _FP32_APART):
            raise Unavailable(f"it is {apart:.1e} apart from the package's encoder on this GPU")


@dataclass(frozen=True)
class _Level:
    """One quantiser: its projections, and its entries as they are and on the unit sphere."""

    stride: int
    into: Tensor  # [channels, dimensions]
    into_bias: Tensor
    out: Tensor  # [dimensions, channels]
    out_bias: Tensor
    entries: Tensor  # [entries, dimensions]
    directions: Tensor  # [dimensions, entries]
    half_squares: Tensor  # [entries], negative

    @classmethod
    def of(cls, level: Any) -> _Level:
        entries = level.codebook.weight
        directions = normalize(entries)
        return cls(
            level.stride,
            level.in_proj.weight[:, :, 0].t().contiguous(),
            level.in_proj.bias,
            level.out_proj.weight[:, :, 0].t().contiguous(),
            level.out_proj.bias,
            entries,
            directions.t().contiguous(),
            directions.square().sum(1) / -2,
        )

    def quantize(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the codes of rows [n, channels], int64 [n / stride], and what they leave of the rows."""
        windows = rows.view(-1, self.stride, rows.shape[1])
        inputs = torch.addmm(self.into_bias, windows.mean(1), self.into)
        # The nearest is that with the largest product less half its own square.
        nearness = torch.addmm(self.half_squares, normalize(inputs), self.directions)
        codes = nearness.argmax(1)
        chosen = torch.addmm(self.out_bias, self.entries[codes], self.out)
        return codes, (windows - chosen[:, None]).view_as(rows)
