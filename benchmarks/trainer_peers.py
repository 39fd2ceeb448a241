"""The peers that `trainer_gpu` compares koe's trainer with: `python -m benchmarks.trainer_peers NAME FOLDER`.

Each trains the model in FOLDER/base on the rows in FOLDER/shards, as its documentation says, and writes
its tokens/s to FOLDER/NAME.txt.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import LlamaForCausalLM

from training.data.shard_rows import ShardRows

ROWS_PER_STEP = 8
WARM_UP_STEPS = 2  # in which layers are compiled, at most
_RATE = 5e-5


class Clock:
    """Takes the time at the end of each step, when the device has finished it."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def step_ended(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())

    def tokens_per_second(self, row_tokens: int) -> float:
        last = len(self.ends) - 1
        elapsed = self.ends[last] - self.ends[WARM_UP_STEPS - 1]
        return ROWS_PER_STEP * row_tokens * (last + 1 - WARM_UP_STEPS) / elapsed


class Rows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """The rows of the shards, each as one sequence."""

    def __init__(self, folder: Path) -> None:
        self._rows = ShardRows(folder / "shards", "train")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        ids = torch.from_numpy(self._rows[number].input_ids.astype(np.int64))
        return {"input_ids": ids, "labels": ids}


def huggingface(options: argparse.Namespace, compile: bool = False) -> float:
    """Train with `transformers.Trainer`; return tokens/s."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    clock, rows = Clock(), Rows(options.folder)

    class StepEnds(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.step_ended()

    arguments = TrainingArguments(
        output_dir=str(options.folder / "huggingface"),
        max_steps=options.steps,
        per_device_train_batch_size=options.rows,
        gradient_accumulation_steps=ROWS_PER_STEP // options.rows,
        bf16=True,
        use_cpu=options.tiny,
        optim="adamw_torch_fused",
        max_grad_norm=1.0,
        learning_rate=_RATE,
        torch_compile=compile,
        dataloader_num_workers=0 if options.tiny else 2,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM.from_pretrained(options.folder / "base", dtype=torch.float32)
    Trainer(model=model, args=arguments, train_dataset=rows, callbacks=[StepEnds()]).train()
    return clock.tokens_per_second(len(rows[0]["input_ids"]))


def torchtitan(options: argparse.Namespace) -> float:
    """Take torchtitan's steps on one device: its model, its loss, its way to compile; return tokens/s.

    As its trainer does there: autocast to BF16, each block compiled, the loss compiled and summed
    over the tokens of the step.
    """
    from torchtitan.components.loss import cross_entropy_loss  # pyright: ignore
    from torchtitan.config.job_config import Compile  # pyright: ignore
    from torchtitan.models.llama3.infra.parallelize import apply_compile  # pyright: ignore

    device = torch.device("cpu" if options.tiny else "cuda")
    clock, rows = Clock(), Rows(options.folder)
    row_tokens = len(rows[0]["input_ids"])
    model = titan_model(options.folder / "base", row_tokens).to(device)
    apply_compile(model, Compile(enable=True))
    loss_of = torch.compile(cross_entropy_loss)
    optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE, weight_decay=0.1, fused=True)
    batches = _micro_batches(rows, options)
    for _ in range(options.steps):
        for _ in range(ROWS_PER_STEP // options.rows):
            ids = next(batches).to(device, non_blocking=True)
            with torch.autocast(device.type, torch.bfloat16):
                loss = loss_of(model(ids[:, :-1]), ids[:, 1:])
            (loss / (ROWS_PER_STEP * (row_tokens - 1))).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        clock.step_ended()
    return clock.tokens_per_second(row_tokens)


def _micro_batches(rows: Rows, options: argparse.Namespace) -> Iterator[torch.Tensor]:
    loader = torch.utils.data.DataLoader(
        rows, options.rows, num_workers=0 if options.tiny else 2, pin_memory=not options.tiny
    )
    while True:
        for batch in loader:
            yield batch["input_ids"]


def titan_model(base: Path, row_tokens: int) -> nn.Module:
    """Build torchtitan's Llama with the weights of a Hugging Face Llama whose head is tied."""
    from torchtitan.models.llama3 import Llama3StateDictAdapter, Transformer, TransformerModelArgs  # pyright: ignore

    hub = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
    c = hub.config
    width = int(2 * 4 * c.hidden_size / 3)  # which torchtitan multiplies, and rounds up
    arguments = TransformerModelArgs(
        dim=c.hidden_size,
        n_layers=c.num_hidden_layers,
        n_heads=c.num_attention_heads,
        n_kv_heads=c.num_key_value_heads,
        vocab_size=c.vocab_size,
        multiple_of=1,
        ffn_dim_multiplier=(c.intermediate_size + 0.5) / width,
        norm_eps=c.rms_norm_eps,
        rope_theta=c.rope_parameters["rope_theta"],
        max_seq_len=row_tokens,
    )
    arguments.rope_scaling_args.scaling_factor = 1.0
    model = Transformer(arguments)
    weights = Llama3StateDictAdapter(arguments, None).from_hf(hub.state_dict())
    model.load_state_dict(weights, strict=True)
    model.output.weight = model.tok_embeddings.weight
    return model


PEERS: dict[str, Callable[[argparse.Namespace], float]] = {
    "huggingface": huggingface,
    "huggingface_compiled": partial(huggingface, compile=True),
    "torchtitan": torchtitan,
}


def installed_peers() -> list[str]:
    """Name the peers that can be run here."""
    has_titan = importlib.util.find_spec("torchtitan") is not None
    return [name for name in PEERS if name != "torchtitan" or has_titan]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("peer", choices=list(PEERS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--rows", type=int, required=True, help="of a micro-batch")
    parser.add_argument("--tiny", action="store_true", help="on the CPU")
    options = parser.parse_args()
    speed = PEERS[options.peer](options)
    (options.folder / f"{options.peer}.txt").write_text(str(speed), encoding="utf-8")


if __name__ == "__main__":
    main()
