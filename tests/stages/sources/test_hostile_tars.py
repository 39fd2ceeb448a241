"""Tars that try a reader: what is not a plain member costs its sample, and no other."""

from __future__ import annotations

import shutil
import subprocess
import tarfile

import pytest

from stages.sources.tars import members as tar_members
from tests.real_data import WORDS
from tests.stages.records import clips_and_bad

AUDIO, OTHER = (path.read_bytes() for path in sorted(WORDS.glob("*.mp3"))[:2])
LONG = "長" * 120
TYPES = {
    "hard link": tarfile.LNKTYPE,
    "symbolic link": tarfile.SYMTYPE,
    "FIFO": tarfile.FIFOTYPE,
    "device": tarfile.CHRTYPE,
    "volume": b"V",
}


def member(name, data=b"", style=tarfile.PAX_FORMAT, **values):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in values.items():
        setattr(info, key, value)
    return info.tobuf(style, "utf-8", "surrogateescape") + data + bytes(-len(data) % 512)


def sample(key, style=tarfile.PAX_FORMAT):
    return member(f"{key}.txt", "文".encode(), style) + member(f"{key}.mp3", AUDIO, style)


def with_size(data, field):
    """Put other bytes into the size of a header, and make its checksum right."""
    header = bytearray(data[:512])
    header[124:136] = field
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + data[512:]


def base256(size):
    return (
        b"\x80" + size.to_bytes(11, "big") if size >= 0 else (size % (1 << 96)).to_bytes(12, "big")
    )


def extended(kind=tarfile.XHDTYPE, **values):
    """Make an extended header of pax."""
    return tarfile.TarInfo._create_pax_generic_header(values, kind, "utf-8")


def raw(body):
    return member("PaxHeaders/x", body, tarfile.USTAR_FORMAT, type=tarfile.XHDTYPE)


def long_name(name):
    return member("././@LongLink", name + b"\0", tarfile.USTAR_FORMAT, type=b"L")


def read(folder, *parts, end=bytes(1024)):
    """Ingest a tar with samples a and z around the parts; both must be kept, whatever stands there."""
    path = folder / "t.tar"
    path.write_bytes(b"".join([sample("a"), *parts, sample("z"), end]))
    reads = [clips_and_bad(size, kind="webdataset", paths=[str(path)]) for size in (1, 2, 1000)]
    assert reads[0] == reads[1] == reads[2]
    kept, bad = reads[0]
    keys = [clip["id"].removeprefix("s/t/") for clip in kept]
    assert {"a", "z"} <= set(keys)
    return [key for key in keys if key not in "az"], bad


@pytest.mark.parametrize(
    ("parts", "keys"),
    [
        ([sample(LONG)], [LONG]),
        ([sample(LONG, tarfile.GNU_FORMAT)], [LONG]),
        ([sample("d" * 100 + "/" + "f" * 90, tarfile.USTAR_FORMAT)], ["d" * 100 + "/" + "f" * 90]),
        ([member("b.txt", b"x"), with_size(member("b.mp3", AUDIO), base256(len(AUDIO)))], ["b"]),
        ([member("b.txt", b"x"), member("b.mp3", AUDIO, type=tarfile.CONTTYPE)], ["b"]),
        ([member("d", type=tarfile.DIRTYPE), sample("d/b"), member("e/")], ["d/b"]),
        ([sample("./b"), sample("b\nc"), sample("e:f@5")], ["b", "b\nc", "e:f@5"]),
        ([member("", b"x"), member("._b.mp3", b"x"), sample("c")], ["c"]),
        ([extended(tarfile.XGLTYPE, comment="x"), sample("b"), sample("c")], ["b", "c"]),
        ([extended(tarfile.XGLTYPE, path="c.mp3"), sample("b"), sample("c")], ["b", "c"]),
        ([sample("b"), bytes(512 * 9), sample("c"), bytes(512)], ["b", "c"]),
    ],
)  # fmt: skip
def test_what_is_read(tmp_path, parts, keys):
    assert read(tmp_path, *parts) == (keys, {})


@pytest.mark.parametrize("kind", TYPES)
def test_a_special_member_is_named(tmp_path, kind):
    special = member("b.mp3", type=TYPES[kind], linkname="a.mp3", devmajor=1, devminor=5)
    keys, bad = read(tmp_path, member("b.txt", b"x"), special, sample("c"))
    assert keys == ["c"]
    assert bad["s/t/b.mp3"][0] == "unsafe_tar_member"
    assert "a link, a device or another special member" in bad["s/t/b.mp3"][1]
    assert bad["s/t/b"][0] == "missing_audio"
    assert len(bad) == 2


