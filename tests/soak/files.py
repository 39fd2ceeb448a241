"""Files that are torn, lost or overwritten, and disks that are full."""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.soak.runs import Case, Differs, Whole, complete
from tests.soak.table import SAME, Report

REFUSED, RESUMED = "refused by verify", "typed error, then resumed"
_KINDS = (".excluded.arrow", ".arrow", ".json", ".md")


def kind_of(path: Path) -> str:
    folder = path.parent.name
    return f"{folder}/*{next((k for k in _KINDS if path.name.endswith(k)), path.suffix)}"


def outputs(run_dir: Path) -> list[Path]:
    """List all files of a finished run that a later run reads, in a fixed order."""
    found = (path for path in run_dir.rglob("*") if path.is_file() and path.name != "run.lock")
    return sorted(path for path in found if "source_index" not in path.parts)


def tear_each(
    report: Report, finished: Path, make_case: Callable[[], Case], whole: Whole, rng: random.Random
) -> None:
    """Cut every file of a finished run in turn at a random byte, then all of them at once."""
    for path in outputs(finished):
        name = path.relative_to(finished)
        for what, damage in (("cut", _cut), ("lost", _lose)):
            report.run(
                "files",
                f"{what} {kind_of(path)}",
                lambda name=name, damage=damage: _resumed(
                    finished, make_case(), whole, lambda root: damage(root / name, rng)
                ),
            )
    for _ in range(3):
        report.run(
            "files",
            "cut all",
            lambda: _resumed(
                finished,
                make_case(),
                whole,
                lambda root: [_cut(path, rng) for path in outputs(root)],
            ),
        )


def overwrite_each(
    report: Report, finished: Path, make_case: Callable[[], Case], rng: random.Random
) -> None:
    """Zero a page of every table of a finished run in turn; `koe verify` must refuse each."""
    for path in outputs(finished):
        if path.suffix == ".arrow":
            name = path.relative_to(finished)
            report.run(
                "files",
                f"zeros in {kind_of(path)}",
                lambda name=name: _refused(finished, make_case(), name, rng),
            )


def _resumed(finished: Path, case: Case, whole: Whole, damage: Callable[[Path], object]) -> str:
    root = Path(case.run_dir)
    shutil.copytree(finished, root)
    damage(root)
    complete(case, whole, thorough=False)
    shutil.rmtree(root)
    return SAME


def _refused(finished: Path, case: Case, name: Path, rng: random.Random) -> str:
    root = Path(case.run_dir)
    shutil.copytree(finished, root)
    data = bytearray((root / name).read_bytes())
    places = [place for place, value in enumerate(data) if value]
    begin = rng.choice(places)
    data[begin : begin + 512] = bytes(len(data[begin : begin + 512]))
    (root / name).write_bytes(data)
    code = case.finish("verify")
    shutil.rmtree(root)
    text = case.log.read_text(encoding="utf-8")
    if code != 1 or "Traceback" in text:
        raise Differs(f"verify of {name} with zeros from byte {begin} ended with {code}")
    return REFUSED


def _cut(path: Path, rng: random.Random) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: rng.randrange(len(data))])


def _lose(path: Path, rng: random.Random) -> None:
    path.unlink()


def fill_disks(
    report: Report,
    make_case: Callable[[], Case],
    whole: Whole,
    num_bytes: int,
    number: int,
    rng: random.Random,
) -> None:
    """Run on disks that are full at different moments, then go on with room.

    A disk is a small tmpfs where one can be mounted; beside it, a limit on the size of a file.
    """
    for place in range(number):
        share = (place + rng.random()) / number
        size = max(4096, round(share * num_bytes / 4096) * 4096)
        report.run("disks", "full tmpfs", lambda size=size: _full(make_case(), whole, size))
        limit = max(64, round(share * share * num_bytes / 4))
        report.run(
            "disks", "file too large", lambda limit=limit: _limited(make_case(), whole, limit)
        )


def _full(case: Case, whole: Whole, size: int) -> str:
    with _disk(Path(case.run_dir), size) as mounted:
        if not mounted:
            return "not tried: no tmpfs can be mounted here"
        _require_typed(case, case.finish())
        subprocess.run(["mount", "-o", "remount,size=1g", case.run_dir], check=True)
        complete(case, whole)
    return RESUMED


def _limited(case: Case, whole: Whole, file_bytes: int) -> str:
    _require_typed(case, case.wait(case.start(file_bytes=file_bytes)))
    complete(case, whole)
    shutil.rmtree(case.run_dir)
    return RESUMED


def _require_typed(case: Case, code: int) -> None:
    text = case.log.read_text(encoding="utf-8")
    if code not in (0, 1) or "Traceback" in text:
        raise Differs(f"a full disk ended the run with {code}: {case.last_lines()}")
    if code and "cannot write" not in text:
        raise Differs(f"a full disk was not named: {case.last_lines()}")


@contextmanager
def _disk(folder: Path, size: int) -> Iterator[bool]:
    """Mount a tmpfs of `size` bytes; yields whether it could be."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)
