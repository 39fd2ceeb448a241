"""Audio files whose header promises another length than they hold, and what is right for them."""

from __future__ import annotations

import io
import json
import struct

import numpy as np
import pytest
import soundfile

from koe.errors import BadRecord
from stages.audio.decode import decode, read_header
from stages.sources.location import AudioLocation, ClipReader
from tests.real_data import REPORTS, WORDS
from tests.stages import audio_variants as variants
from tests.stages.audio_files import encoded, tone

AUDIO = REPORTS / "A"
# Samples of each channel; a file without LAME's fields holds the encoder's delay too.
WHOLE = {
    "concat_id3.mp3": (11.42, 274_223, 24_000),
    "concat_xing.mp3": (11.34, 272_218, 24_000),
    "concat_plain.mp3": (11.42, 274_223, 24_000),
    "vbri.mp3": (4.74, 209_135, 44_100),
    "xing_zero.mp3": (4.70, 207_394, 44_100),
    "id3_twice.mp3": (4.73, 113_519, 24_000),
    "mp3_in_riff.wav": (4.73, 113_519, 24_000),
    "chained.opus": (11.34, 544_435, 48_000),
    "flac_pipe.flac": (4.70, 207_394, 44_100),
    "id3_wav_1s.wav": (1.00, 44_100, 44_100),
    "odd_chunk_1s.wav": (1.00, 44_100, 44_100),
}


def refusal(data: bytes) -> str:
    with pytest.raises(BadRecord) as caught:
        decode(data)
    return str(caught.value)


@pytest.mark.parametrize("name", WHOLE)
def test_a_file_is_as_long_as_what_it_holds(name):
    seconds, num_frames, audio_hz = WHOLE[name]
    data = (AUDIO / name).read_bytes()
    header = read_header(data)
    audio, rate = decode(data)
    assert (header.num_frames, header.audio_hz) == (num_frames, audio_hz) == (len(audio), rate)
    assert header.seconds == pytest.approx(seconds, abs=0.01)
    stated = [json.loads(line) for line in (AUDIO / "m.jsonl").read_text("utf-8").splitlines()]
    true = {clip["audio_filepath"]: clip["true_seconds"] for clip in stated}.get(name, 1.0)
    # What an encoder put around it, where nothing states how much: less than 0.06 s for each file.
    assert -1 <= (header.seconds - true) * audio_hz < 0.12 * audio_hz


@pytest.mark.parametrize("name", ["concat_xing.mp3", "concat_id3.mp3", "chained.opus"])
def test_the_second_half_of_a_joined_file_is_speech(name):
    audio, audio_hz = decode((AUDIO / name).read_bytes(), 6.0)
    assert np.sqrt(np.mean(audio**2)) > 0.01
    first, second = (decode((AUDIO / name).read_bytes(), at, 0.5)[0] for at in (5.0, 10.0))
    assert not np.array_equal(first, second)
    assert audio_hz in (24_000, 48_000)


def test_joined_files_with_counting_frames_are_their_parts_one_after_another():
    first, second = (WORDS / name for name in ("word_0000.mp3", "word_0001.mp3"))
    parts = [decode(path.read_bytes())[0] for path in (first, second)]
    joined, _ = decode(first.read_bytes() + second.read_bytes())
    assert np.array_equal(joined, np.concatenate(parts))


def test_a_stream_that_nothing_ends_is_truncated():
    assert refusal((AUDIO / "no_eos.opus").read_bytes()).startswith(
        "truncated_audio: the last page"
    )


def test_a_file_of_fuzzing_is_one_bad_record(tmp_path):
    place = AudioLocation("file", str(REPORTS / "bad.mp3"), "", 0, 0)
    with ClipReader() as reader, pytest.raises(BadRecord, match="0 of 19 MPEG frames"):
        reader.header(place)
    assert refusal((REPORTS / "bad.mp3").read_bytes()) == "truncated_audio: 0 of 19 MPEG frames"


HZ = 24_000
TONE = tone(1.0, HZ)


def written(container: str, subtype: str, audio: np.ndarray = TONE, audio_hz: int = HZ) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, audio, audio_hz, format=container, subtype=subtype)
    return buffer.getvalue()


def wav() -> bytes:
    return encoded(TONE, HZ)


def mp3() -> bytes:
    return encoded(TONE, HZ, "mp3")


