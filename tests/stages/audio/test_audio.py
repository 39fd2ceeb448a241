from __future__ import annotations

import io
import math
import struct

import av
import numpy as np
import pytest
import soundfile

from koe.errors import BadRecord
from stages.audio.decode import AudioHeader, check, decode, read_header
from tests.real_data import recordings
from tests.stages.audio_files import FORMATS, clip, encoded, tone

LOSSLESS = {"wav": 1 / 32768, "float.wav": 0.0, "flac": 1 / 32768}


def reason(data: bytes, *args) -> str:
    with pytest.raises(BadRecord) as caught:
        decode(data, *args)
    return caught.value.reason


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("audio_hz", [8_000, 24_000, 48_000])
@pytest.mark.parametrize("channels", [1, 2])
def test_decodes_what_was_encoded(kind, audio_hz, channels):
    mono = tone(2.0, audio_hz)
    audio = mono if channels == 1 else np.stack([mono, 0.5 * mono], axis=1)
    data = encoded(audio, audio_hz, kind)
    header = read_header(data)
    decoded, rate = decode(data)
    assert (header.num_frames, header.audio_hz, header.channels) == (len(mono), audio_hz, channels)
    assert rate == audio_hz
    assert decoded.shape == mono.shape
    assert decoded.dtype == np.float32
    wanted = mono if channels == 1 else 0.75 * mono
    if kind in LOSSLESS:
        assert np.abs(decoded - wanted).max() <= LOSSLESS[kind]
    else:
        assert np.corrcoef(decoded, wanted)[0, 1] > 0.95


@pytest.mark.parametrize("kind", FORMATS)
def test_a_segment_equals_its_part_of_the_whole(kind):
    data = clip(4.0, 24_000, kind)
    whole, _ = decode(data)
    part, _ = decode(data, 2.5, 1.0)
    assert len(part) == 24_000
    assert np.abs(part - whole[60_000:84_000]).max() < (0.01 if kind == "opus" else 1e-5)
    rest, _ = decode(data, 2.5, None)
    assert len(rest) == 36_000


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("share", [0.02, 0.2, 0.5, 0.8, 0.95])
def test_a_truncated_file_is_refused(kind, share):
    data = clip(3.0, 24_000, kind)
    assert reason(data[: int(len(data) * share)]) in {"truncated_audio", "unreadable_audio"}


@pytest.mark.parametrize("kind", ["wav", "float.wav", "flac", "opus", "ogg"])
def test_one_lost_byte_is_a_truncation(kind):
    assert reason(clip(1.0, 24_000, kind)[:-1]) == "truncated_audio"


@pytest.mark.parametrize("kind", ["wav", "opus", "ogg"])
def test_the_header_alone_tells_a_truncation_where_it_can(kind):
    data = clip(3.0, 24_000, kind)
    with pytest.raises(BadRecord, match="truncated_audio"):
        read_header(data[: len(data) // 2])


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "empty_audio"),
        (encoded(np.zeros(0, np.float32), 16_000), "empty_audio"),
        (encoded(np.zeros(800, np.float32), 16_000), "all_zero_audio"),
        (encoded(np.array([0.1, np.nan, 0.2], np.float32), 16_000, "float.wav"), "nonfinite_audio"),
        (encoded(np.array([0.1, np.inf, 0.2], np.float32), 16_000, "float.wav"), "nonfinite_audio"),
        (b"<html>404 Not Found</html>", "unreadable_audio"),
        (bytes(4096), "unreadable_audio"),
        (b"fLaC" + bytes(100), "unreadable_audio"),
        (b"RIFF", "truncated_audio"),
        (b"ID3", "unreadable_audio"),
    ],
    ids=["none", "no_frames", "zeros", "nan", "inf", "html", "nuls", "flac", "riff", "id3"],
)
def test_unusable_audio_has_its_reason(data, expected):
    assert reason(data) == expected


