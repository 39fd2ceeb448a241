"""Other releases of the programs that read an export, each installed into a folder of its own.

A folder holds the packages that differ from the installed ones; torch and the rest come from the
environment that runs the tests. `python -m tests.clients.releases` installs those of CI, which the
tests otherwise install themselves.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2] / "build" / "clients"
_NO_NETWORK = ("No matching distribution", "Could not fetch", "Connection", "Temporary failure")


class Unreachable(Exception):
    """The package registry cannot be reached; the message is pip's last line."""


@dataclass(frozen=True)
class Release:
    """Packages that are installed together, without what they depend on, unless `complete`.

    `environment` is for the compiler of what is built from its source.
    """

    name: str
    requirements: tuple[str, ...]
    complete: bool = False
    environment: tuple[tuple[str, str], ...] = ()

    @property
    def folder(self) -> Path:
        return ROOT / self.name

    def installed(self) -> Path:
        """Return the folder, into which everything is installed unless it is there already.

        Raises: Unreachable; CalledProcessError when pip fails otherwise.
        """
        ROOT.mkdir(parents=True, exist_ok=True)
        with (ROOT / f"{self.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not self.folder.exists():
                self._install()
        return self.folder

    def _install(self) -> None:
        draft = self.folder.with_name(f".{self.name}.tmp")
        shutil.rmtree(draft, ignore_errors=True)
        options = ["--target", str(draft), "--quiet", "--disable-pip-version-check"]
        options += [] if self.complete else ["--no-deps"]
        done = subprocess.run(
            [sys.executable, "-m", "pip", "install", *options, *self.requirements],
            env=os.environ | dict(self.environment),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            if any(sign in done.stderr for sign in _NO_NETWORK):
                raise Unreachable(done.stderr.strip().splitlines()[-1])
            sys.stderr.write(done.stderr)
            done.check_returncode()
        draft.rename(self.folder)

    def python(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Run Python with these packages before those of the environment, and without the hub."""
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            env=os.environ | {"PYTHONPATH": str(self.installed()), "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )


# The first and the last of those that know neither `rope_parameters` nor `TokenizersBackend`.
TRANSFORMERS = tuple(
    Release(f"transformers-{version}", (f"transformers=={version}", *others))
    for version, *others in (
        ("4.44.2", "tokenizers==0.19.1", "huggingface_hub==0.36.2"),
        ("4.57.6", "tokenizers==0.22.2", "huggingface_hub==0.36.2"),
    )
)

# Built from its source, which takes minutes: `make clients`.
LLAMA_CPP = Release(
    "llama-cpp-python-0.3.36",
    ("llama-cpp-python==0.3.36", "diskcache==5.6.3"),
    environment=(
        ("CMAKE_ARGS", "-DLLAVA_BUILD=OFF -DCMAKE_CXX_FLAGS_RELEASE=-O1"),
        ("CMAKE_BUILD_PARALLEL_LEVEL", "2"),
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Install the releases that the tests compare with."
    )
    parser.add_argument(
        "--with-llama-cpp", action="store_true", help="build llama.cpp too: minutes"
    )
    wanted = [*TRANSFORMERS, *([LLAMA_CPP] if parser.parse_args().with_llama_cpp else [])]
    try:
        for release in wanted:
            print(f"clients: {release.installed()}")
    except Unreachable as why:
        sys.exit(f"clients: {release.name} cannot be installed: {why}")


if __name__ == "__main__":
    main()
