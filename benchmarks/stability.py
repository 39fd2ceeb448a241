"""Does the published run explode, and which part of the cure keeps it from doing so?

    python -m benchmarks.stability base --gguf FILE --out BASE       converts a GGUF for Hugging Face
    python -m benchmarks.stability run --data RECORDS.jsonl --work DIR --scale small
    python -m benchmarks.stability run --data RECORDS.jsonl --work DIR --scale full --base BASE --device cuda
    python -m benchmarks.stability report --work DIR --scale small

Every run is `training.loop.train` on shards in koe's layout. Runs that are done are not repeated, so
an interrupted experiment continues where it stopped. See docs/stability.md.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import multiprocessing
import shutil
import time
import traceback
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import stability_data as data
from benchmarks.results import RESULTS, run_command
from benchmarks.stability_arms import (
    ARMS,
    SCALES,
    BaseModel,
    RunSpec,
    Scale,
    plan,
    plan_of_dirt,
    plan_of_size,
    rows_per_step,
    train_config,
)
from benchmarks.stability_spikes import damage_figures, read_figures
from benchmarks.stability_text import PACKAGED, read_records, train_encoder
from koe.errors import ConfigError
from training.checkpoint.manifest import step_name
from training.checkpoint.reader import load_weights
from training.config import EvaluationConfig, GuardConfig, TinyModelConfig, TrainConfig
from training.loop import Exploded, train
from training.model.distributed import single
from training.model.llama import build_model

_BASE_ROWS = 16
DAMAGED_SHARE = 0.01  # of the documents of a dirty corpus
_PLANS = {"size": plan_of_size, "dirty": plan_of_dirt}  # of scales, by how their names begin


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stability", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    base = commands.add_parser(
        "base", help="convert a Llama from GGUF to a folder; needs the package gguf"
    )
    base.add_argument("--gguf", type=Path, required=True)
    base.add_argument("--out", type=Path, required=True)
    run = commands.add_parser("run", help="train the runs of a plan")
    run.add_argument(
        "--data",
        type=Path,
        default=PACKAGED,
        help="JSON lines of instruction, input and output; default: the demo's, which are few",
    )
    run.add_argument("--base", type=Path, help="folder of the base model; small trains its own")
    run.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    run.add_argument("--processes", type=int, default=1)
    run.add_argument("--arms", nargs="+", choices=list(ARMS), help="instead of the full plan")
    run.add_argument("--multiples", nargs="+", type=float, default=[1], help="with --arms")
    run.add_argument("--seeds", nargs="+", type=int, default=[0], help="with --arms")
    run.add_argument("--steps", type=int, help="with --arms: instead of the scale's")
    run.add_argument("--guard", action="store_true", help="with --arms: with the guard on")
    run.add_argument("--deadline", type=float, help="seconds after which no run is started")
    report = commands.add_parser("report", help="results as JSON, plots, and the table")
    report.add_argument("--results", type=Path, default=RESULTS)
    report.add_argument("--plots", type=Path, default=Path("docs/stability"))
    for command in (run, report):
        command.add_argument("--work", type=Path, required=True, help="shards, runs, base model")
        command.add_argument("--scale", choices=list(SCALES), default="small")
    options = parser.parse_args(arguments)
    if options.command == "base":
        return convert_gguf(options.gguf, options.out)
    if options.command == "report":
        from benchmarks.stability_report import report_on

        return report_on(options.work, options.scale, options.results, options.plots)
    return run_plan(options)


def run_plan(options: argparse.Namespace) -> int:
    """Train the runs of the plan that are not done yet, in its order."""
    scale, work = SCALES[options.scale], options.work.resolve()
    base = prepare_base(scale, options.data, work, options.base)
    specs = [
        RunSpec(ARMS[arm], multiple, seed, options.guard, options.steps)
        for seed in options.seeds
        for multiple in options.multiples
        for arm in options.arms or []
    ] or _PLANS.get(options.scale.partition("-")[0], plan)(scale)
    todo = [spec for spec in specs if not _figures_path(work, spec).exists()]
    corpus = make_corpus(scale, options.data, base)
    for spec in todo:  # before the processes, which would write the same folders
        shards_of(spec, scale, work, corpus)
    began = time.monotonic()
    with ProcessPoolExecutor(
        options.processes, mp_context=multiprocessing.get_context("spawn"), max_tasks_per_child=40
    ) as pool:
        arguments = (scale, work, str(base), options.device, options.processes, options.deadline)
        wall = time.time()
        futures = {pool.submit(one_run, spec, *arguments, wall): spec for spec in todo}
        for done, future in enumerate(as_completed(futures), 1):
            seconds = time.monotonic() - began
            print(f"{done}/{len(todo)} {seconds:.0f} s  {future.result()}", flush=True)
    return 0


def one_run(
    spec: RunSpec,
    scale: Scale,
    work: Path,
    base: str,
    device: str,
    processes: int,
    deadline: float | None,
    began: float,
) -> str:
    """Train one run in this process, keep its logs, write its figures and return a summary."""
    if deadline and time.time() - began > deadline:
        return f"{spec.name}: not started, the deadline has passed"
    if device == "cpu":
        torch.set_num_threads(max(1, multiprocessing.cpu_count() // processes))
    out = _run_folder(work, spec)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    config = train_config(spec, scale, base, device)
    shards = work / "shards" / spec.shards
    stopped = None
    with (
        open(out / "console.log", "w", encoding="utf-8") as console,
        contextlib.redirect_stderr(console),
        data.Vocabulary(scale.num_text, scale.num_codes).in_trainer(),
    ):
        try:
            train(config, shards, out, single(device))
        except Exploded as error:  # a result; anything else is a fault and ends the experiment
            stopped = str(error)
            traceback.print_exc()
    about = {"arm": spec.arm.name, "multiple": spec.multiple, "seed": spec.seed}
    about |= {"guarded": spec.guard, "dirty": spec.dirty, "stopped": stopped}
    row = about | read_figures(out) | damage_figures(out, shards, rows_per_step(spec.arm))
    for folder in ("checkpoints", "tensorboard", "model"):
        shutil.rmtree(out / folder, ignore_errors=True)
    _figures_path(work, spec).write_text(json.dumps(row), encoding="utf-8")
    return (
        f"{spec.name}: {row['spikes']} spikes in {row['batches']}, largest gradient norm "
        f"{row['largest_gradient_norm']}, validation {row['validation_loss']}, "
        f"{row['seconds']:.0f} s{', stopped' if stopped else ''}"
    )


def _run_folder(work: Path, spec: RunSpec) -> Path:
    return work / "runs" / spec.name


def _figures_path(work: Path, spec: RunSpec) -> Path:
    return _run_folder(work, spec) / "figures.json"


def shards_of(spec: RunSpec, scale: Scale, work: Path, corpus: data.Corpus) -> Path:
    """Write the shards of a run, unless another run has written them."""
    arm = spec.arm
    steps = scale.costly_steps if arm.many_sequences and not arm.short_rows else scale.steps
    return data.write_shards(
        work / "shards" / spec.shards,
        replace(corpus, damaged_share=DAMAGED_SHARE if spec.dirty else 0.0),
        rows=min(scale.stored_rows, max(rows_per_step(arm) * steps, 1024)),
        row_tokens=scale.short if arm.short_rows else scale.long,
        block=0 if arm.mixed_steps else rows_per_step(arm),
        short=scale.short,
        seed=100 * spec.seed,
    )


def make_corpus(scale: Scale, records_path: Path, base: Path | None) -> data.Corpus:
    """Read the records and build a tokenizer: the base model's own, or a small BPE."""
    records = read_records(records_path)
    if scale.num_text:
        encode = train_encoder(records, scale.num_text)
    else:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(str(base))

        encode = functools.partial(_plain_ids, tokenizer)
    vocabulary = data.Vocabulary(scale.num_text, scale.num_codes)
    source = data.CodeSource(scale.num_codes, scale.voices)
    half = len(records) // 2  # the small base model learns from the other half
    return data.Corpus(vocabulary, records[half:], encode, source, scale.mean_frames)


