"""The DNSMOS network on overlapping windows, with every layer that they share computed once.

Windows start 100 frames apart, which the two poolings before the last one divide, so a column of
features is the same in every window that holds it. Only the outermost `EDGE_COLUMNS` of a window
see the zeros that the convolutions pad it with; a segment of `EDGE_FRAMES` gives those. For n
windows 900 + 148 (n - 1) frames are computed instead of 900 n, and what remains for each window
(pooling, the last convolution, the head) is 0.2 % of the work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import onnx
import onnx.shape_inference
import torch
from onnx import numpy_helper
from onnx.utils import Extractor
from torch import Tensor

from koe.errors import KoeError, StageError
from stages.native.repeatable import deterministic_inference

Part = Callable[[Tensor], Tensor]  # of the network; FP32 in and out, on one device

HOP_SAMPLES = 16_000
WINDOW_SAMPLES = 144_160  # the model's fixed input
FRAME_SAMPLES, FRAME_HOP = 320, 160
WINDOW_FRAMES = 900
WINDOW_COLUMNS = WINDOW_FRAMES // 4  # after the two poolings that windows share
HOP_FRAMES, HOP_COLUMNS = 100, 25

# Four 3x3 convolutions before the first pooling, one before the second and one after it: a column
# of features depends on 4 + 2 + 4 frames on either side, which is less than three columns.
EDGE_COLUMNS = 3
EDGE_FRAMES = 2 * 4 * EDGE_COLUMNS
_CONTEXT_FRAMES = 4 * EDGE_COLUMNS
# More frames at once cost memory (82 kB per frame in the first layer) and save nothing.
_BAND_FRAMES = 2_000
_EDGES_AT_ONCE = _BAND_FRAMES // (2 * EDGE_FRAMES)


@dataclass(frozen=True)
class Parts:
    """The network cut in three, as serialised ONNX models of any number of frames.

    `spectrogram` maps frames [1, frames, 320] to log power [1, 1, frames, 161]; `shared` maps
    log power [n, 1, frames, 161] to features [n, 32, frames // 4, 40]; `head` maps the features
    of windows [n, 32, 225, 40] to raw scores [n, 3].

    The rest is what other engines than onnxruntime need: `filters` [2, 161, 320], the real and the
    imaginary part of the Fourier transform, and a weight and a bias for each convolution of
    `shared` (`weights`) and for the convolution and the dense layers of `head` (`head_weights`).
    """

    spectrogram: bytes
    shared: bytes
    head: bytes
    filters: np.ndarray
    weights: tuple[tuple[np.ndarray, np.ndarray], ...]
    head_weights: tuple[tuple[np.ndarray, np.ndarray], ...]


class UnknownNetwork(ValueError):
    """The model is not the network that can be cut."""


def cut(model_bytes: bytes) -> Parts:
    """Cut sig_bak_ovr.onnx at its log-power spectrogram and before its last pooling.

    Raises: UnknownNetwork when its layers are not those of DNSMOS P.835.
    """
    model = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(model_bytes))
    nodes = model.graph.node
    weights = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    planes = [node for node in nodes if node.op_type == "Conv" and weights[node.input[1]].ndim == 4]
    pools = [node for node in nodes if node.op_type == "MaxPool"]
    joins = [node for node in nodes if node.op_type == "Concat"]
    channels = [weights[node.input[1]].shape[:2] for node in planes]
    expected = [(128, 1), (64, 128), (64, 64), (32, 64), (32, 32), (32, 32), (64, 32)]
    if channels != expected or len(pools) != 3 or len(joins) != 1:
        raise UnknownNetwork(
            f"convolutions of {channels} channels, {len(pools)} poolings; expected {expected}, 3"
        )
    bases = [node for node in nodes if node.op_type == "Conv" and weights[node.input[1]].ndim == 3]
    dense = [node for node in nodes if node.op_type == "MatMul"]
    biases = {node.input[0]: node.input[1] for node in nodes if node.op_type == "Add"}
    frames, power, features = joins[0].output[0], planes[0].input[0], pools[2].input[0]
    return Parts(
        spectrogram=_extract(model, frames, power),
        shared=_extract(model, power, features),
        head=_extract(model, features, model.graph.output[0].name),
        filters=np.stack([weights[node.input[1]][:, :, 0] for node in bases]),
        weights=tuple((weights[node.input[1]], weights[node.input[2]]) for node in planes[:-1]),
        head_weights=(
            (weights[planes[-1].input[1]], weights[planes[-1].input[2]]),
            *((weights[node.input[1]], weights[biases[node.output[0]]]) for node in dense),
        ),
    )


def _extract(model: onnx.ModelProto, first: str, last: str) -> bytes:
    part = Extractor(model).extract_model([first], [last])
    for value in (*part.graph.input, *part.graph.output):
        value.type.tensor_type.ClearField("shape")  # the cut network takes any number of frames
    del part.graph.value_info[:]
    return part.SerializeToString()


@dataclass(frozen=True, eq=False)
class Clip:
    """A clip to score, `name` for errors, `key` whatever it is known by.

    `audio` float32 [samples] at 16 kHz; `starts` those of its windows, in samples of the clip
    repeated without end, ascending multiples of the hop.
    """

    key: Any
    name: str
    audio: np.ndarray
    starts: Sequence[int]

    def repeated(self) -> np.ndarray:
        """Return the clip as often as its windows need."""
        return np.tile(self.audio, -(-(self.starts[-1] + WINDOW_SAMPLES) // len(self.audio)))


@contextmanager
def computing(clips: Sequence[Clip]) -> Iterator[None]:
    """Compute scores of clips repeatably; whatever fails in it becomes a StageError that names them."""
    names = ", ".join(clip.name for clip in clips)
    try:
        with deterministic_inference():
            yield
    except KoeError:
        raise
    except Exception as error:  # those of onnxruntime and torch share no narrower base class
        raise StageError(
            f"DNSMOS failed on {'clip' if len(clips) == 1 else 'clips'} {names!r}",
            str(error).strip(),
            "Check memory and the execution provider; the unit can be resumed.",
            stage="score",
            clip_id=names,
        ) from error


@dataclass(frozen=True)
class Network:
    """The three parts bound to what runs them; `map_segments` may run segments in parallel."""

    spectrogram: Part
    shared: Part
    head: Part
    map_segments: Callable[[Part, Sequence[Tensor]], Iterator[Tensor]]

    def raw_scores_of(self, clips: Iterable[Clip]) -> Iterator[tuple[Clip, np.ndarray]]:
        """Yield every clip with its `raw_scores`, one by one. Raises: StageError."""
        for clip in clips:
            with computing([clip]):
                raw = self.raw_scores(clip.repeated(), clip.starts)
            yield clip, raw

    def raw_scores(self, audio: np.ndarray, starts: Sequence[int]) -> np.ndarray:
        """Return the raw outputs of windows of a clip.

        `audio` float32 [samples] at 16 kHz, `starts` of its windows in samples, multiples of
        the hop.
        Returns float32 [windows, 3] (sig, bak, ovrl before the quadratics).
        """
        samples = torch.from_numpy(audio)
        rows = [
            self._run_of(samples[first : first + WINDOW_SAMPLES + HOP_SAMPLES * (num - 1)], num)
            for first, num in consecutive(starts)
        ]
        return torch.cat(rows).numpy()

    def _run_of(self, samples: Tensor, num_windows: int) -> Tensor:
        frames = samples.unfold(0, FRAME_SAMPLES, FRAME_HOP)
        power = self.spectrogram(frames.contiguous().unsqueeze(0))
        bands = list(split_bands(power.shape[2]))
        segments = [power[:, :, band.start : band.stop] for band in bands]
        firsts = range(0, HOP_FRAMES * num_windows, HOP_FRAMES)
        lefts = [power[:, :, first : first + EDGE_FRAMES] for first in firsts[1:]]
        ends = [first + WINDOW_FRAMES for first in firsts[:-1]]
        rights = [power[:, :, end - EDGE_FRAMES : end] for end in ends]
        edges = [
            torch.cat((*lefts[at : at + _EDGES_AT_ONCE], *rights[at : at + _EDGES_AT_ONCE]))
            for at in range(0, num_windows - 1, _EDGES_AT_ONCE)
        ]
        features = list(self.map_segments(self.shared, [*segments, *edges]))
        inner, outer = features[: len(bands)], features[len(bands) :]
        parts = zip(bands, inner, strict=True)
        kept = [part[0, :, band.skip : band.skip + band.keep] for band, part in parts]
        return self.head(_windows(torch.cat(kept, dim=1), outer, num_windows))


def _windows(features: Tensor, edges: Sequence[Tensor], num_windows: int) -> Tensor:
    """Cut windows from the features of their run, and give each the edges of its own.

    `features` [32, columns, 40]; an item of `edges` [2 k, 32, 6, 40] holds left edges, then right.
    """
    windows = torch.stack(
        [
            features[:, first : first + WINDOW_COLUMNS]
            for first in range(0, HOP_COLUMNS * num_windows, HOP_COLUMNS)
        ]
    )
    at = 0
    for batch in edges:
        lefts, rights = batch.chunk(2)
        windows[at + 1 : at + 1 + len(lefts), :, :EDGE_COLUMNS] = lefts[:, :, :EDGE_COLUMNS]
        windows[at : at + len(rights), :, -EDGE_COLUMNS:] = rights[:, :, -EDGE_COLUMNS:]
        at += len(lefts)
    return windows


@dataclass(frozen=True)
class Band:
    """Frames `start` to `stop`; `keep` of their columns, after `skip`, have all of their context."""

    start: int
    stop: int
    skip: int
    keep: int


def split_bands(num_frames: int) -> Iterator[Band]:
    """Split a run of frames so that memory stays bounded, with the context that makes it exact."""
    num_bands = -(-num_frames // _BAND_FRAMES)
    bounds = [4 * round(num_frames / 4 * i / num_bands) for i in range(num_bands + 1)]
    for first, last in pairwise(bounds):
        start = max(0, first - _CONTEXT_FRAMES)
        stop = min(num_frames, last + _CONTEXT_FRAMES)
        yield Band(start, stop, (first - start) // 4, (last - first) // 4)


def consecutive(starts: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Group window starts that are one hop apart: the first of each group, and how many."""
    first, number = starts[0], 0
    for start in starts:
        if start != first + number * HOP_SAMPLES:
            yield first, number
            first, number = start, 0
        number += 1
    yield first, number
