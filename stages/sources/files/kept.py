"""What planning finds out about source files and workers need: kept in a folder of the run."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt

from koe.atomic import atomically
from koe.remote import fresh_file_system
from koe.store_errors import absent_as_none, storage_errors


def keep(folder: str, name: str, data: bytes) -> None:
    """Write `data` under a name in a local folder or below a URL. Raises: StorageError."""
    with storage_errors(f"{folder}/{name} cannot be written"):
        if "://" not in folder:
            with atomically(Path(folder) / name) as file:
                file.write(data)
            return
        options = {"auto_mkdir": True} if folder.startswith("file:") else {}
        fs, place = fresh_file_system(folder, **options)
        fs.pipe_file(f"{place}/{name}", data)


def kept(folder: str, name: str) -> bytes | None:
    """Return what was kept; None where there is nothing. Raises: StorageError."""
    with _reading(folder, name), absent_as_none():
        if "://" not in folder:
            return (Path(folder) / name).read_bytes()
        fs, place = fresh_file_system(folder)
        return cast(bytes, fs.cat_file(f"{place}/{name}"))
    return None


def kept_numbers(folder: str, name: str) -> npt.NDArray[np.int64] | None:
    """Return numbers of 64 bits that were kept; None where there are none.

    Those in a local folder are mapped, so that the processes of a machine share them.
    Raises: StorageError.
    """
    if "://" in folder:
        data = kept(folder, name)
        return None if data is None else np.frombuffer(data, np.int64)
    with _reading(folder, name), absent_as_none():
        path = Path(folder) / name
        # an empty file cannot be mapped
        return np.memmap(path, np.int64, "r") if path.stat().st_size else np.empty(0, np.int64)
    return None


def _reading(folder: str, name: str) -> AbstractContextManager[None]:
    return storage_errors(f"{folder}/{name} cannot be read")