@pytest.mark.parametrize("name", ["/etc/b", "../b", "x/../../b", "..", "\udce9"])
@pytest.mark.parametrize("style", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_a_name_that_leads_out_or_is_no_text_is_named(tmp_path, name, style):
    data = sample(name, style) if name != ".." else member("../.mp3", AUDIO, style)
    keys, bad = read(tmp_path, data, sample("c"))
    assert keys == ["c"]
    assert {reason for reason, _ in bad.values()} == {"unsafe_tar_member"}
    assert all("outside the archive" in why or "UTF-8" in why for _, why in bad.values())


def test_a_zero_byte_in_a_long_name_is_named(tmp_path):
    keys, bad = read(tmp_path, extended(path="b\0.mp3") + member("x", AUDIO), sample("c"))
    assert keys == ["c"]
    ((reason, detail),) = bad.values()
    assert (reason, "zero byte" in detail) == ("unsafe_tar_member", True)


@pytest.mark.parametrize("size", [1 << 80, -1024, -len(AUDIO) - 2048, 10**9])
def test_a_size_that_cannot_be_is_a_gap(tmp_path, size):
    audio = with_size(member("b.mp3", AUDIO), base256(size))
    keys, bad = read(tmp_path, member("b.txt", b"x"), audio, sample("c"))
    assert keys == ["c"]
    assert sorted(reason for reason, _ in bad.values()) == ["missing_audio", "unreadable_bytes"]


@pytest.mark.parametrize("value", ["99999999999999", "-5", "abc", "1e3", ""])
def test_a_size_of_pax_that_cannot_be_costs_one_sample(tmp_path, value):
    keys, bad = read(
        tmp_path, member("b.txt", b"x"), extended(size=value), member("b.mp3", AUDIO), sample("c")
    )
    assert keys == ["c"]
    assert 1 <= len(bad) <= 3


@pytest.mark.parametrize(
    "header",
    [
        raw(b"0 path=x\n"), raw(b"99999999999 path=x\n"), raw(b"garbage"), raw(b"-3 a=b\n"),
        raw(b"9 GNU.sparse.size=1\n" + b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n"),
        raw(b"26 GNU.sparse.map=1,2,x\n"), raw(b"21 GNU.sparse.size=x\n"),
        with_size(raw(b"8 a=bc\n"), b"%011o\0" % 8**10), with_size(long_name(b"x"), b"%011o\0" % 8**10),
        extended(path="only.mp3") + extended(path="again.mp3"), long_name(b"x" * 5_000_000),
        member("s", type=b"S")[:482] + b"\1" * 30 + b"\xff" * 512,
    ],
)  # fmt: skip
def test_a_wrong_extended_header_costs_one_sample(tmp_path, header):
    keys, bad = read(tmp_path, header, sample("b"), sample("c"))
    assert keys in (["c"], ["b", "c"])
    assert len(bad) <= 3
    assert bad or keys == ["b", "c"]


@pytest.mark.parametrize(
    "header", [raw(b"8 a=bc\n"), long_name(b"x"), extended(tarfile.XGLTYPE, a="b")]
)
def test_thousands_of_extended_headers_are_passed_over(tmp_path, header):
    keys, bad = read(tmp_path, *[header] * 3000, sample("b"))
    assert keys == ["b"]
    assert all("extended headers" in detail for _, detail in bad.values())
    assert len(bad) <= 1


def test_what_a_member_is_called_has_a_largest_size(tmp_path, monkeypatch):
    monkeypatch.setattr(tar_members, "_MAX_EXTENSION_BYTES", 2000)
    keys, bad = read(
        tmp_path, sample("b" * 1900, tarfile.GNU_FORMAT), sample("c" * 2100, tarfile.GNU_FORMAT)
    )
    assert keys == ["b" * 1900]
    assert any("the extended header" in detail for _, detail in bad.values())


def test_empty_members(tmp_path):
    parts = [member("b.txt", b"x"), member("b.mp3"), member("c.txt"), member("c.mp3", AUDIO)]
    keys, bad = read(tmp_path, *parts)
    assert keys == []
    assert {key: reason for key, (reason, _) in bad.items()} == {
        "s/t/b": "empty_audio", "s/t/c": "missing_transcript",
    }  # fmt: skip


def test_a_tar_inside_a_tar_is_no_sample(tmp_path):
    inner = member("inner.tar", sample("i") + bytes(1024))
    keys, bad = read(tmp_path, inner, sample("c"))
    assert keys == ["c"]
    assert [reason for reason, _ in bad.values()] == ["missing_audio"]


def test_names_that_are_there_twice(tmp_path):
    """The second audio of a key begins a sample of its own; interleave finds ids of other units."""
    (tmp_path / "t.tar").write_bytes(
        sample("b") + member("b.mp3", OTHER) + sample("c") + bytes(1024)
    )
    kept, bad = clips_and_bad(100, kind="webdataset", paths=[f"{tmp_path}/t.tar"])
    assert [(clip["id"], clip["audio_bytes"]) for clip in kept] == [
        ("s/t/b", len(AUDIO)), ("s/t/c", len(AUDIO)),
    ]  # fmt: skip
    assert [reason for reason, _ in bad.values()] == ["missing_transcript"]


@pytest.mark.parametrize("options", [
    ["--format=pax", "--sparse-version=0.0"], ["--format=pax", "--sparse-version=0.1"],
    ["--format=pax", "--sparse-version=1.0"], ["--format=gnu"], ["--format=oldgnu"],
])  # fmt: skip
def test_sparse_members_of_gnu_tar(tmp_path, options):
    tar = shutil.which("tar")
    if not tar or b"GNU" not in subprocess.run([tar, "--version"], capture_output=True).stdout:
        pytest.skip("GNU tar is not installed")
    for key in "az":
        (tmp_path / f"{key}.txt").write_text("文")
        (tmp_path / f"{key}.mp3").write_bytes(AUDIO)
    (tmp_path / "b.txt").write_text("文")
    with (tmp_path / "b.mp3").open("wb") as file:
        for place in range(0, 1 << 22, 1 << 17):  # more holes than a header has room for
            file.seek(place)
            file.write(b"x")
        file.truncate(1 << 22)
    names = [f"{key}.{extension}" for key in "abz" for extension in ("txt", "mp3")]
    command = [tar, "--sparse", *options, "-cf", "t.tar", *names]
    subprocess.run(command, cwd=tmp_path, check=True)
    for size in (1, 100):
        kept, bad = clips_and_bad(size, kind="webdataset", paths=[f"{tmp_path}/t.tar"])
        assert [clip["id"] for clip in kept] == ["s/t/a", "s/t/z"]
        assert bad["s/t/b"][0] == "missing_audio"
        assert "a sparse member" in bad["s/t/b.mp3"][1]
        assert len(bad) == 2


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"\x1f\x8b\x08" + bytes(900), "a gzip stream"),
        (b"PK\x03\x04" + bytes(900), "a ZIP archive"),
        (b"<html>404</html>", "a page of HTML"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"no tar at all" * 1000, "or damaged there"),
        (b"x", "or damaged there"),
    ],
)
def test_a_file_of_another_kind_says_what_it_is(tmp_path, data, name):
    (tmp_path / "t.tar").write_bytes(data)
    kept, bad = clips_and_bad(kind="webdataset", paths=[f"{tmp_path}/t.tar"])
    assert kept == []
    ((reason, detail),) = bad.values()
    assert reason == "unreadable_bytes"
    assert f"{len(data):,} bytes from byte 0 on: it is not a tar archive" in detail
    assert name in detail


