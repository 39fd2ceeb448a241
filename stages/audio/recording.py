"""An audio file of which one clip or many are decoded: what it holds is found once."""

from __future__ import annotations

from threading import Lock

import numpy as np

from koe.errors import BadRecord
from stages.audio.containers import scan
from stages.audio.contents import Contents, whole
from stages.audio.flac import require_single
from stages.audio.links import AudioHeader, Scan
from stages.audio.sndfile import UNREADABLE, Joined, read
from stages.boundary import attempt_read


class Recording:
    """An encoded audio file; the first use walks over it, once, and keeps what it finds.

    A clip reads the frames or pages that it depends on, and gives the samples that decoding the
    whole file gives, bit for bit; only of Opus, whose decoder predicts a tone from itself, may
    a stationary tone differ (see `stages.audio.opus`). Threads may decode from one recording at the same time.
    """

    def __init__(self, contents: Contents) -> None:
        self.contents = contents
        self._lock = Lock()
        self._scanned: Scan | BadRecord | None = None

    @property
    def header(self) -> AudioHeader:
        """Return what the file holds.

        Raises: BadRecord as `stages.audio.containers.scan` does, or with reason chained_stream.
        """
        return self._scan().header

    @property
    def num_bytes_held(self) -> int:
        """Return about how much memory the recording takes, without cached blocks."""
        held = len(self.contents) if isinstance(self.contents, bytes) else 0
        if isinstance(self._scanned, Scan):
            held += sum(link.index_bytes for link in self._scanned.links)
        return held

    def read(self, start: int, num_frames: int) -> np.ndarray:
        """Decode float32 [num_frames, channels] from sample `start`, all of it or an error.

        Raises: BadRecord as `header`, or with reason unreadable_audio or truncated_audio.
        """
        scanned = self._scan()
        parts: list[np.ndarray] = []
        for link in scanned.links:
            there = link.header.num_frames
            wanted = min(there - start, num_frames)
            if wanted > 0:
                cut = link.cut(self.contents, start, wanted)
                parts.append(read(cut, wanted, scanned.header))
                num_frames -= wanted
            start = max(0, start - there)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _scan(self) -> Scan:
        with self._lock:
            if self._scanned is None:
                self._scanned = attempt_read(UNREADABLE, _scanned, self.contents)
        if isinstance(self._scanned, BadRecord):
            raise BadRecord(self._scanned.reason, self._scanned.detail)
        return self._scanned


def _scanned(contents: Contents) -> Scan:
    found = scan(Joined([whole(contents)]), len(contents))
    require_single(contents, found)
    return found
