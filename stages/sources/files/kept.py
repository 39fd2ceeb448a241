"""What planning finds out about source files and workers need: kept in a folder of the run."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from koe.atomic import atomically
from koe.remote import file_system


def name_of(path: str, stamp: str, suffix: str) -> str:
    """Return the name under which something is kept that depends on a file with this stamp."""
    return f"{hashlib.sha256(f'{path}|{stamp}'.encode()).hexdigest()[:32]}{suffix}"


def keep(folder: str, name: str, data: bytes) -> None:
    """Write `data` under a name in a local folder or below a URL. Raises: OSError."""
    if "://" not in folder:
        with atomically(Path(folder) / name) as file:
            file.write(data)
        return
    fs, place = file_system(folder, **({"auto_mkdir": True} if folder.startswith("file:") else {}))
    fs.pipe_file(f"{place}/{name}", data)


def kept(folder: str, name: str) -> bytes | None:
    """Return what was kept; None where there is nothing."""
    fs, place = file_system(folder)
    try:
        return fs.cat_file(f"{place}/{name}")
    except OSError:
        return None


def kept_numbers(folder: str, name: str) -> npt.NDArray[np.int64] | None:
    """Return numbers of 64 bits that were kept; None where there are none.

    Those in a local folder are mapped, so that the processes of a machine share them.
    """
    if "://" in folder:
        data = kept(folder, name)
        return None if data is None else np.frombuffer(data, np.int64)
    try:
        path = Path(folder) / name
        # an empty file cannot be mapped
        return np.memmap(path, np.int64, "r") if path.stat().st_size else np.empty(0, np.int64)
    except OSError:
        return None
