"""The boundary around what decodes or parses the data of others: a record's bytes fail the record alone.

Libraries raise what they like over damaged data, and so may koe's own walks over it. Behind this boundary each
of that is a BadRecord of the record. What passes are typed errors, OSError, with which storage fails, and what the
clients of stores raise.
"""

from __future__ import annotations

import csv
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

import indexed_gzip
import pyarrow as pa
import soundfile
import zstandard

from koe.errors import BadRecord, ConfigError, KoeError
from koe.store_errors import comes_from_store

P = ParamSpec("P")
T = TypeVar("T")

# Said of a failure that no parser is known for: it costs the record all the same.
DEFECT = "koe did not expect this of a reader, please report it"
_TOO_LARGE = (MemoryError, pa.ArrowMemoryError)  # of a size that the data state
# What parsers and decoders raise over data.
_OF_DATA = (
    ValueError,  # with it UnicodeError and json.JSONDecodeError
    OverflowError,
    RecursionError,
    csv.Error,
    struct.error,
    tarfile.TarError,
    zlib.error,
    zstandard.ZstdError,
    pa.ArrowException,
    soundfile.SoundFileError,
)


def bad_record(reason: str, error: Exception) -> BadRecord:
    """Make the BadRecord of what a parser or decoder raised over a record."""
    if isinstance(error, _TOO_LARGE):
        return BadRecord("record_too_large", f"it states more than fits into memory: {error}")
    name = "" if type(error) is ValueError else f"{type(error).__name__}: "
    known = isinstance(error, _OF_DATA)
    return BadRecord(reason, f"{name}{error}" if known else f"{name}{error} ({DEFECT})")


def passes(error: Exception) -> bool:
    """Tell whether an error is no fault of the data that were read: storage, or one of koe's own."""
    if isinstance(error, indexed_gzip.ZranError):  # an OSError, of a damaged stream
        return False
    return isinstance(error, KoeError | BadRecord | OSError) or comes_from_store(error)


@contextmanager
def guarded(reason: str) -> Iterator[None]:
    """Raise a BadRecord with this reason for whatever else is raised within.

    Raises: KoeError, OSError and errors of stores as they are.
    """
    try:
        yield
    except Exception as error:
        if passes(error):
            raise
        raise bad_record(reason, error) from error


def attempt_read(
    reason: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> T | BadRecord:
    """Return the function's result, its BadRecord, or one with this reason for what else it raises.

    Raises: KoeError and OSError as they are.
    """
    try:
        with guarded(reason):
            return function(*args, **kwargs)
    except BadRecord as bad:
        return bad


@contextmanager
def planned(source: str) -> Iterator[None]:
    """Raise a ConfigError that names the source for what planning it did not expect.

    Raises: KoeError and OSError as they are.
    """
    try:
        yield
    except Exception as error:
        if passes(error):
            raise
        raise ConfigError(
            f"source {source} cannot be planned",
            bad_record("", error).detail,
            "Leave out of paths what was damaged, or what is of another kind.",
        ) from error
