"""A corpus small enough to run whole in tests: a manifest of clips, some broken, and instructions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import soundfile
import yaml

from pipeline.run_dir.ledger import Ledger
from pipeline.run_dir.plan import Plan, load_plan
from pipeline.run_dir.storage import Storage
from pipeline.trace.document import Shard
from tests.stages.speech import synthetic_speech

# 0.57 to 0.62 s repeat to one DNSMOS window; other lengths below 4.5 s cost up to twelve.
CLIP_SECONDS = (0.57, 0.62, 4.7, 0.58, 0.6, 0.61, 0.59, 0.6)


def write_corpus(folder: Path, num_samples: int = 40) -> Path:
    """Write clips, instructions and `pipeline.yaml` into `folder`; return the config's path.

    Of 12 manifest records 8 hold sound audio of 0.57 to 4.7 s; the last of them is noise.
    """
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for number, seconds in enumerate(CLIP_SECONDS):
        audio = synthetic_speech(round(seconds * 16_000), 16_000, seed=number)
        if number == len(CLIP_SECONDS) - 1:
            audio = np.random.default_rng(0).uniform(-0.9, 0.9, len(audio)).astype(np.float32)
        soundfile.write(folder / f"{number}.flac", audio, 16_000)
        records.append({"audio_filepath": f"{number}.flac", "text": f"文章その{number}です。"})
    soundfile.write(folder / "zeros.wav", np.zeros(8000, np.float32), 8000)
    (folder / "empty.wav").write_bytes(b"")
    records.insert(2, {"audio_filepath": "zeros.wav", "text": "無音"})
    records.insert(4, {"audio_filepath": "empty.wav", "text": "空"})
    records.insert(6, {"audio_filepath": "0.flac", "text": ""})
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    lines.insert(8, '{"audio_filepath": "1.flac", "text": ')
    (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    samples = [
        {
            "instruction": f"{n}に{n + 1}を足してください。" * (1 + n % 7),
            "input": "" if n % 3 else "暗算で答えること。",
            "output": f"答えは{2 * n + 1}です。" if n != 5 else "",
        }
        for n in range(num_samples)
    ]
    (folder / "samples.jsonl").write_text(
        "\n".join(json.dumps(sample, ensure_ascii=False) for sample in samples), encoding="utf-8"
    )
    config = {
        "run_dir": "run",
        "engine": "inline",
        "max_quarantine_share": 0.5,
        "sources": {
            "speech": [{"name": "clips", "kind": "manifest", "paths": ["manifest.jsonl"]}],
            "text": [{"name": "text", "kind": "jsonl", "paths": ["samples.jsonl"]}],
        },
        "plan": {"clips_per_unit": 4, "samples_per_unit": 15},
        "snac": {"weights": "untrained", "sha256": None},
        "encode": {"threshold_ovrl": 1.3},
        "interleave": {"shard_megabytes": 0.004, "max_row_tokens": 1024},
        "train": {
            "launcher": "inline",
            "device": "cpu",
            "workers": 1,
            "base_model": None,
            "tiny": {"hidden_size": 16, "intermediate_size": 32},
            "micro_batch_rows": 1,
            "accumulation_steps": 1,
            "max_steps": 2,
            "warmup_steps": 1,
            "allow": ["few_sequences", "single_modality_steps"],
            "evaluation": {"every_steps": 2, "max_rows": 1, "prompts": 1, "max_frames": 2},
        },
    }
    path = folder / "pipeline.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def run_bytes(run_dir: Path) -> dict[str, bytes]:
    """Read what a run is judged by: every table and the index, by relative name."""
    files = [*run_dir.rglob("*.arrow"), *run_dir.glob("shards/index.json")]
    assert files, f"{run_dir} holds no output"
    return {str(path.relative_to(run_dir)): path.read_bytes() for path in sorted(files)}


def opened(path: Path) -> tuple[Plan, Ledger]:
    """Open the plan and the ledger of the run beside a pipeline.yaml."""
    storage = Storage(str(path.parent / "run"))
    plan = load_plan(storage)
    assert plan is not None
    return plan, Ledger(storage)


def opened_shard(ledger: Ledger, name: str) -> Shard:
    return Shard(name, ledger.storage.read_table(f"shards/{name}"), ledger)