# One second each, at 24 kHz unless it is stated; ADPCM, GSM and G.721 fill their last block.
READ = {
    "wav_pcm_u8": (lambda: written("WAV", "PCM_U8"), 24_000),
    "wav_pcm_24": (lambda: written("WAV", "PCM_24"), 24_000),
    "wav_pcm_32": (lambda: written("WAV", "PCM_32"), 24_000),
    "wav_float": (lambda: written("WAV", "FLOAT"), 24_000),
    "wav_double": (lambda: written("WAV", "DOUBLE"), 24_000),
    "wav_alaw": (lambda: written("WAV", "ALAW"), 24_000),
    "wav_ulaw": (lambda: written("WAV", "ULAW"), 24_000),
    "wav_ima_adpcm": (lambda: written("WAV", "IMA_ADPCM"), 24_492),
    "wav_ms_adpcm": (lambda: written("WAV", "MS_ADPCM"), 24_432),
    "wav_gsm610": (lambda: written("WAV", "GSM610"), 24_320),
    "wav_g721_32": (lambda: written("WAV", "G721_32"), 24_000),
    "wavex": (lambda: written("WAVEX", "PCM_24"), 24_000),
    "rf64": (lambda: written("RF64", "PCM_16"), 24_000),
    "rifx": (lambda: variants.rifx(wav()), 24_000),
    "six channels": (lambda: written("WAV", "PCM_16", np.stack([TONE] * 6, axis=1)), 24_000),
    "one dead channel": (lambda: written("WAV", "PCM_16", np.stack([TONE, 0 * TONE], 1)), 24_000),
    "ffmpeg_pipe": (lambda: variants.wav_stating(wav(), 0xFFFFFFFF, 0xFFFFFFFF), 24_000),
    "sox_pipe": (lambda: variants.wav_stating(wav(), 0x7FFFF000, 0x7FFFF024), 24_000),
    "size_zero_riff_ok": (lambda: variants.wav_stating(wav(), 0, 48_036), 24_000),
    "id3 chunk behind": (lambda: wav() + b"id3 \x0a\0\0\0" + bytes(10), 24_000),
    "id3_wav, twice": (lambda: variants.id3v2() * 2 + wav(), 24_000),
    "two chunks of samples": (lambda: wav() + b"data\x04\0\0\0abcd", 24_000),
    "broadcast wave": (lambda: with_chunk(wav(), b"bext", bytes(602)), 24_000),
    "wav_12_bits_in_16": (lambda: patched(wav(), 34, "<H", 12), 24_000),
    "no block align": (lambda: patched(wav(), 32, "<H", 0), 24_000),
    "1024 channels": (lambda: written("WAV", "PCM_16", np.full((10, 1024), 0.1)), 10),
    "zeros behind": (lambda: wav() + bytes(2_000), 24_000),
    "rate_11025": (lambda: written("WAV", "PCM_16", audio_hz=11_025), 24_000),
    "mp3_named.wav": (mp3, 24_000),
    "vbr": (lambda: vbr(), 24_000),
    "vbr_notag": (lambda: variants.mp3_parts(vbr())[1], 24_815),
    "concat_id3v1": (lambda: (variants.mp3_parts(mp3())[1] + variants.ID3V1) * 2, 50_159),
    "concat_xing_then_plain": (lambda: mp3() + variants.mp3_parts(mp3())[1], 49_583),
    "xing_noframes": (lambda: variants.xing_without_count(mp3()), 24_000),
    "id3_pad": (lambda: variants.id3v2() + bytes(5_000) + mp3(), 24_000),
    "junk_tail": (lambda: mp3() + b"garbage" * 40, 24_000),
    "flac_half": (lambda: variants.flac_stating(encoded(TONE, HZ, "flac"), 12_000), 24_000),
    "flac_id3": (lambda: variants.id3v2() + encoded(TONE, HZ, "flac") + variants.ID3V1, 24_000),
    "flac_24": (lambda: written("FLAC", "PCM_24"), 24_000),
    "flac_8ch": (lambda: written("FLAC", "PCM_16", np.stack([TONE] * 8, axis=1)), 24_000),
    "oggflac": (lambda: variants.ffmpeg_encoded(TONE, HZ, "ogg", "flac"), 24_000),
    "chained.ogg": (lambda: encoded(TONE, HZ, "ogg") * 2, 48_000),
    "ogg_tail": (lambda: encoded(TONE, HZ, "ogg") + bytes(100), 24_000),
    "copycut.opus": (lambda: variants.without_first_pages(opus(5.0), 2), 72_480),
}
REFUSED = {
    "layer2.mp3": (lambda: bytes.fromhex("fffd80c4") + bytes(500), "MPEG audio of layer I or II"),
    "adts.mp3": (lambda: variants.ffmpeg_encoded(TONE, HZ, "adts", "aac"), "but AAC (ADTS)"),
    "aac.wav": (lambda: variants.ffmpeg_encoded(TONE, HZ, "mp4", "aac"), "but MPEG-4"),
    "webm.webm": (lambda: variants.ffmpeg_encoded(TONE, HZ, "webm", "libopus"), "but Matroska"),
    "aiff.wav": (lambda: written("AIFF", "PCM_16"), "but AIFF: convert it, as `ffmpeg"),
    "au.wav": (lambda: written("AU", "PCM_16"), "but AU: convert it"),
    "caf.wav": (lambda: written("CAF", "PCM_16"), "but Core Audio: convert it"),
    "w64.wav": (lambda: written("W64", "PCM_16"), "but Wave64: convert it"),
    "ts.mp3": (
        lambda: variants.ffmpeg_encoded(TONE, HZ, "mpegts", "aac"),
        "but an MPEG transport stream",
    ),
    "flv.mp3": (lambda: variants.ffmpeg_encoded(TONE, HZ, "flv", "aac"), "but Flash video"),
    "wv.wav": (lambda: variants.ffmpeg_encoded(TONE, HZ, "wv", "wavpack"), "but WavPack"),
    "avi.wav": (
        lambda: variants.ffmpeg_encoded(TONE, HZ, "avi", "pcm_s16le"),
        "unreadable_audio: a RIFF file of b'AVI ', not of WAVE",
    ),
    "free format": (lambda: bytes.fromhex("fffb0064") + bytes(500), "MPEG audio in free format"),
    "aac in wav": (lambda: patched(wav(), 20, "<H", 0xFF), "(its samples are of format 0x00ff)"),
    "no channel": (lambda: patched(wav(), 22, "<H", 0), "16 bits of 0 channel(s)"),
    "too many channels": (
        lambda: patched(patched(wav(), 22, "<H", 0x7FFF), 32, "<H", 0xFFFE),
        "Too many channels",
    ),
    "no rate": (lambda: patched(wav(), 24, "<I", 0), "unreadable_audio"),
    "a rate beyond all": (lambda: patched(wav(), 24, "<I", 0xFFFFFFFF), "unreadable_audio"),
    "20 bits in 2 bytes": (
        lambda: patched(wav(), 34, "<H", 20),
        "20 bits of 1 channel(s) do not take 2 bytes, as is stated",
    ),
    "24 bits in 4 bytes": (
        lambda: patched(written("WAV", "PCM_24"), 32, "<H", 4),
        "24 bits of 1 channel(s) do not take 4 bytes",
    ),
    "timit.wav": (lambda: written("NIST", "PCM_16"), "but NIST SPHERE"),
    "cut_head.mp3": (lambda: mp3()[1_000:], "truncated_audio: the file begins within an MPEG"),
    "cut_tail.mp3": (lambda: variants.mp3_parts(mp3())[1][:-1], "truncated_audio: the file ends"),
    "junk within": (
        lambda: b"???".join([variants.mp3_parts(mp3())[1]] * 2),
        "3 bytes at byte 6504 are neither an MPEG frame nor a tag",
    ),
    "two rates": (
        lambda: mp3() + encoded(TONE, 44_100, "mp3"),
        "mixed_format: 24000 Hz with 1 channel(s) at first, 44100 Hz with 1 later",
    ),
    "flac_more": (
        lambda: variants.flac_stating(encoded(TONE, HZ, "flac"), 28_096),
        "truncated_audio: 24000 of 28096 samples",
    ),
    "flac, joined with its equal": (lambda: encoded(TONE, HZ, "flac") * 2, "chained_stream"),
    "size_plus36": (lambda: variants.wav_stating(wav(), 48_036, 48_072), "48000 of 48036 bytes"),
    "size_half": (
        lambda: variants.wav_stating(wav(), 24_000, 24_036),
        "length_mismatch: 24000 bytes of samples, and 24000 more that no chunk holds",
    ),
    "a lost page": (lambda: variants.without_page(opus(5.0), 4), "page 5 follows page 3"),
    "a changed page": (lambda: opus(3.0)[:-9] + b"!" + opus(3.0)[-8:], "a wrong checksum"),
    "opposite": (
        lambda: written("WAV", "PCM_16", np.stack([TONE, -TONE], axis=1)),
        "opposite_channels: the 2 channels cancel each other out",
    ),
    "nearly opposite": (
        lambda: written("WAV", "FLOAT", np.stack([TONE, -0.99999 * TONE], axis=1)),
        "opposite_channels: the 2 channels cancel each other out",
    ),
}