@pytest.mark.parametrize("seed", range(20))
def test_damage_anywhere_is_a_bad_record_or_decodes(seed):
    """Whatever bytes are hit, nothing but BadRecord may come out."""
    generator = np.random.default_rng(seed)
    for kind in FORMATS:
        data = bytearray(clip(0.5, 24_000, kind))
        for place in generator.integers(0, len(data) if seed % 2 else 64, 8):
            data[place] = generator.integers(0, 256)
        try:
            audio, _ = decode(bytes(data))
        except BadRecord:
            continue
        assert np.isfinite(audio).all()


@pytest.mark.parametrize("data_bytes", [0, 0xFFFFFFFF, 0x7FFFF000])
@pytest.mark.parametrize("riff_bytes", [0, 36, 0xFFFFFFFF])
def test_a_wav_written_to_a_pipe_is_whole(data_bytes, riff_bytes):
    audio = tone(0.5, 16_000)
    data = bytearray(encoded(audio, 16_000))
    place = data.index(b"data")
    data[place + 4 : place + 8] = struct.pack("<I", data_bytes)
    data[4:8] = struct.pack("<I", riff_bytes)
    decoded, _ = decode(bytes(data))
    assert read_header(bytes(data)).num_frames == len(audio)
    assert np.abs(decoded - audio).max() <= 1 / 32768


