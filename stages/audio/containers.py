"""Which container an audio file is, and the walk that finds what it holds.

What a header states is a promise. The length of a file is the number of samples that its frames, pages
or chunks hold; see the module of each container.
"""

from __future__ import annotations

from koe.errors import BadRecord
from stages.audio import flac, mpeg, ogg, riff
from stages.audio.links import Scan
from stages.audio.mpeg_frames import begins_frame, first_frame, is_free_format
from stages.audio.sndfile import Readable
from stages.audio.tags import skip_leading
from stages.file_signatures import looks_like

_MAX_LEADING_BYTES = 4096
# Of MP3 or Ogg, whose frames or pages are all walked over: a day and a half at 128 kbit/s.
_MAX_WALKED_BYTES = 1 << 31
# What is called .wav or .mp3 in corpora, and is neither.
_OTHERS = (
    (0, b"FORM", "AIFF"),
    (0, b"NIST_1A", "NIST SPHERE"),
    (0, b".snd", "AU"),
    (0, b"caff", "Core Audio"),
    (0, b"riff.\x91\xcf\x11\xa5\xd6\x28\xdb", "Wave64"),
    (0, b"Creative Voice File", "VOC"),
    (0, b"\x1a\x45\xdf\xa3", "Matroska or WebM"),
    (0, b"#!AMR", "AMR"),
    (0, b"\xff\xf1", "AAC (ADTS)"),
    (0, b"\xff\xf9", "AAC (ADTS)"),
    (0, b"0&\xb2u\x8ef\xcf\x11", "WMA (ASF)"),
    (0, b"FLV\x01", "Flash video"),
    (0, b"wvpk", "WavPack"),
    (0, b"MAC ", "Monkey's Audio"),
    (0, b"TTA1", "True Audio"),
    (0, b"tBaK", "TAK"),
    (0, b"ajkg", "Shorten"),
    (0, b"DSD ", "DSD"),
    (0, b"\x0bw", "AC-3"),
    (0, b"\x7f\xfe\x80\x01", "DTS"),
    (4, b"ftyp", "MPEG-4"),
    (188, b"G", "an MPEG transport stream"),
)
_CONVERT = "convert it, as `ffmpeg -i FILE FILE.flac` does"


def scan(file: Readable, num_bytes: int) -> Scan:
    """Find out what a WAV, FLAC, MP3 or Ogg file holds.

    Reads the head of a WAV file, head and tail of a FLAC file, and all of the others.

    Raises: BadRecord with reason empty_audio, unreadable_audio, truncated_audio, mixed_format,
    length_mismatch or record_too_large.
    """
    if num_bytes == 0:
        raise BadRecord("empty_audio", "no bytes")
    start = skip_leading(file)
    if start >= num_bytes:
        raise BadRecord("truncated_audio", "the file ends within its tag")
    file.seek(start)
    head = file.read(_MAX_LEADING_BYTES)
    if head[:4] in riff.MAGICS:
        return riff.scan(file, start, num_bytes)
    if head[:4] == b"fLaC":
        return flac.scan(file, start, num_bytes)
    if head[:4] == b"OggS" or begins_frame(head):
        if num_bytes > _MAX_WALKED_BYTES:
            detail = f"{num_bytes:,} bytes of audio, of at most {_MAX_WALKED_BYTES:,} of MP3 or Ogg"
            raise BadRecord("record_too_large", detail)
        data = file.contents()
        return ogg.scan(data, start) if head[:4] == b"OggS" else mpeg.scan(data, start, num_bytes)
    raise _unknown(head, start)


def _unknown(head: bytes, start: int) -> BadRecord:
    for place, magic, name in _OTHERS:
        if head[place:].startswith(magic) and (place < 188 or head.startswith(magic)):
            detail = f"not a WAV, FLAC, MP3 or Ogg file but {name}: {_CONVERT}"
            return BadRecord("unreadable_audio", detail)
    if name := looks_like(head):
        return BadRecord("unreadable_audio", f"not a WAV, FLAC, MP3 or Ogg file but {name}")
    if len(head) > 4 and head[0] == 0xFF and head[1] & 0xF0 == 0xF0 and head[1] & 4:
        detail = f"MPEG audio of layer I or II, not of layer III: {_CONVERT}"
        return BadRecord("unreadable_audio", detail)
    if is_free_format(head):
        detail = f"MPEG audio in free format, whose frames state no size: {_CONVERT}"
        return BadRecord("unreadable_audio", detail)
    if len(head) > 4 and (place := first_frame(head)) is not None:
        detail = f"the file begins within an MPEG frame: the first whole one is at byte {place}"
        return BadRecord("truncated_audio", detail)
    behind = f", behind {start} bytes of tags" if start else ""
    return BadRecord(
        "unreadable_audio",
        f"not a WAV, FLAC, MP3 or Ogg file: it begins with {head[:12]!r}{behind}",
    )
