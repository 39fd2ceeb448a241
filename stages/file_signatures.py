"""What a file is by its first bytes, where it is not what it is called."""

from __future__ import annotations

_BEGINNINGS = (
    (b"version https://git-lfs.github.com/spec/", "a pointer of Git LFS: `git lfs pull` fetches the file"),
    (b"\x1f\x8b", "a gzip stream"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard stream"),
    (b"BZh", "a bzip2 stream"),
    (b"\xfd7zXZ\0", "an xz stream"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (b"Rar!", "a RAR archive"),
    (b"ARROW1", "an Arrow file"),
    (b"\xff\xfe\0\0", "text in UTF-32"),
    (b"\0\0\xfe\xff", "text in UTF-32"),
    (b"\xff\xfe", "text in UTF-16"),
    (b"\xfe\xff", "text in UTF-16"),
    (b"%PDF-", "a PDF file"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x80\x04\x95", "a pickle of Python"),
    (b"\x93NUMPY", "an array of NumPy"),
)  # fmt: skip
_PAGES = (b"<!doctype html", b"<html", b"<?xml", b"<head", b"<error")


def looks_like(head: bytes) -> str:
    """Say what a file is that begins with these bytes; empty where there is no telling."""
    for beginning, name in _BEGINNINGS:
        if head.startswith(beginning):
            return name
    if head.lstrip()[:20].lower().startswith(_PAGES):
        return "a page of HTML or XML, such as a server sends instead of a file"
    return ""
