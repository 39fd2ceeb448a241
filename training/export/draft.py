"""A new folder, on a disk or at a URL, that is there completely or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from koe.atomic import sync
from koe.errors import ConfigError
from training.places import Place, RemoteFolder, local_folder
from training.work_folder import WorkFolder


@contextmanager
def drafted(out: Place, last: str = "") -> Iterator[Path]:
    """Make a local folder of files that becomes `out` once it is complete, and is deleted otherwise.

    `out` is absolute. At a URL, where files appear one by one, the file called `last` comes last.
    """
    folder = local_folder(out)
    if folder is None:
        work = WorkFolder()
        try:
            yield work.path
            _upload(work.path, RemoteFolder(str(out)), last)
        finally:
            work.close()
        return
    draft = folder.with_name(f".{folder.name}.tmp")
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        yield draft
        mode = draft.stat().st_mode & 0o666
        for path in draft.iterdir():
            path.chmod(mode)  # safetensors lets only the owner read its files
            sync(path)
        sync(draft)
        draft.rename(folder)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    sync(folder.parent)


def _upload(folder: Path, remote: RemoteFolder, last: str) -> None:
    for path in sorted(folder.iterdir(), key=lambda path: (path.name == last, path.name)):
        remote.upload(path, path.name)


def require_free(out: Place) -> None:
    """Refuse a folder or URL that is not empty. Raises: ConfigError."""
    folder = local_folder(out)
    if folder is None:
        is_free = not RemoteFolder(str(out)).sizes()
    else:
        is_free = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    if not is_free:
        raise ConfigError(
            f"{out} already exists",
            "an export never overwrites anything",
            "Name another folder, or remove that one.",
        )