def _plain_ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False).input_ids


def prepare_base(scale: Scale, records_path: Path, work: Path, base: Path | None) -> Path:
    """Return the folder of the trained model that all runs start from.

    A scale with a base model of its own trains it on plain text of the first half of the records,
    with koe's trainer, in steps of 4,096 tokens in FP32.
    """
    if base is not None:
        return base.resolve()
    if scale.base is None:
        raise ConfigError(
            "this scale has no base model",
            "it is too large to be trained here",
            "Name one with --base; `python -m benchmarks.stability base --help` says how to make it.",
        )
    out = work / "base"
    if (out / "config.json").exists():
        return out
    corpus = make_corpus(scale, records_path, None)
    records = read_records(records_path)
    text = data.Corpus(
        corpus.vocabulary, records[: len(records) // 2], corpus.encode, corpus.source, 0
    )
    shards = data.write_text_shards(work / "shards" / "base", text, rows=4096, row_tokens=256)
    config = base_config(scale, scale.base)
    train(config, shards, work / "base-run", single("cpu"))
    model = build_model(config)
    folder = work / "base-run" / "checkpoints" / step_name(config.max_steps)
    load_weights(folder, model)
    model.save_pretrained(out)
    return out


def base_config(scale: Scale, base: BaseModel) -> TrainConfig:
    """Return the config that trains the base model of a scale."""
    return TrainConfig(
        launcher="inline",
        device="cpu",
        workers=1,
        base_model=None,
        tiny=TinyModelConfig(
            hidden_size=base.hidden,
            intermediate_size=base.intermediate,
            num_hidden_layers=base.layers,
            num_attention_heads=base.heads,
            num_key_value_heads=base.kv_heads,
            vocab_size=scale.num_text,
        ),
        attention="mask",
        precision="fp32",
        allow=["few_sequences", "many_epochs"],
        micro_batch_rows=_BASE_ROWS,
        accumulation_steps=1,
        max_steps=base.steps,
        warmup_steps=base.steps // 10,
        learning_rate=base.learning_rate,
        checkpoint_every_steps=base.steps,
        guard=GuardConfig(enabled=False),
        evaluation=EvaluationConfig(every_steps=0),
        log_every_steps=50,
        monitor_every_steps=10**9,
    )


def convert_gguf(gguf: Path, out: Path) -> int:
    """Save a Llama that is stored as GGUF as a Hugging Face folder in FP32, with its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    files: dict[str, Any] = {"gguf_file": gguf.name}
    loaded = AutoModelForCausalLM.from_pretrained(str(gguf.parent), dtype=torch.float32, **files)
    fields = loaded.config.to_dict()
    del fields["quantization_config"]  # of the file; the weights in memory are dequantized
    model = LlamaForCausalLM(LlamaConfig(**fields))
    model.load_state_dict(loaded.state_dict())
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(str(gguf.parent), **files).save_pretrained(out)
    return 0


if __name__ == "__main__":
    run_command(main)