def test_a_sidecar_has_a_largest_size(tmp_path):
    """The member lies in a hole of the file, and must not be read."""
    size = 3 << 30
    with (tmp_path / "t.tar").open("wb") as file:
        file.write(with_size(member("b.json"), b"%011o\0" % size))
        file.seek(size, 1)
        file.write(member("b.mp3", AUDIO) + sample("c") + bytes(1024))
    kept, bad = clips_and_bad(kind="webdataset", paths=[f"{tmp_path}/t.tar"])
    assert [clip["id"] for clip in kept] == ["s/t/c"]
    assert bad == {"s/t/b": ("record_too_large", "b.json has more than 67,108,864 bytes")}


def test_audio_has_a_largest_size(tmp_path):
    size = 3 << 30
    with (tmp_path / "t.tar").open("wb") as file:
        file.write(member("b.txt", b"x") + with_size(member("b.opus"), b"%011o\0" % size))
        file.write(b"OggS")
        file.seek(size - 4, 1)
        file.write(sample("c") + bytes(1024))
    kept, bad = clips_and_bad(kind="webdataset", paths=[f"{tmp_path}/t.tar"])
    assert [clip["id"] for clip in kept] == ["s/t/c"]
    reason, detail = bad["s/t/b"]
    assert (reason, "3,221,225,472 bytes of audio" in detail) == ("record_too_large", True)


@pytest.mark.parametrize("added", [1, 100, 700, 1536])
@pytest.mark.parametrize("place", [600, 3000])
def test_bytes_that_were_added_within_a_member_cost_its_sample(tmp_path, added, place):
    """The member is as long as its header says, so its last bytes would be those of another."""
    assert len(AUDIO) % 512
    data = member("b.mp3", AUDIO)
    data = data[:place] + b"\xa5" * added + data[place:]
    kept, bad = read(tmp_path, member("b.txt", b"x"), data, sample("c"))
    assert kept == ["c"]
    assert {reason for reason, _ in bad.values()} == {"unreadable_bytes", "missing_audio"}
