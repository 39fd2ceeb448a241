"""Tokens/s and MFU of koe's trainer compared with the best of its peers, same shards, same run.

    python -m benchmarks.trainer_gpu            Orpheus-3B's shape on one GPU
    python -m benchmarks.trainer_gpu --tiny     the same code on a CPU: proves the script, no figure
    python -m pip install --no-deps --target build/torchtitan torchtitan==0.2.2 tyro docstring_parser einops torchdata
    PYTHONPATH=build/torchtitan python -m benchmarks.trainer_gpu     with torchtitan among the peers

The peers are the Hugging Face Trainer, the same with `torch_compile`, and torchtitan's step with its
layers compiled (`trainer_peers`); `--peers` chooses. All train a Llama with random weights on full rows of
2048 tokens in BF16 with FP32 master weights, 8 rows per step, fused AdamW, gradient norm clipped to 1. koe compiles its
layers, as it does by default. A peer sees each row as one sequence, so its attention does more work
(about 1 % of the work of a step at this size). Each side runs in its own process, in turn; a run's
figure is that of its steps after the first two (compilation), from end to end. `ratio` is koe's speed over that of the peer
that was the fastest.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
import torch
from pyarrow import ipc
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.results import write_result
from benchmarks.trainer_peers import PEERS, ROWS_PER_STEP, WARM_UP_STEPS, installed_peers
from koe.schema import ROW, SCHEMA_VERSION, SPEECH, TEXT
from koe.vocabulary import CODEBOOK_SIZE, SLOTS, conversation_ids, speech_ids
from training.config import EvaluationConfig, GuardConfig, TinyModelConfig, TrainConfig
from training.metrics import read_metrics
from training.monitor import flops_per_token

ROW_TOKENS, ROWS = 2048, 256
_POLL_SECONDS, _MAX_SECONDS = 0.01, 1800

ORPHEUS_3B = TinyModelConfig(
    hidden_size=3072,
    intermediate_size=8192,
    num_hidden_layers=28,
    num_attention_heads=24,
    num_key_value_heads=8,
)
TINY = TinyModelConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="a tiny model on the CPU")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--steps", type=int, default=12, help="of each run; the first two are left out"
    )
    parser.add_argument(
        "--peers", nargs="+", choices=list(PEERS), help="default: all that are installed"
    )
    parser.add_argument("--micro-batch-rows", type=int, default=2, choices=[1, 2, 4, 8])
    parser.add_argument("--folder", type=Path, help="where to put the checkpoint of 13 GB")
    options = parser.parse_args()
    options.peers = options.peers or installed_peers()
    if not options.tiny and not torch.cuda.is_available():
        print("not measured: no GPU")
        return 0
    folder = Path(tempfile.mkdtemp(prefix="trainer_gpu", dir=options.folder))
    try:
        compare(folder, options)
    finally:
        shutil.rmtree(folder)
    return 0


def compare(folder: Path, options: argparse.Namespace) -> None:
    row_tokens = 256 if options.tiny else ROW_TOKENS
    write_shards(folder / "shards", row_tokens)
    config = koe_config(options)
    base = folder / "base"
    with torch.device("cpu" if options.tiny else "cuda"):
        LlamaForCausalLM(llama_config(config.tiny)).save_pretrained(base)
    if not options.tiny:
        torch.cuda.empty_cache()
    config = config.model_copy(update={"base_model": str(base)})
    (folder / "train.json").write_text(config.model_dump_json(), encoding="utf-8")
    peak = None if options.tiny else matmul_flops()
    if peak:
        torch.cuda.empty_cache()
    ours, waits = [], []
    peers: dict[str, list[float]] = {name: [] for name in options.peers}
    for number in range(options.repeats):
        speed, wait = run_koe(folder, number, options.steps)
        ours.append(speed)
        waits.append(wait)
        print(f"koe {speed:,.0f} tokens/s", flush=True)
        for name, speeds in peers.items():
            speeds.append(run_peer(name, folder, options))
            print(f"{name} {speeds[-1]:,.0f} tokens/s", flush=True)
            ran = {peer: found for peer, found in peers.items() if len(found) == len(ours)}
            best = max(ran, key=lambda peer: median(ran[peer]))
            ratio = median(a / b for a, b in zip(ours, ran[best], strict=True))
            print(f"ratio {ratio:.2f} to {best}", flush=True)
            if peak:  # after every peer, so that what was measured stays when time is up
                more = {"data_wait_share": median(waits), "tokens_per_second_of_peers": ran}
                more |= shares_of_peak(
                    config.tiny, row_tokens, median(ours), median(ran[best]), peak
                )
                more["micro_batch_rows"] = options.micro_batch_rows
                path = write_result("trainer_gpu", best, "tokens/s", ours, ran[best], **more)
                print(f"wrote {path}", flush=True)


def shares_of_peak(
    shape: TinyModelConfig, row_tokens: int, ours: float, theirs: float, peak: float
) -> dict[str, float]:
    """Return what part of the GPU's `peak` FLOP/s tokens/s of either side are."""
    with torch.device("meta"):
        model = LlamaForCausalLM(llama_config(shape))
    num_parameters = sum(p.numel() for p in model.parameters())
    full, causal = flops_per_token(model.config, num_parameters, row_tokens)
    return {
        "measured_peak_tflops": peak / 1e12,
        "mfu_causal_of_measured_peak": ours * causal / peak,
        "mfu_full_of_measured_peak": ours * full / peak,
        "peer_mfu_causal": theirs * causal / peak,
    }


