"""WebDataset tars: samples are runs of members that share a name up to its first dot."""

from __future__ import annotations

import io
import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO, NamedTuple

from koe.errors import BadRecord, attempt
from koe.schema import Unit
from stages.sources.base import AudioLocation, Record, SpeechFiles
from stages.sources.fields import parse_object
from stages.sources.files import Fault, SourceFile, num_bytes, open_binary, open_unit
from stages.sources.planning import Slice, cut

# Formats that libsndfile cannot read count as audio too: "unreadable" says more than "missing".
_AUDIO = frozenset(
    ["wav", "flac", "mp3", "ogg", "oga", "opus", "m4a", "aac", "wma", "webm", "aiff"]
)

# Writers pad the archive's last block with zeros: usually to 10 KiB, at most to 1 MiB.
_END_BYTES = 1 << 20


# From byte 100 of a header: mode, uid, gid, size, mtime, checksum, the type of a regular file.
_FIELDS = re.compile(rb"[0-7]{7}\0[0-7]{7}\0[0-7]{7}\0([0-7]{11})\0[0-7]{11}\0([0-7]{6})\0 [0\0]")
_DEVICES = (bytes(16), b"0000000\0" * 2)  # device numbers in the header of a regular file


class Member(NamedTuple):
    name: str
    offset: int  # of the header
    data_offset: int
    size: int
    unsafe: str = ""  # why it must not be read


@dataclass
class Sample:
    """Members of one sample by extension, in the order of the archive."""

    key: str
    start: int
    stop: int
    members: dict[str, Member] = field(default_factory=dict)


def read_members(file: BinaryIO, start: int, stop: int | None) -> Iterator[Member]:
    """Yield the members whose headers lie in a byte range, by their headers alone.

    Raises: Fault where the archive breaks off or is damaged.
    """
    # TarFile's own iteration takes a broken header for the end of the archive, and needs an intact
    # one to start with. So it is used for nothing but the settings of the public header parser.
    archive = tarfile.TarFile(fileobj=io.BytesIO(bytes(2 * tarfile.BLOCKSIZE)), encoding="utf-8")
    archive.fileobj = file
    size = num_bytes(file)
    place = start
    while stop is None or place < stop:
        file.seek(place)
        header = file.read(tarfile.BLOCKSIZE)
        member = None if archive.pax_headers else _plain_member(header, place)
        if member:
            end = member.data_offset + member.size
            if end > size:
                raise Fault(f"{member.name} should end at byte {end}, the file ends at {size}")
            yield member
            place = end + -end % tarfile.BLOCKSIZE
            continue
        file.seek(place)
        try:
            info = tarfile.TarInfo.fromtarfile(archive)
        except tarfile.EOFHeaderError:  # pyright: ignore[reportAttributeAccessIssue]
            # the zero block that ends an archive
            _require_end(file, place)
            return
        except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
            raise Fault(_broken(place, size, error)) from None
        end = info.offset_data + info.size
        if info.size < 0 or archive.offset <= place:
            raise Fault(f"the header at byte {place} states a size of {info.size}")
        if info.isreg() and end > size:
            raise Fault(f"{info.name} should end at byte {end}, the file ends at {size}")
        if not info.isdir():
            unsafe = _why_unsafe(info)
            name = info.name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
            yield Member(name, place, info.offset_data, info.size, unsafe)
        place = archive.offset


def _plain_member(header: bytes, place: int) -> Member | None:
    """Read a regular member's header as nearly all writers make it; return None for any other.

    It takes a tenth of tarfile's time. tarfile reads all other headers, and decides what is
    damaged. The bytes of an ASCII header sum to less than Adler-32's modulus, so the low half of
    their Adler-32 is their exact sum.
    """
    fields = _FIELDS.match(header, 100)
    if not fields or not header.isascii() or header[329:345] not in _DEVICES:
        return None
    data_size, checksum = fields.groups()
    total = (zlib.adler32(header) & 0xFFFF) - 1
    if total - sum(header[148:156]) + 8 * ord(" ") != int(checksum, 8):
        return None
    raw = header[:100].partition(b"\0")[0]
    if header[345]:
        raw = header[345:500].partition(b"\0")[0] + b"/" + raw
    name = raw.decode("ascii")
    if name.endswith("/"):  # a folder, to writers before POSIX
        return None
    unsafe = _leads_out(name) if ".." in name or name.startswith("/") else ""
    return Member(name, place, place + tarfile.BLOCKSIZE, int(data_size, 8), unsafe)


def _broken(place: int, size: int, error: Exception) -> str:
    if place == 0:
        return "the file is empty" if size == 0 else f"it is not a tar archive: {error}"
    if place >= size:
        return f"the archive ends at byte {size} without an end mark"
    return f"the header at byte {place} of {size} is cut off or damaged: {error}"


