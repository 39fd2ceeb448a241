"""Clips on their way to a model: read, decoded and resampled ahead of their use."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from koe.errors import BadRecord
from koe.last_record import began
from stages.audio.decode import decode, resample
from stages.audio.recording import Recording
from stages.audio.sndfile import UNREADABLE
from stages.boundary import attempt_read, guarded
from stages.sources.files.opening import open_binary
from stages.sources.location import recordings

S = TypeVar("S")
T = TypeVar("T")
_END = object()

# Full scale is 1. Lossy decoders and resampling overshoot it by less than 2; beyond this the
# file holds integers stored as floats, or garbage, and a model would answer with garbage.
MAX_PEAK = 8.0


def prefetch(items: Iterable[T], depth: int = 2) -> Iterator[T]:
    """Yield `items` in order while one thread computes at most `depth` of them ahead.

    An exception of `items` is raised where its item would have been yielded.
    """
    iterator = iter(items)
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch")
    try:
        ahead = deque(pool.submit(next, iterator, _END) for _ in range(depth))
        while (item := ahead.popleft().result()) is not _END:
            ahead.append(pool.submit(next, iterator, _END))
            yield item  # pyright: ignore[reportReturnType]
    finally:
        pool.shutdown(cancel_futures=True)
        if isinstance(iterator, Generator):
            iterator.close()


def load_clips(
    clips: pa.Table, audio_hz: int, num_threads: int = 1, index_folder: str = ""
) -> Iterator[np.ndarray | BadRecord]:
    """Yield the audio of every row of a CLIP-like table in order.

    Gives float32 [samples], mono, at `audio_hz`, or the reason why a clip has none. One thread
    reads ahead of its use, `num_threads` decode and resample (0.7 ms per second of audio, which a
    GPU outruns; the libraries release the interpreter's lock). `index_folder`: as in `SourceFiles`.
    """
    parts = (clips[name].to_pylist() for name in ("id", "start_seconds", "seconds", "channel"))
    read = zip(recordings(clips, index_folder), *parts, strict=True)

    def load(
        clip: tuple[Recording | BadRecord, str, float, float, int | None],
    ) -> np.ndarray | BadRecord:
        recording, clip_id, start, seconds, channel = clip
        began(clip_id or "")  # a row of no run may have none
        if isinstance(recording, BadRecord):
            return recording
        audio = attempt_read(UNREADABLE, _load, recording, audio_hz, start, seconds, channel)
        return audio if isinstance(audio, BadRecord) else audio[0]

    return in_threads(load, prefetch(read), num_threads)


def in_threads(
    function: Callable[[S], T], items: Iterable[S], num_threads: int, depth: int = 2
) -> Iterator[T]:
    """Yield `function` of each item in order, with at most `depth` per thread computed ahead."""
    pool = ThreadPoolExecutor(num_threads, "load")
    ahead: deque[Future[T]] = deque()
    try:
        for item in items:
            ahead.append(pool.submit(function, item))
            if len(ahead) > depth * num_threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        if isinstance(items, Generator):
            items.close()


def _load(
    recording: Recording,
    audio_hz: int,
    start: float = 0.0,
    seconds: float | None = None,
    channel: int | None = None,
) -> tuple[np.ndarray, float]:
    """Decode float32 [samples] at `audio_hz`, and tell how many seconds the file holds of them."""
    audio, from_hz = decode(recording, start, seconds, channel)
    peak = float(np.abs(audio).max())
    if peak > MAX_PEAK:
        raise BadRecord("out_of_scale_audio", f"peak {peak:.3g}, full scale is 1")
    return resample(audio, from_hz, audio_hz), len(audio) / from_hz


def load_file(path: str, audio_hz: int) -> tuple[np.ndarray, float]:
    """Read a complete audio file: float32 [samples] at `audio_hz`, and its length in seconds.

    Raises: BadRecord, also when the file cannot be read.
    """
    try:
        with open_binary(path) as file:
            data = file.read()
    except OSError as error:
        raise BadRecord("unreadable_file", error.strerror or str(error)) from error
    with guarded(UNREADABLE):
        return _load(Recording(data), audio_hz)


def location(clip: dict[str, Any]) -> str:
    """Say where a clip's audio lies: its file, or the archive with the member and byte or row in it."""
    path, member, offset = (clip[f"audio_{key}"] for key in ("path", "member", "offset"))
    return f"{path}:{member}@{offset}" if member or offset else path
