"""A fault on every request in turn: absorbed, or a typed error from which the next run recovers."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from urllib.parse import parse_qs

from tests.s3_server import S3Server
from tests.soak.runs import Case, Differs, Whole, complete, require_same
from tests.soak.table import Report

ABSORBED, RESUMED = "absorbed", "typed error, then resumed"
FAULTS = ("error", "reset")  # 503 SlowDown; the connection is closed without an answer
Request = tuple[str, str, str]  # method, path, query


def kind_of(request: Request, run_dir: str) -> str:
    """Name what a request is about: its method, and the kind of file or listing."""
    method, path, query = request
    path = path.strip("/").removeprefix(run_dir.partition("://")[2]).strip("/")
    if "list-type" in query:
        prefix = parse_qs(query).get("prefix", [""])[0].rstrip("/").rpartition("/")[2]
        return f"LIST {prefix}"
    if "uploads" in query or "uploadId" in query:
        method += " (upload)"
    folder, _, name = path.rpartition("/")
    if not folder:
        return f"{method} {name}"
    parts = name.split(".")
    return f"{method} {folder}/*.{'.'.join(parts[1:])}" if len(parts) > 1 else f"{method} {path}"


def choose(kinds: Sequence[str], most: int, rng: random.Random) -> list[int]:
    """Choose numbers of requests, from 1: the first and a random one of each kind, then any.

    Every kind is covered, even by more than `most`.
    """
    places: dict[str, list[int]] = {}
    for number, kind in enumerate(kinds, 1):
        places.setdefault(kind, []).append(number)
    chosen = {found[0] for found in places.values()} | {rng.choice(f) for f in places.values()}
    others = [number for number in range(1, len(kinds) + 1) if number not in chosen]
    chosen.update(rng.sample(others, min(len(others), max(0, most - len(chosen)))))
    return sorted(chosen)


def fault_each(
    report: Report,
    server: S3Server,
    make_case: Callable[[], Case],
    whole: Whole,
    most: int,
    rng: random.Random,
    only: str = "",
) -> int:
    """Fail one request of each of some `most` runs; return how many requests an undisturbed one makes.

    `only` names the one kind of request to fail.
    """
    case = make_case()
    server.clear()
    complete(case, whole, thorough=False)
    kinds = [kind_of(request, case.run_dir) for request in server.log()]
    numbers = [n for n in choose(kinds, most, rng) if only in ("", kinds[n - 1])]
    for place, number in enumerate(numbers):
        fault = FAULTS[place % len(FAULTS)]
        report.run(
            "requests",
            f"{fault} on {kinds[number - 1]}",
            lambda number=number, fault=fault: _fault(server, make_case(), whole, number, fault),
        )
    return len(kinds)


def _fault(server: S3Server, case: Case, whole: Whole, number: int, fault: str) -> str:
    server.clear()
    server.fail(number=number, kind=fault)
    try:
        code = case.finish()
    finally:
        server.fail()
    text = case.log.read_text(encoding="utf-8")
    if "Traceback" in text or code not in (0, 1):
        raise Differs(f"request {number}: exit {code}, {case.last_lines()}")
    if code == 0:
        require_same(case, whole, thorough=False)
        return ABSORBED
    complete(case, whole, thorough=False)
    return RESUMED
