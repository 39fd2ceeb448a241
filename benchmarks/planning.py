"""How fast tars of clips are planned, compared with reading their headers by `tarfile`.

    python -m benchmarks.planning [--clips 20000] [--repeat 3]

Two sets of tars: members of 1 kB, which lie close together, and of 60 kB, the size of a compressed
clip of some seconds (written with holes, so that they take no space). Each sample is a `.json` and a
`.flac`. The peer lists the members of the same files with `tarfile` in one process. Then a complete
`plan.json` of 15,000 units is saved and loaded.
"""

from __future__ import annotations

import argparse
import io
import json
import tarfile
import tempfile
import time
from pathlib import Path
from statistics import median

from koe.schema import Unit
from pipeline.run_dir.plan import load_plan, make_plan
from pipeline.run_dir.storage import Storage
from stages.sources.readers import speech_source
from stages.sources.settings import SpeechSourceConfig

UNIT_CLIPS, PLAN_UNITS, TAR_CLIPS = 1000, 15_000, 1000


def write_tars(folder: Path, num_clips: int, member_bytes: int) -> None:
    """Write `num_clips` samples into tars of TAR_CLIPS each; the audio is a hole."""
    folder.mkdir()
    sidecar = json.dumps({"text": "text of a clip", "speaker": "S1", "dnsmos": 3.2}).encode()
    for first in range(0, num_clips, TAR_CLIPS):
        with (folder / f"{first:08d}.tar").open("wb") as file:
            for clip in range(first, first + TAR_CLIPS):
                for name, size in ((f"{clip:09d}.json", len(sidecar)), (f"{clip:09d}.flac", 0)):
                    info = tarfile.TarInfo(name)
                    info.size = size or member_bytes
                    file.write(info.tobuf(tarfile.USTAR_FORMAT))
                    if size:
                        file.write(sidecar)
                    file.seek(-(-info.size // 512) * 512 - size, io.SEEK_CUR)
            file.write(bytes(10_240))


def seconds_of(run) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def plan_tars(folder: Path, num_clips: int) -> None:
    source = speech_source(
        SpeechSourceConfig(name="clips", kind="webdataset", paths=[f"{folder}/*.tar"]), UNIT_CLIPS
    )
    assert sum(unit.records for unit in source.units()) == num_clips


def list_tars(folder: Path, num_clips: int) -> None:
    num_members = 0
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path, "r:") as tar:
            num_members += sum(1 for _ in tar)
    assert num_members == 2 * num_clips


class _Planned:
    """A source whose units are known, to measure the plan alone."""

    name, modality = "clips", "speech"

    def units(self, known=None):
        for k in range(PLAN_UNITS):
            path = f"/data/emilia/JA/JA-B{k:06d}.tar"
            stamp = "120000000:1700000000000000000"
            if known and (units := known(path, stamp)) is not None:
                yield from units
                continue
            name = f"clips-{k:012x}-00000"
            yield Unit(name, "clips", "speech", path, stamp, 0, 119_999_488, 1000)

    def remarks(self, units):
        return {}


def main() -> None:
    from benchmarks.results import write_result

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=20_000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--no-result", action="store_true")
    options = parser.parse_args()
    figures: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        for kilobytes in (1, 60):
            folder = Path(name) / str(kilobytes)
            write_tars(folder, options.clips, kilobytes * 1000)
            ours, theirs = [], []
            for _ in range(options.repeat):
                ours.append(
                    options.clips / seconds_of(lambda f=folder: plan_tars(f, options.clips))
                )
                theirs.append(
                    options.clips / seconds_of(lambda f=folder: list_tars(f, options.clips))
                )
            figures[f"{kilobytes} kB"] = {"ours": ours, "theirs": theirs}
            print(
                f"members of {kilobytes} kB: {median(ours):,.0f} clips/s, tarfile "
                f"{median(theirs):,.0f}; 15 M clips in {15e6 / median(ours) / 60:.1f} minutes"
            )
        storage = Storage(name)
        sources = [(_Planned(), {"unit_clips": UNIT_CLIPS})]
        plan = {
            "save": seconds_of(lambda: make_plan(sources, storage)),
            "again": seconds_of(lambda: make_plan(sources, storage)),
            "load": seconds_of(lambda: load_plan(storage)),
            "megabytes": (storage.size("plan.json") or 0) / 1e6,
        }
        plan = {key: round(value, 2) for key, value in plan.items()}
        print(f"plan.json of {PLAN_UNITS:,} units: {plan}")
    if not options.no_result:
        more = {"small_members": figures["1 kB"], "plan_json_seconds": plan}
        print(write_result("planning", "tarfile", "clips/s", **figures["60 kB"], **more))


if __name__ == "__main__":
    main()
