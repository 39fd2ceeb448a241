"""What tests share because each of them would take seconds to make it again."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import pytest

from pipeline.jobs import assembly, speech_samples
from stages.text import tokenizer
from tests.calling import koe
from tests.corpus import write_corpus


@pytest.fixture(scope="session", autouse=True)
def one_tokenizer() -> Iterator[None]:
    """Convert the Llama 3 tokenizer once a process: it is 4 of the 6 s that a small run takes."""
    convert = tokenizer._from_package

    @lru_cache(maxsize=1)
    def converted(path: Path, changed_ns: int):
        return convert()

    def from_package():
        path = tokenizer._packaged_model()
        return converted(path, path.stat().st_mtime_ns)

    stripped = lru_cache(maxsize=2)(tokenizer.text_tokenizer)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer, "_from_package", from_package)
        for module in (assembly, speech_samples):
            patch.setattr(module, "text_tokenizer", stripped)
        yield


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return `pipeline.yaml` of the test corpus, whose run is finished in `run` beside it.

    Made once a session, for all its processes: nobody may change it.
    """

    def make(folder: Path) -> None:
        config = write_corpus(folder)
        code, _, errors = koe("run", "--to", "interleave", "-c", str(config))
        assert code == 0, errors

    return once_a_session(tmp_path_factory, "finished-run", make) / "pipeline.yaml"


def once_a_session(
    tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]
) -> Path:
    """Return a folder that the first process of the session to ask for it has `make` fill."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    folder = root / name
    with (root / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "complete").exists():
            make(folder)
            (folder / "complete").touch()
    return folder