def patched(data: bytes, place: int, form: str, value: int) -> bytes:
    """Write a field of a header anew."""
    changed = bytearray(data)
    struct.pack_into(form, changed, place, value)
    return bytes(changed)


def with_chunk(data: bytes, name: bytes, body: bytes) -> bytes:
    """Put a chunk before all others of a WAV file."""
    return data[:12] + name + struct.pack("<I", len(body)) + body + data[12:]


def opus(seconds: float) -> bytes:
    return encoded(tone(seconds, HZ), HZ, "opus")


def vbr() -> bytes:
    return variants.ffmpeg_encoded(TONE, HZ, "mp3", "libmp3lame", id3v2_version="0")


@pytest.mark.parametrize("name", READ)
def test_what_holds_a_second_is_read_as_a_second(name):
    make, num_frames = READ[name]
    data = make()
    assert read_header(data).num_frames == len(decode(data)[0]) == num_frames


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_whole_is_refused_by_name(name):
    make, message = REFUSED[name]
    assert message in refusal(make())


ONLY_DECODING_TELLS = {"flac, joined with its equal", "opposite", "nearly opposite"}


@pytest.mark.parametrize("name", sorted(set(REFUSED) - ONLY_DECODING_TELLS))
def test_it_is_refused_at_ingest_already(name):
    make, message = REFUSED[name]
    with pytest.raises(BadRecord) as caught:
        read_header(make())
    assert message in str(caught.value)