def koe_config(options: argparse.Namespace) -> TrainConfig:
    return TrainConfig(
        launcher="inline",
        device="cpu" if options.tiny else "cuda",
        workers=1,
        base_model=None,
        tiny=TINY if options.tiny else ORPHEUS_3B,
        precision="bf16",
        micro_batch_rows=options.micro_batch_rows,
        accumulation_steps=ROWS_PER_STEP // options.micro_batch_rows,
        max_steps=100_000,  # stopped from outside, so that no last checkpoint of 40 GB is written
        warmup_steps=1000,
        checkpoint_every_steps=100_000,
        guard=GuardConfig(enabled=False),  # still judges; only the first checkpoint is not written
        evaluation=EvaluationConfig(every_steps=0),
        allow=["few_sequences", "many_epochs", "single_modality_steps"],  # rows of one document
    )


def run_koe(folder: Path, number: int, steps: int) -> tuple[float, float]:
    """Train `steps` steps in a process of its own; return tokens/s and the share of data wait.

    The clock is this process's, from the end of the warm-up to that of the last step, so that
    logging and monitoring count.
    """
    out = folder / f"koe{number}"
    command = [sys.executable, "-m", "training", "--config", str(folder / "train.json")]
    command += ["--shards", str(folder / "shards"), "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    began = time.monotonic()
    first = 0.0
    while (done := len(read_metrics(out))) < steps:
        if process.poll() is not None or time.monotonic() - began > _MAX_SECONDS:
            process.kill()
            raise RuntimeError(f"koe's trainer ended with {process.wait()} before {steps} steps")
        if done >= WARM_UP_STEPS and not first:
            first = time.perf_counter()
        time.sleep(_POLL_SECONDS)
    elapsed = time.perf_counter() - first
    process.kill()
    process.wait()
    rows = read_metrics(out)[WARM_UP_STEPS:steps]
    shutil.rmtree(out)
    wait = sum(row["data_wait_seconds"] for row in rows) / elapsed
    return sum(row["tokens"] for row in rows) / elapsed, wait


def run_peer(name: str, folder: Path, options: argparse.Namespace) -> float:
    """Train with a peer in a process of its own; return tokens/s."""
    command = [sys.executable, "-m", "benchmarks.trainer_peers", name, str(folder)]
    command += ["--steps", str(options.steps), "--rows", str(options.micro_batch_rows)]
    command += ["--tiny"] * options.tiny
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return float((folder / f"{name}.txt").read_text(encoding="utf-8"))


def llama_config(shape: TinyModelConfig) -> LlamaConfig:
    return LlamaConfig(
        **shape.model_dump(exclude={"vocab_size"}),
        vocab_size=156_992,
        tie_word_embeddings=True,
        use_cache=False,
        dtype=torch.float32,
    )


def write_shards(folder: Path, row_tokens: int) -> None:
    """Write rows that are full to the last token: speech and text documents in turn."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(ROWS):
        documents, modalities, left = [], [], row_tokens
        while left:
            kind = (TEXT, SPEECH)[len(documents) % 2]
            ids = document(rng, kind, min(left, int(rng.integers(120, 700))))
            ids = ids[:left] if left - len(ids) >= 20 else np.resize(ids, left)
            documents.append(ids)
            modalities.append(kind)
            left -= len(ids)
        rows.append(
            {
                "input_ids": np.concatenate(documents),
                "document_lengths": [len(ids) for ids in documents],
                "document_sources": modalities,
                "document_ids": [f"{number}/{place}" for place in range(len(documents))],
                "document_modalities": modalities,
                "document_units": modalities,
                "document_parts": [0] * len(documents),
            }
        )
    folder.mkdir(parents=True)
    with ipc.new_file(str(folder / "train.arrow"), ROW) as writer:
        writer.write_table(pa.Table.from_pylist(rows, schema=ROW))
    entry = {"path": "train.arrow", "split": "train", "rows": ROWS, "sha256": ""}
    index = {"schema_version": SCHEMA_VERSION, "max_row_tokens": row_tokens, "shards": [entry]}
    (folder / "index.json").write_text(json.dumps(index), encoding="utf-8")


def document(rng: np.random.Generator, kind: str, tokens: int) -> np.ndarray:
    words = rng.integers(0, 128_000, max(2, tokens // 2))
    if kind == TEXT:
        return conversation_ids([(words, words)])
    frames = max(1, (tokens - 30) // SLOTS)
    return speech_ids(words[:20], rng.integers(0, CODEBOOK_SIZE, frames * SLOTS).astype(np.uint16))


def matmul_flops(size: int = 8192, repeats: int = 30) -> float:
    """Measure the GPU's dense BF16 FLOP/s with a large product."""
    left, right = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(5):
        left @ right
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(repeats):
        left @ right
    torch.cuda.synchronize()
    return 2 * size**3 * repeats / (time.perf_counter() - began)


if __name__ == "__main__":
    sys.exit(main())