def _require_end(file: BinaryIO, place: int) -> None:
    """Raise Fault where data follows the end mark, such as a second archive."""
    file.seek(place)
    if file.read(_END_BYTES).strip(b"\0"):
        raise Fault(f"data follows the archive's end mark at byte {place}, as after `cat a b`")


def _why_unsafe(info: tarfile.TarInfo) -> str:
    if not info.isreg():
        return "a link, a device or another special member"
    if info.issparse():
        return "a sparse member, whose bytes do not lie in one piece"
    if why := _leads_out(info.name):
        return why
    try:
        info.name.encode()
    except UnicodeEncodeError:
        return "its name is not valid UTF-8"
    return ""


def _leads_out(name: str) -> str:
    out = name.startswith("/") or ".." in name.split("/")
    return "its name points outside the archive" if out else ""


def read_samples(file: BinaryIO, start: int, stop: int | None) -> Iterator[Sample | Member]:
    """Group members into samples; an unsafe member stands alone and ends the group before it.

    Hidden members (`._x.mp3` of macOS) belong to no sample and are skipped, as in WebDataset.

    Raises: Fault, after the last complete group.
    """
    sample: Sample | None = None
    try:
        for member in read_members(file, start, stop):
            folder, slash, last = member.name.removeprefix("./").rpartition("/")
            base, _, extension = last.partition(".")
            key, extension = f"{folder}{slash}{base}", extension.lower()
            new = base and sample and (key != sample.key or extension in sample.members)
            if sample and (member.unsafe or new):
                yield sample
                sample = None
            if member.unsafe:
                yield member
            elif base:
                sample = sample or Sample(key, member.offset, 0)
                sample.members[extension] = member
                sample.stop = member.data_offset + member.size
    except Fault:
        if sample:
            yield sample
        raise
    if sample:
        yield sample


def _span(item: Sample | Member) -> tuple[int, int]:
    if isinstance(item, Member):
        return item.offset, item.data_offset
    return item.start, item.stop


class WebDatasetSource(SpeechFiles):
    """Tars with `.json` or `.txt` beside the audio, as in Emilia."""

    def slices(self, file: SourceFile) -> Iterator[Slice]:
        with open_binary(file.path) as tar:
            # unbuffered: a buffer would read 8 KiB for each header of 512 bytes
            headers = getattr(tar, "raw", tar)
            yield from cut(map(_span, read_samples(headers, 0, None)), self.unit_records)

    def read(self, unit: Unit) -> Iterator[Record]:
        if unit.records == 0:
            return
        prefix = self.prefix(unit)
        with open_unit(unit) as tar:
            for item in read_samples(tar, unit.start, unit.stop):
                yield self._record(tar, unit.path, prefix, item)

    def _record(self, tar: BinaryIO, path: str, prefix: str, item: Sample | Member) -> Record:
        if isinstance(item, Member):
            key, location = f"{prefix}/{item.name}", f"{path}:{item.name}@{item.offset}"
            bad = BadRecord("unsafe_tar_member", f"{item.name!r}: {item.unsafe}")
            return self.record(key, location, bad)
        key, location = f"{prefix}/{item.key}", f"{path}:{item.key}@{item.start}"
        record = self.record(key, location, attempt(_sidecars, tar, item))
        if record.bad:
            return record
        audio = attempt(_audio_member, item, self.settings.fields.audio)
        if isinstance(audio, BadRecord):
            return replace(record, bad=audio)
        place = AudioLocation("tar", path, audio.name, audio.data_offset, audio.size)
        return replace(record, location=f"{path}:{audio.name}@{audio.data_offset}", audio=place)


def _sidecars(tar: BinaryIO, sample: Sample) -> dict[str, Any]:
    """Read a sample's `.json`, and its `.txt` as fields `txt` and, if there is none, `text`."""
    fields: dict[str, Any] = {}
    if "json" in sample.members:
        fields = parse_object(_read(tar, sample.members["json"]))
    if "txt" in sample.members:
        try:
            text = _read(tar, sample.members["txt"]).decode("utf-8-sig").strip()
        except UnicodeDecodeError as error:
            raise BadRecord("broken_text", f"the .txt is not valid UTF-8: {error.reason}") from None
        fields.setdefault("txt", text)
        fields.setdefault("text", text)
    return fields


def _read(tar: BinaryIO, member: Member) -> bytes:
    tar.seek(member.data_offset)
    return tar.read(member.size)


def _audio_member(sample: Sample, extension: str | None) -> Member:
    if extension is not None:
        found = [sample.members[extension]] if extension in sample.members else []
    else:
        found = [m for ext, m in sample.members.items() if ext.rpartition(".")[2] in _AUDIO]
    if not found:
        raise BadRecord("missing_audio", f"it holds only {', '.join(sample.members) or 'nothing'}")
    if len(found) > 1:
        names = ", ".join(member.name for member in found)
        raise BadRecord("ambiguous_audio", f"{names}; name the extension in fields.audio")
    return found[0]
