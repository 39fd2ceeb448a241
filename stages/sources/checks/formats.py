"""What a file is by its first bytes, where it is not what its source says."""

from __future__ import annotations

from typing import NamedTuple

from stages.file_signatures import looks_like

_OTHER = "Write what it holds as Parquet, and set kind: parquet."


class Format(NamedTuple):
    """A format: the kinds of source that read it, its name, and what to do with it otherwise."""

    kinds: tuple[str, ...]
    name: str
    remedy: str = ""


_PARQUET = Format(("parquet",), "a Parquet file")
_ARROW = Format(
    (),
    "an Arrow file, as `datasets` saves to disk",
    "Write it as Parquet, with datasets.load_from_disk(folder).to_parquet(file), and set kind: "
    "parquet.",
)
_AUDIO = Format((), "an audio file", "Name the file that lists the clips with their transcripts.")
_TAR = Format(("webdataset",), "a tar archive", "Unpack it.")
_BY_START: tuple[tuple[bytes, Format], ...] = (
    (b"PAR1", _PARQUET),
    (b"ARROW1", _ARROW),
    (b"\xff\xff\xff\xff", _ARROW),  # a stream begins with the mark of a message
    (b"SQLite format 3\0", Format((), "an SQLite database", _OTHER)),
    *((start, _AUDIO) for start in (b"RIFF", b"fLaC", b"OggS", b"ID3", b"FORM")),
    (b"[", Format(("json",), "an array of JSON", "Write one JSON object on each line.")),
    (b"{", Format(("jsonl", "manifest", "shar", "folder"), "made of JSON objects")),
)
# Two that a source reads where their names say what they are.
_COMPRESSED = {b"\x1f\x8b": ".gz", b"\x28\xb5\x2f\xfd": ".zst"}


def format_of(head: bytes) -> Format | None:
    """Return the format of a file from its first 512 bytes or more; None for one that is not known."""
    if head[257:262] == b"ustar":
        return _TAR
    if head[4:8] == b"ftyp":  # MP4, and so M4A
        return _AUDIO
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()  # JSON may begin with white space
    for start, found in _BY_START:
        if head.startswith(start) or text.startswith(start):
            return found
    name = looks_like(head)
    if not name or name.startswith("text"):
        return None
    ending = next((end for start, end in _COMPRESSED.items() if head.startswith(start)), None)
    return Format((), name, f"Give it a name that ends in {ending}." if ending else _OTHER)
