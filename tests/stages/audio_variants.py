"""Audio files as other writers leave them: joined, tagged, without lengths or with wrong ones; and FFmpeg."""

from __future__ import annotations

import io
import struct
from fractions import Fraction
from typing import cast

import av
import av.error
import numpy as np
import pytest

from stages.audio.contents import BlockCache, Blocks

ID3V1 = b"TAG" + b"a title".ljust(125, b"\0")


def use_small_blocks(monkeypatch: pytest.MonkeyPatch, block_bytes: int = 5_000) -> None:
    """Let walks over files take small blocks, so that small files have many."""
    for name in ("contents.BLOCK_BYTES", "flac.BLOCK_BYTES", "mpeg_frames._CHUNK_BYTES"):
        monkeypatch.setattr(f"stages.audio.{name}", block_bytes)


def in_blocks(data: bytes, block_bytes: int = 4_096) -> Blocks:
    """Give `data` as a large file is read: in blocks, of which few are kept."""
    cache = BlockCache(3 * block_bytes)
    return Blocks(len(data), lambda start, stop: data[start:stop], cache, block_bytes)


def id3v2(num_bytes: int = 64) -> bytes:
    """Make an ID3v2.4 tag of `num_bytes` behind its header."""
    size = bytes(num_bytes >> shift & 0x7F for shift in (21, 14, 7, 0))
    frame = b"TIT2" + struct.pack(">IH", 6, 0) + b"\3title"
    return b"ID3\4\0\0" + size + frame[:num_bytes].ljust(num_bytes, b"\0")


def ape(num_bytes: int = 40) -> bytes:
    """Make an APEv2 tag with header and footer around `num_bytes` of items."""

    def ends(flags: int) -> bytes:
        return struct.pack("<8sIIII8x", b"APETAGEX", 2000, num_bytes + 32, 1, flags)

    return ends(0xA0000000) + b"\1" * num_bytes + ends(0x80000000)


def ffmpeg_encoded(
    audio: np.ndarray, audio_hz: int, container: str, codec: str, **options: str
) -> bytes:
    """Encode float32 [samples] with FFmpeg."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container, options=options) as output:
        stream = cast(av.AudioStream, output.add_stream(codec, rate=audio_hz))
        stream.layout = "mono"
        resampler = av.AudioResampler(stream.format.name, "mono", audio_hz, frame_size(stream))
        frame = av.AudioFrame.from_ndarray(audio.reshape(1, -1), "fltp", "mono")
        frame.sample_rate, frame.pts, frame.time_base = audio_hz, 0, Fraction(1, audio_hz)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            output.mux(stream.encode(part))
        output.mux(stream.encode(None))
    return buffer.getvalue()


def frame_size(stream: av.AudioStream) -> int | None:
    stream.codec_context.open(strict=False)
    return stream.codec_context.frame_size or None


def ffmpeg_samples(data: bytes) -> int | None:
    """Count the samples that FFmpeg decodes from a file; None if it does not open it.

    Packets that it refuses, such as a tag between frames, are passed over, as its command does.
    """
    try:
        with av.open(io.BytesIO(data), "r") as container:
            total = 0
            for packet in container.demux(audio=0):
                try:
                    total += sum(frame.samples for frame in packet.decode())
                except av.error.InvalidDataError:
                    continue
            return total
    except (av.error.FFmpegError, IndexError):
        return None


def mp3_parts(data: bytes) -> tuple[bytes, bytes]:
    """Split an MP3 file of LAME into the frame that counts the others, and the others."""
    stop = data.index(data[:2], 2)
    assert b"Xing" in data[:stop] or b"Info" in data[:stop]
    return data[:stop], data[stop:]


def xing_counting(data: bytes, count: int) -> bytes:
    """Let the Xing frame of an MP3 file state another number of frames."""
    first, frames = mp3_parts(data)
    place = max(first.find(b"Xing"), first.find(b"Info")) + 8
    return first[:place] + struct.pack(">I", count) + first[place + 4 :] + frames


def vbri_counting(data: bytes, count: int) -> bytes:
    """Replace the Xing frame of an MP3 file by Fraunhofer's VBRI frame."""
    first, frames = mp3_parts(data)
    tag = b"VBRI" + struct.pack(">HHHII", 1, 0, 0, len(data), count)
    return first[:4] + bytes(32) + tag.ljust(len(first) - 36, b"\0") + frames


