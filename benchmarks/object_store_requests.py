"""How many requests a run on an object store makes: counted by the S3 server that the tests use.

    python -m benchmarks.object_store_requests [--units 12] [--clips 323] [--no-result]

The clips are short and their scores stated by the source, so that little is computed: the requests of
a run do not depend on what its stages compute. Counted are, one after the other, `koe run` up to
the shards, the same command again (all is done), `koe status`, `koe stats` and `koe verify`. Needs the
packages of the tests (moto).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import soundfile
import yaml

from benchmarks.results import run_command, write_figures
from tests.s3_server import S3Server, s3_server

TEXT_UNITS = 3
# All requests of the same commands at commit e3e2beb, measured by this script with its defaults,
# before small outputs were written in one request and receipts were read in bulk.
PEER, PEER_REQUESTS = "koe at e3e2beb", 2273
DEFAULTS = {"units": 12, "clips": 323}
COMMANDS = {
    "run": ("run", "--to", "interleave"),
    "rerun": ("run", "--to", "interleave"),
    "status": ("status", "--json"),
    "stats": ("stats", "--json"),
    "verify": ("verify",),
}


def write_corpus(folder: Path, run_dir: str, num_units: int, num_clips: int) -> Path:
    """Write clips and instructions for about `num_units` units, and their configuration."""
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 9600).astype(np.float32)
    soundfile.write(folder / "clip.flac", noise, 16_000)
    clips = [
        {
            "id": f"c{k}",
            "audio_filepath": "clip.flac",
            "text": f"文章その{k}です。",
            "ovrl": 3.0 if k % 9 else 1.0,
        }
        for k in range(num_clips)
    ]
    samples = [{"instruction": f"{k}に一を足す", "output": f"{k + 1}"} for k in range(60)]
    for name, rows in (("clips", clips), ("text", samples)):
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    speech = {"name": "clips", "kind": "manifest", "paths": ["clips.jsonl"]}
    config = {
        "run_dir": run_dir,
        "engine": "inline",
        "sources": {
            "speech": [speech | {"fields": {"id": "id", "ovrl": "ovrl"}}],
            "text": [{"name": "text", "kind": "jsonl", "paths": ["text.jsonl"]}],
        },
        "plan": {
            "clips_per_unit": -(-num_clips // (num_units - TEXT_UNITS)),
            "samples_per_unit": 60 // TEXT_UNITS,
        },
        "score": {"scorer": "source"},
        "snac": {"weights": "untrained", "sha256": None},
    }
    path = folder / "pipeline.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def counted(server: S3Server, config: Path, arguments: tuple[str, ...]) -> Counter[str]:
    """Run `koe` in a process of its own and count the requests that it makes."""
    server.clear()
    call = [sys.executable, "-c", "from pipeline.cli import main; main()", *arguments]
    done = subprocess.run([*call, "-c", str(config)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"koe {' '.join(arguments)} failed: {done.stderr}")
    return server.counts()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--units", type=int, default=DEFAULTS["units"])
    parser.add_argument("--clips", type=int, default=DEFAULTS["clips"])
    parser.add_argument("--no-result", action="store_true")
    options = parser.parse_args()
    figures: dict[str, dict[str, int]] = {}
    with tempfile.TemporaryDirectory() as folder, s3_server() as server:
        run_dir = server.make_bucket("requests") + "/run"
        config = write_corpus(Path(folder), run_dir, options.units, options.clips)
        for name, arguments in COMMANDS.items():
            counts = counted(server, config, arguments)
            figures[name] = dict(sorted(counts.items())) | {"all": counts.total()}
            print(name, figures[name])
            if os.environ.get("KOE_REQUEST_LOG"):
                for entry in server.log():
                    print("   ", *entry)
    total = sum(counts["all"] for counts in figures.values())
    size = {"units": options.units, "clips": options.clips}
    compared = {}
    if size == DEFAULTS:
        ratio = round(PEER_REQUESTS / total, 4)
        compared = {"peer": PEER, "ratio": ratio, "ours": total, "theirs": PEER_REQUESTS}
        print(f"{total:,} requests, {PEER} made {PEER_REQUESTS:,}: {ratio:.2f} times as many")
    if not options.no_result:
        result = {**compared, "unit": "requests", **size, "requests": figures}
        print(write_figures("object_store_requests", **result))


if __name__ == "__main__":
    run_command(main)
