"""Tables of what 15 M clips and 9 M instruction samples cost, from the results of `scale_run`.

    python -m benchmarks.scale_page benchmarks/results/scale_run_local_*.json benchmarks/results/scale_run_s3_*.json

Prints Markdown: what each command takes by size, with its law; files and bytes; requests; money. Prices
are parameters, with their source in PRICES.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.scale_run import FULL_CLIPS, HUGE_CLIPS, law

Run = dict[str, Any]


@dataclass(frozen=True)
class Prices:
    """List prices in USD, us-east-1.

    Machines: on-demand price of a c5.24xlarge (96 vCPUs, 48 cores) as in the EC2 Auto Scaling guide,
    "Spot price per unit hour example" (docs.aws.amazon.com/autoscaling/ec2/userguide), read
    2026-11-29, which calls its prices examples. S3 Standard: aws.amazon.com/s3/pricing, first 50 TB,
    as quoted by third parties that were read the same day; DELETE is free. EBS gp3: aws.amazon.com/ebs/pricing.
    """

    machine_hour: float = 4.08
    machine_cores: int = 48
    put_thousand: float = 0.005  # PUT, COPY, POST, LIST
    get_thousand: float = 0.0004  # GET, HEAD
    s3_gigabyte_month: float = 0.023
    disk_gigabyte_month: float = 0.08


# Core-hours of the published corpus on a Zen 4 core: docs/performance.md
STAGE_CORE_HOURS = {"score": 820, "encode": 1740}
_PUT, _GET = ("PUT", "POST", "LIST"), ("GET", "HEAD")
_HOURS_PER_MONTH = 730


def at(runs: Sequence[Run], values: Sequence[float], clips: int = FULL_CLIPS) -> float:
    """Return the figure at this many clips, by the line through the measured ones."""
    fitted = law([run["clips"] for run in runs], values)
    return max(0.0, fitted["fixed"] + fitted["per_million"] * clips / 1e6)


def commands_table(runs: Sequence[Run]) -> Iterator[str]:
    """Yield the table of CPU seconds and memory of each command."""
    sizes = [f"{run['clips']:,}" for run in runs]
    yield _line("command", "figure", *sizes, "exponent", "15 M + 9 M")
    yield _line(*["---"] * (len(sizes) + 4))
    for name in runs[0]["commands"]:
        yield from _rows(runs, name, "CPU s", [_of(run, name)["cpu_seconds"] for run in runs])
        for part in _of(runs[-1], name)["cpu_seconds_of"]:
            values = [_of(run, name)["cpu_seconds_of"].get(part, 0.0) for run in runs]
            yield from _rows(runs, f"{name}: {part}", "CPU s", values)
        memory = [_of(run, name)["megabytes"] for run in runs]
        yield from _rows(runs, name, "peak MB", memory)
        if "requests" in _of(runs[-1], name):
            yield from _rows(runs, name, "requests", [_of(run, name)["requests"] for run in runs])


def _rows(runs: Sequence[Run], name: str, figure: str, values: Sequence[float]) -> Iterator[str]:
    exponent = law([run["clips"] for run in runs], values).get("exponent")
    shown = [f"{value:,.4g}" if value < 1000 else f"{value:,.0f}" for value in values]
    full = f"{at(runs, values):,.0f}"
    yield _line(name, figure, *shown, "" if exponent is None else f"{exponent:.2f}", full)


def _of(run: Run, name: str) -> dict[str, Any]:
    return run["commands"][name]


def folders_table(runs: Sequence[Run]) -> Iterator[str]:
    """Yield the table of files and bytes of each folder, at 15 M clips and at a billion."""
    yield _line("folder", "kind", "files", "GB", "files at 1 B clips", "TB at 1 B clips")
    yield _line(*["---"] * 6)
    for key in sorted({key for run in runs for key in run["folders"]}):
        files, sizes = (
            [run["folders"].get(key, {}).get(what, 0) for run in runs]
            for what in ("files", "bytes")
        )
        yield _line(
            *key.rsplit(" ", 1),
            f"{at(runs, files):,.0f}",
            f"{at(runs, sizes) / 1e9:,.3f}",
            f"{at(runs, files, HUGE_CLIPS):,.0f}",
            f"{at(runs, sizes, HUGE_CLIPS) / 1e12:,.3f}",
        )
    yield _line(
        "**all**", "", f"{total(runs, 'files'):,.0f}", f"{total(runs, 'bytes') / 1e9:,.1f}",
        f"{total(runs, 'files', HUGE_CLIPS):,.0f}",
        f"{total(runs, 'bytes', HUGE_CLIPS) / 1e12:,.2f}",
    )  # fmt: skip


def total(runs: Sequence[Run], what: str, clips: int = FULL_CLIPS) -> float:
    """Return the files or bytes of a run directory at this many clips."""
    sums = [sum(part[what] for part in run["folders"].values()) for run in runs]
    return at(runs, sums, clips)


def request_cost(runs: Sequence[Run], name: str, prices: Prices) -> tuple[float, float]:
    """Return the requests of a command at 15 M clips, and their price."""
    number = cost = 0.0
    for methods, price in ((_PUT, prices.put_thousand), (_GET, prices.get_thousand)):
        values = [sum(_of(run, name)["requests_of"].get(m, 0) for m in methods) for run in runs]
        found = at(runs, values)
        number, cost = number + found, cost + found / 1000 * price
    return number, cost


def money(local: Sequence[Run], remote: Sequence[Run], prices: Prices) -> Iterator[str]:
    """Yield the table of hours and USD of one machine, of ten, and of S3."""
    cores = sum(STAGE_CORE_HOURS.values())
    driver = sum(
        at(local, [_of(run, name)["cpu_seconds"] for run in local]) for name in ("shards", "restart")
    ) / 3600  # fmt: skip
    gigabytes = total(local, "bytes") / 1e9
    yield _line("what", "hours", "USD")
    yield _line("---", "---", "---")
    for machines in (1, 10):
        hours = cores / (machines * prices.machine_cores) + driver
        machine = "one machine" if machines == 1 else f"{machines} machines"
        price = hours * machines * prices.machine_hour
        what = f"{machine} of {prices.machine_cores} cores: score, encode, shards"
        yield _line(what, f"{hours:.1f}", f"{price:,.0f}")
    disk = gigabytes * prices.disk_gigabyte_month
    yield _line(f"disk, {gigabytes:.0f} GB for a month", f"{_HOURS_PER_MONTH}", f"{disk:,.2f}")
    stored = gigabytes * prices.s3_gigabyte_month
    yield _line(f"S3, {gigabytes:.0f} GB for a month", f"{_HOURS_PER_MONTH}", f"{stored:,.2f}")
    for name in remote[0]["commands"] if remote else ():
        number, price = request_cost(remote, name, prices)
        yield _line(f"S3, {number:,.0f} requests of {name}", "", f"{price:,.2f}")


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, nargs="+")
    for name, price in vars(Prices()).items():
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=type(price), default=price, help="USD, or cores")
    options = vars(parser.parse_args())
    found = [json.loads(path.read_text(encoding="utf-8")) for path in options.pop("results")]
    by_name = {result["name"].removeprefix("scale_run_"): result["runs"] for result in found}
    for name, runs in by_name.items():
        print(f"\n## {name}\n", *commands_table(runs), "", *folders_table(runs), sep="\n")
    local = by_name.get("local") or next(iter(by_name.values()))
    prices = Prices(**options)
    print("\n## Hours and money\n", *money(local, by_name.get("s3", []), prices), sep="\n")


if __name__ == "__main__":
    main()
