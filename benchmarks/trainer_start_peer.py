"""Ray Train alone: workers that build a Llama and take one step on random ids, and note that it is done.

python -m benchmarks.trainer_start_peer DEVICE WORKERS OUT
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import ray
import torch
from ray.train import RunConfig, ScalingConfig, get_context
from ray.train.torch import TorchTrainer, get_device, prepare_model
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.trainer_start import ROW_TOKENS, ROWS, TINY
from koe.vocabulary import NUM_EMBEDDINGS
from training.logs import METRICS_FILE


def main() -> int:
    device, workers, out = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]).resolve()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(address="local", num_cpus=os.cpu_count(), include_dashboard=False)
    TorchTrainer(
        one_step,
        train_loop_config={"out": str(out)},
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=device == "cuda"),
        run_config=RunConfig(name="train", storage_path=str(out / "ray")),
    ).fit()
    return 0


def one_step(settings: dict[str, Any]) -> None:
    model = prepare_model(LlamaForCausalLM(LlamaConfig(**TINY.model_dump())))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    ids = torch.randint(0, NUM_EMBEDDINGS, (ROWS, ROW_TOKENS), device=get_device())
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    optimizer.step()
    if get_context().get_world_rank() == 0:
        (Path(settings["out"]) / METRICS_FILE).write_text(f"{loss.item()}\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