def mp3_in_riff(frames: bytes, audio_hz: int) -> bytes:
    """Put MPEG frames into a WAV file (WAVE_FORMAT_MPEGLAYER3)."""
    form = struct.pack("<HHIIHHHHIHHH", 0x55, 1, audio_hz, 8000, 1, 0, 12, 1, 2, 576, 1, 1393)
    chunks = b"fmt " + struct.pack("<I", len(form)) + form
    chunks += b"data" + struct.pack("<I", len(frames)) + frames
    return b"RIFF" + struct.pack("<I", len(chunks) + 4) + b"WAVE" + chunks


def flac_stating(data: bytes, num_samples: int) -> bytes:
    """Let the header of a FLAC file state another number of samples; 0 is that of a pipe."""
    bits = int.from_bytes(data[18:26], "big") >> 36 << 36 | num_samples
    return data[:18] + bits.to_bytes(8, "big") + data[26:]


def flac_total(data: bytes) -> int:
    """Return the number of samples that the header of a FLAC file states."""
    return int.from_bytes(data[18:26], "big") & (1 << 36) - 1


def wav_stating(data: bytes, data_bytes: int, riff_bytes: int) -> bytes:
    """Let a WAV file state other sizes."""
    place = data.index(b"data") + 4
    sized = data[:place] + struct.pack("<I", data_bytes) + data[place + 4 :]
    return sized[:4] + struct.pack("<I", riff_bytes) + sized[8:]


def rf64(data: bytes) -> bytes:
    """Write a WAV file of libsndfile again with 64-bit sizes (EBU Tech 3306)."""
    place = data.index(b"data")
    size = len(data) - place - 8
    sizes = struct.pack("<4sIQQQI", b"ds64", 28, len(data) + 28, size, size // 2, 0)
    marked = data[12:place] + b"data" + b"\xff" * 4 + data[place + 8 :]
    return b"RF64" + b"\xff" * 4 + b"WAVE" + sizes + marked


def rifx(data: bytes) -> bytes:
    """Write a WAV file of 16-bit samples again with the most significant byte first."""
    form, place = data.index(b"fmt ") + 8, data.index(b"data") + 8
    fields = struct.unpack("<HHIIHH", data[form : form + 16])
    samples = np.frombuffer(data[place:], "<i2").astype(">i2").tobytes()
    chunks = b"fmt " + struct.pack(">IHHIIHH", 16, *fields)
    chunks += b"data" + struct.pack(">I", len(samples)) + samples
    return b"RIFX" + struct.pack(">I", len(chunks) + 4) + b"WAVE" + chunks


def xing_without_count(data: bytes) -> bytes:
    """Let the Xing frame of an MP3 file of LAME state no number of frames."""
    first, frames = mp3_parts(data)
    place = max(first.find(b"Xing"), first.find(b"Info"))
    flags = first[place + 7] & ~1
    fields = first[place + 12 :] + bytes(4)
    return first[: place + 4] + bytes((0, 0, 0, flags)) + fields + frames


def ogg_pages(data: bytes) -> list[bytes]:
    return [b"OggS" + page for page in data.split(b"OggS")[1:]]


def without_page(data: bytes, number: int) -> bytes:
    """Leave a page out of an Ogg file."""
    pages = ogg_pages(data)
    return b"".join(pages[:number] + pages[number + 1 :])


def without_first_pages(data: bytes, count: int) -> bytes:
    """Cut the beginning of an Opus file away, and number its pages anew, as a stream copy does."""
    pages = ogg_pages(data)
    pages = pages[:2] + pages[2 + count :]
    return b"".join(_numbered(page, number) for number, page in enumerate(pages))


def _numbered(page: bytes, number: int) -> bytes:
    page = page[:18] + struct.pack("<I", number) + bytes(4) + page[26:]
    return page[:22] + struct.pack("<I", _ogg_checksum(page)) + page[26:]


def _ogg_checksum(page: bytes) -> int:
    """Compute the checksum of an Ogg page bit by bit, as RFC 3533 defines it."""
    value = 0
    for byte in page:
        value ^= byte << 24
        for _ in range(8):
            value = (value << 1 ^ (0x04C11DB7 if value >> 31 else 0)) & 0xFFFFFFFF
    return value
