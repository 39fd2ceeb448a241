"""One reader under a fuzzer that is led by coverage, in a process that damage may kill.

`python -m tests.fuzz.target READER [options of libFuzzer] CORPUS` ends with another code than 0 where it found
something: an exception, a crash of a library, or an input that takes too long or too much memory.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from pathlib import Path

import atheris
import pyarrow as pa

with atheris.instrument_imports(include=["stages"]):
    from tests.fuzz.readers import READERS
    from tests.fuzz.reading import read_in


def main(name: str, options: list[str]) -> None:
    pa.set_cpu_count(1)  # handing a small table to other threads takes longer than decoding it
    reader, numbers = READERS[name], itertools.count()
    with tempfile.TemporaryDirectory(prefix=f"koe-fuzz-{name}-", dir=_memory()) as folder:

        def try_one(data: bytes) -> None:
            # what is known of a file is known by its path, so each input has a folder of its own
            read_in(Path(folder) / str(next(numbers)), reader.files(data), reader.source)

        atheris.Setup([sys.argv[0], *options], try_one)
        atheris.Fuzz()


def _memory() -> str | None:
    """Return a folder in memory, where there is one: each input writes some files."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
