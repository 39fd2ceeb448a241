"""Lhotse's pairs of manifests: `x_supervisions_y.jsonl.gz` beside `x_recordings_y.jsonl.gz`.

`lhotse prepare` leaves them so. A supervision names its recording by `recording_id`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from koe.errors import BadRecord
from stages.boundary import attempt_read
from stages.sources.fields import BROKEN_JSON, parse_object
from stages.sources.files.compressed import opened
from stages.sources.files.lines import lines
from stages.sources.files.opening import reading, stamp

_SUPERVISIONS, _RECORDINGS, _CUTS = "supervisions", "recordings", "cuts"


def recordings_beside(path: str) -> str | None:
    """Return the path of the recordings that the supervisions at `path` are of.

    None where its name does not say that it holds supervisions.
    """
    folder, slash, name = path.rpartition("/")
    before, found, after = name.rpartition(_SUPERVISIONS)
    if not found or _CUTS in name:
        return None
    return f"{folder}{slash}{before}{_RECORDINGS}{after}"


def cut_around(supervision: dict[str, Any], path: str, index_folder: str) -> dict[str, Any]:
    """Make the cut of a whole recording, one of those in the file at `path`, and its supervision.

    Raises: BadRecord; StorageError.
    """
    recording_id = str(supervision.get("recording_id"))
    with reading(path):
        line = _recordings(path, stamp(path), index_folder).get(recording_id)
    if line is None:
        raise BadRecord("missing_audio", f"{path} has no recording {recording_id!r}")
    recording = parse_object(line)
    place = {"id": recording_id, "start": 0, "duration": recording.get("duration")}
    return {**place, "supervisions": [supervision], "recording": recording}


@lru_cache(maxsize=2)  # the units of a file follow each other
def _recordings(path: str, mark: str, index_folder: str) -> dict[str, bytes]:
    """Map ids to the lines that describe the recordings; of an id that is repeated, the first."""
    found: dict[str, bytes] = {}
    with opened(path, mark, index_folder) as file:
        for _, _, line in lines(file, 0, None):
            recording = attempt_read(BROKEN_JSON, parse_object, line)
            if not isinstance(recording, BadRecord):
                found.setdefault(str(recording.get("id")), line)
    return found