def test_an_mp3_without_length_is_neither_cut_nor_stretched():
    """libsndfile would guess 2.5 s of these 6 s from the first frame's bitrate."""
    data = clip(6.0, 24_000, "mp3")
    whole, _ = decode(data)
    without = data[data.index(data[:2], 2) :]  # drop the frame that holds the Xing header
    assert b"Xing" not in without
    assert soundfile.info(io.BytesIO(without)).frames < 4 * 24_000
    decoded, _ = decode(without)
    assert len(decoded) == read_header(without).num_frames
    assert 0 <= len(decoded) - len(whole) <= 2 * 1152  # the encoder's delay and padding
    shift = int(np.argmax(np.correlate(decoded[:8000], whole[:4000], "valid")))
    assert np.abs(decoded[shift : shift + len(whole)] - whole).max() < 1e-4
    assert reason(without[: len(without) // 2 + 1]) == "truncated_audio"


def test_a_flac_without_length_is_counted_by_its_frames():
    data = bytearray(clip(0.5, 16_000, "flac"))
    whole, _ = decode(bytes(data))
    bits = int.from_bytes(data[18:26], "big") >> 36 << 36
    data[18:26] = bits.to_bytes(8, "big")
    assert read_header(bytes(data)).num_frames == 8_000
    assert np.array_equal(decode(bytes(data))[0], whole)


@pytest.mark.parametrize("audio_hz", [8_000, 16_000, 44_100, 12_345, 96_000, 123_450])
def test_a_flac_header_that_contradicts_its_frames_is_refused(audio_hz):
    """A wrong rate decodes without an error, but at another speed; channels decode to noise."""
    samples = np.stack([tone(1.0, audio_hz)] * 2, axis=1)
    data = encoded(samples, audio_hz, "flac")
    assert (read_header(data).audio_hz, read_header(data).num_frames) == (audio_hz, len(samples))
    for bit in range(23):  # 20 of the rate, 3 of the channels
        damaged = bytearray(data)
        damaged[18 + bit // 8] ^= 0x80 >> bit % 8
        with pytest.raises(BadRecord) as caught:
            read_header(bytes(damaged))
        assert caught.value.reason in {"mixed_format", "unreadable_audio"}


@pytest.mark.parametrize("subtype", ["GSM610", "G721_32", "NMS_ADPCM_16", "IMA_ADPCM", "ULAW"])
def test_segments_of_telephone_codecs(subtype):
    """libsndfile cannot seek in some of them."""
    buffer = io.BytesIO()
    soundfile.write(buffer, tone(2.0, 8_000), 8_000, format="WAV", subtype=subtype)
    whole, _ = decode(buffer.getvalue())
    part, _ = decode(buffer.getvalue(), 1.0, 0.5)
    np.testing.assert_array_equal(part, whole[8_000:12_000])


@pytest.mark.parametrize("share", [0.1, 0.33, 0.5, 0.77, 0.9])
def test_zeros_where_frames_of_mp3_stood_are_damage(share):
    """A download into a file that was made beforehand, and a lost block within one."""
    data = clip(3.0, 24_000, "mp3")
    data = data[data.index(data[:2], 2) :]  # without the frame that counts the others
    assert read_header(data)
    cut = round(len(data) * share)
    broken_off = data[:cut] + bytes(len(data) - cut)
    hole = data[:cut] + bytes(1000) + data[cut + 1000 :]
    for damaged in (broken_off, hole):
        with pytest.raises(BadRecord) as caught:
            read_header(damaged)
        assert caught.value.reason in {"unreadable_audio", "truncated_audio"}
    read_header(data + bytes(4096))  # padding


def test_opus_whose_time_does_not_begin_at_0_begins_where_it_should():
    """FFmpeg writes it so where frames come without times; libsndfile then keeps the pre-skip."""
    at = np.arange(3 * 48_000) / 48_000
    audio = (0.4 * np.sin(2 * np.pi * (200 + 150 * at) * at)).astype(np.float32)  # rises
    stream = io.BytesIO()
    with av.open(stream, "w", format="ogg") as container:
        encoder = container.add_stream("libopus", rate=48_000)
        encoder.layout = "mono"
        frame = av.AudioFrame.from_ndarray(audio[None], format="flt", layout="mono")
        frame.rate = 48_000
        container.mux([*encoder.encode(frame), *encoder.encode(None)])
    data = stream.getvalue()
    decoded, _ = decode(data)
    assert len(decoded) == read_header(data).num_frames
    lags = np.correlate(decoded[20_000 - 400 : 60_000 + 400], audio[20_000:60_000], "valid")
    assert abs(int(np.argmax(lags)) - 400) <= 2
    part, _ = decode(data, 2.0, 0.5)
    assert np.abs(part - decoded[96_000:120_000]).max() < 0.01


@pytest.mark.parametrize(
    ("start", "length"), [(-0.1, 0.5), (0.0, 0.0), (1.0, 0.5), (0.5, 0.7), (math.nan, 1.0), (0, -1)]
)
def test_a_segment_outside_its_audio_is_refused(start, length):
    assert reason(clip(1.0), start, length) == "bad_segment"


def test_a_rounded_duration_is_cut_at_the_end():
    audio, audio_hz = decode(clip(1.0), 0.5, 0.504)
    assert len(audio) == audio_hz // 2


class Failing(io.BytesIO):
    """A file whose storage goes away after some reads."""

    def __init__(self, data: bytes, good_reads: int) -> None:
        super().__init__(data)
        self.good_reads = good_reads

    def read(self, *args):
        self.good_reads -= 1
        if self.good_reads < 0:
            raise ConnectionResetError("storage went away")
        return super().read(*args)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("good_reads", range(6))
def test_a_failing_storage_is_no_bad_clip(kind, good_reads):
    """libsndfile swallows exceptions of the file that it reads; they must come out anyway."""
    data = clip(1.0, 24_000, kind)
    file = Failing(data, good_reads)
    try:
        header = read_header(file, 0, len(data))
    except ConnectionResetError:
        return
    assert file.good_reads >= 0
    assert header.num_frames == 24_000


def test_the_header_of_a_byte_range_reads_little():
    data = clip(20.0, 24_000, "flac")
    file = io.BytesIO(b"x" * 1000 + data + b"y" * 1000)
    num_read = 0

    class Counting(io.BytesIO):
        def read(self, *args):
            nonlocal num_read
            part = super().read(*args)
            num_read += len(part)
            return part

    counting = Counting(file.getvalue())
    assert read_header(counting, 1000, len(data)) == AudioHeader(480_000, 24_000, 1, "FLAC")
    assert num_read < 20_000 < len(data) / 10


def test_check_returns_sound_audio():
    audio = tone(0.1, 16_000)
    assert check(audio) is audio


def test_real_clips_decode_to_the_length_of_their_headers():
    paths = recordings()
    assert {path.suffix for path in paths} == {".flac", ".mp3", ".opus", ".wav"}
    for path in paths:
        data = path.read_bytes()
        audio, audio_hz = decode(data)
        header = read_header(data)
        assert (len(audio), audio_hz) == (header.num_frames, header.audio_hz), path
