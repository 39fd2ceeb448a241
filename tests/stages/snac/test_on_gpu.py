"""The encoder for GPUs, on a CPU: the package's codes, and for each clip those that it has alone."""

from __future__ import annotations

import logging
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.codec_distance import differing, entries_used, latents, package_codes
from koe.errors import StageError
from koe.memory import keep_memory
from koe.vocabulary import FRAME_SAMPLES, SLOTS
from stages.snac.architecture import fold_weight_norm
from stages.snac.encoder import TiledEncoder
from stages.snac.kernels import TorchKernels
from stages.snac.launches import LAUNCHES_IN_FLIGHT
from stages.snac.on_gpu import RowsEncoder, require_agreement
from stages.snac.packed import MOST_CHUNKS, PackedEncoder
from stages.snac.pieces import filled, frames_taken, num_frames, pieces, starts
from stages.snac.pointwise import TorchPointwise
from stages.snac.untrained import untrained_model
from tests.stages.snac.competing import competing_model
from tests.stages.snac.exact import assert_near_ties, exact_latents
from tests.stages.speech import speech_24k

CHUNK = 16
LONGEST = CHUNK - 2  # frames of a piece
ANY = sys.maxsize  # samples at once


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As in a worker."""
    torch.set_num_threads(1)
    keep_memory()


@pytest.fixture(scope="module")
def small() -> RowsEncoder:
    return RowsEncoder(competing_model(), TorchPointwise(), CHUNK)


@pytest.fixture(scope="module")
def full() -> RowsEncoder:
    return RowsEncoder(fold_weight_norm(untrained_model(0)[0]), TorchPointwise(), CHUNK)


def _packed(encoder: RowsEncoder) -> PackedEncoder:
    return PackedEncoder(encoder, torch.device("cpu"))


def _codes(packed: PackedEncoder, clips, batch_samples: int = ANY) -> list[np.ndarray]:
    names = [f"clip {number}" for number in range(len(clips))]
    found = list(packed.stream(enumerate(clips), batch_samples, names))
    assert [clip for clip, _ in found] == list(range(len(clips)))
    return [codes for _, codes in found]


@given(
    lengths=st.lists(st.integers(1, 40 * FRAME_SAMPLES), max_size=12),
    limits=st.lists(st.integers(CHUNK, 4 * CHUNK), min_size=1),
)
def test_pieces_cover_each_clip_once_with_its_surroundings(lengths, limits):
    context, remaining = 3, iter(limits * 1_000)
    clips = [np.arange(length) for length in lengths]
    cut = [one for n, clip in enumerate(clips) for one in pieces(n, clip, LONGEST, context)]
    covered = [0] * len(clips)
    for one in cut:
        assert one.frames <= LONGEST
        begin = int(one.audio[0]) // FRAME_SAMPLES + one.skip
        assert begin == covered[one.clip]
        covered[one.clip] += one.keep
        total = num_frames(lengths[one.clip])
        assert one.skip >= min(context, begin)
        assert one.frames - one.skip - one.keep >= min(context, total - covered[one.clip])
        assert one.last == (covered[one.clip] == total)
    assert covered == [num_frames(length) for length in lengths]

    asked = []
    batches = list(filled(iter(cut), lambda: asked.append(next(remaining)) or asked[-1]))
    assert [one for batch in batches for one in batch] == cut
    for batch in batches:
        assert frames_taken(batch) <= max(limits)
        ends = [at + one.frames for at, one in zip(starts(batch), batch, strict=True)]
        assert starts(batch) == [1, *(end + 1 for end in ends[:-1])]
        assert frames_taken(batch) == ends[-1] + 1


def test_codes_depend_on_no_frame_beyond_the_context(small):
    """Bit by bit: what lies farther away than the context changes nothing, one frame nearer does."""
    middle, changed = 10, []
    audio = speech_24k(20 * FRAME_SAMPLES)
    inside = torch.ones(2 * CHUNK, dtype=torch.uint8)
    for far in (None, small.context + 1, small.context):
        clip = torch.zeros(2 * CHUNK * FRAME_SAMPLES)
        clip[: len(audio)] = torch.from_numpy(audio)
        if far is not None:
            clip[: (middle - far + 1) * FRAME_SAMPLES] = 0.3
            clip[(middle + far) * FRAME_SAMPLES :] = -0.3
        with torch.inference_mode():
            changed.append(small.latents(clip, inside).view(2 * CHUNK, -1)[middle])
    assert torch.equal(changed[0], changed[1])
    assert not torch.equal(changed[0], changed[2])


@pytest.mark.law
@pytest.mark.slow
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_any_batch_gives_each_clip_the_codes_that_it_has_alone(data, small):
    frames = st.floats(0.001, 2.2 * CHUNK).map(lambda size: max(1, int(size * FRAME_SAMPLES)))
    lengths = data.draw(st.lists(frames, min_size=1, max_size=6), "lengths")
    order = data.draw(st.permutations(range(len(lengths))), "order")
    at_once = data.draw(st.sampled_from([0, 2 * CHUNK * FRAME_SAMPLES, ANY]), "at once")
    clips = [speech_24k(length, 9_000 * n) for n, length in enumerate(lengths)]
    alone = [_codes(_packed(small), [clip])[0] for clip in clips]
    together = _codes(_packed(small), [clips[n] for n in order], at_once)
    for codes, n in zip(together, order, strict=True):
        assert len(codes) == SLOTS * num_frames(lengths[n])
        assert codes.tolist() == alone[n].tolist()


def test_the_codes_of_that_law_compete(small):
    """Noise of the last bits changes many of them, and many entries are used."""
    clip = speech_24k(LONGEST * FRAME_SAMPLES)
    (codes,) = _codes(_packed(small), [clip])
    (other,) = _codes(_packed(small), [clip * np.float32(1 + 1e-7)])
    assert differing([codes], [other]) > 0.1 * len(codes)
    assert min(entries_used([codes])) > 0.3 * num_frames(len(clip))


@pytest.mark.slow
def test_latents_and_codes_are_as_near_to_fp64_as_the_packages(full):
    clips = [speech_24k(length, 7_000 * n) for n, length in enumerate((1, 2047, 9_000, 28_000))]
    together = _codes(_packed(full), clips)
    package = untrained_model(0)[0]
    tiled = TiledEncoder(fold_weight_norm(untrained_model(0)[0]), TorchKernels())
    for clip, codes in zip(clips, together, strict=True):
        assert_near_ties(codes, clip)
        assert codes.tolist() == package_codes(package, clip).tolist()
        with torch.inference_mode():
            expected = exact_latents(clip)
            theirs = (tiled.latents(torch.from_numpy(clip)) - expected).abs().max()
            ours = (_latents(full, clip) - expected).abs().max()
        assert ours < max(2 * theirs, 1e-5 * expected.abs().max())


def _latents(encoder: RowsEncoder, clip: np.ndarray) -> torch.Tensor:
    frames = num_frames(len(clip))
    audio = torch.zeros(CHUNK * FRAME_SAMPLES)
    audio[FRAME_SAMPLES : FRAME_SAMPLES + len(clip)] = torch.from_numpy(clip)
    inside = torch.zeros(CHUNK, dtype=torch.uint8)
    inside[1 : 1 + frames] = 1
    rows = encoder.latents(audio, inside).view(CHUNK, -1, encoder.width)
    return rows[1 : 1 + frames].flatten(0, 1).t()[None]


@pytest.mark.slow
def test_a_long_clip_that_is_cut_has_the_codes_of_the_whole(full):
    clip = speech_24k(37 * FRAME_SAMPLES + 5)
    (codes,) = _codes(_packed(full), [clip])
    assert_near_ties(codes, clip)
    whole = RowsEncoder(fold_weight_norm(untrained_model(0)[0]), TorchPointwise(), 40)
    assert differing([codes], _codes(_packed(whole), [clip])) <= 0.005 * len(codes)


def test_a_clip_of_nonsense_does_not_change_its_neighbours(small):
    clips = [speech_24k(2 * FRAME_SAMPLES, n) for n in (0, 50_000)]
    alone = [_codes(_packed(small), [clip])[0].tolist() for clip in clips]
    for value in (np.nan, np.inf, 1e30):
        nonsense = np.full(FRAME_SAMPLES + 9, value, np.float32)
        first, _, last = _codes(_packed(small), [clips[0], nonsense, clips[1]])
        assert [first.tolist(), last.tolist()] == alone


def test_agreement_with_the_package_is_required(small, monkeypatch):
    from stages.native.build import Unavailable

    require_agreement(small, competing_model(), "cpu", tf32=False)

    class Wrong(TorchPointwise):
        def snake(self, x, constants, inside, margin):
            return super().snake(x, constants, torch.ones_like(inside), margin)

    wrong = RowsEncoder(competing_model(), Wrong(), CHUNK)
    with pytest.raises(Unavailable, match="apart from the package's encoder"):
        require_agreement(wrong, competing_model(), "cpu", tf32=False)


class _Bounded:
    """An encoder whose launches of more than `most` frames run out of memory."""

    def __init__(self, encoder: RowsEncoder, most: int) -> None:
        self._encoder, self.most = encoder, most
        self.chunk_frames, self.context = encoder.chunk_frames, encoder.context
        self.launches: list[int] = []

    def encode(self, audio: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
        if len(inside) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
        self.launches.append(len(inside))
        return self._encoder.encode(audio, inside)


@pytest.mark.slow
def test_memory_that_runs_out_halves_the_launches_and_changes_no_code(small, caplog):
    clips = [speech_24k(length, 3 * length) for length in (30_000, 9_000, 80_000, 2_048) * 2]
    expected = [codes.tolist() for codes in _codes(_packed(small), clips)]
    bounded = _Bounded(small, 2 * CHUNK)
    packed = _packed(bounded)  # pyright: ignore[reportArgumentType]
    with caplog.at_level(logging.WARNING):
        found = _codes(packed, clips)
    assert [codes.tolist() for codes in found] == expected
    assert set(bounded.launches) <= {CHUNK, 2 * CHUNK}
    assert 2 * CHUNK in bounded.launches
    (said,) = caplog.records
    assert "SNAC found too little free memory for a batch" in said.getMessage()
    bounded.most = CHUNK
    assert [codes.tolist() for codes in _codes(packed, clips)] == expected
    assert len(caplog.records) == 1


def test_where_one_clip_does_not_fit_the_error_names_it(small):
    packed = _packed(_Bounded(small, 0))  # pyright: ignore[reportArgumentType]
    with pytest.raises(StageError, match=r"of clip 'clip 0' because CUDA out of memory") as caught:
        _codes(packed, [speech_24k(5_000), speech_24k(5_000, 9)])
    assert caught.value.clip_id == "clip 0"
    assert "gpus_per_worker" in caught.value.remedy


@pytest.mark.slow
@pytest.mark.parametrize(("fits", "largest"), [(0.5, 1), (2.1, 2), (3.9, 2), (1e3, MOST_CHUNKS)])
def test_no_launch_is_larger_than_what_memory_was_measured_to_hold(small, fits, largest):
    bounded = _Bounded(small, ANY)
    packed = _packed(bounded)  # pyright: ignore[reportArgumentType]
    packed._bound.limit = min(packed._bound.limit, fits * CHUNK)
    _codes(packed, [speech_24k(LONGEST * FRAME_SAMPLES)] * 9)
    assert max(bounded.launches) == largest * CHUNK


def test_a_few_launches_are_on_their_way_and_no_more(small):
    """Clips are asked for while launches run, and codes come out before all clips are read."""
    taken = 0

    def clips():
        nonlocal taken
        for number in range(9):
            taken += 1
            yield number, speech_24k(LONGEST * FRAME_SAMPLES)

    stream = _packed(small).stream(clips(), CHUNK * FRAME_SAMPLES, ["clip"] * 9)
    for number, (clip, _) in enumerate(stream):
        assert clip == number
        assert taken <= number + LAUNCHES_IN_FLIGHT + 1


def test_the_quantiser_chooses_the_packages_codes_of_the_same_latents(full):
    clip = speech_24k(CHUNK * FRAME_SAMPLES)
    model = fold_weight_norm(untrained_model(0)[0])
    values = latents(model, clip)
    with torch.inference_mode():
        found = full.quantized(values[0].t().contiguous())
        expected = [level[0].reshape(CHUNK, -1) for level in model.quantizer(values)[1]]
    assert torch.equal(found.long(), torch.cat(expected, dim=1))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["fp32", "tf32"])
def test_a_gpu_gives_each_clip_in_any_batch_the_codes_that_it_has_alone(precision):
    from stages.snac.codec import Codec, resolve_codec

    spec = resolve_codec("untrained", device="cuda", engine="fused", precision=precision)
    gpu = Codec.open(spec)
    lengths = (9_000, 30_000, 2_048, 8_200, 60_000, 24 * 40_000)
    clips = [speech_24k(length, 3 * length) for length in lengths]
    alone = [gpu.encode([clip])[0] for clip in clips]
    assert differing(gpu.encode(clips[::-1]), alone[::-1]) == 0
    for codes, clip in zip(alone[:-1], clips, strict=False):
        if precision == "fp32":
            assert_near_ties(codes, clip)
