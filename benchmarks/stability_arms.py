"""Arms and scales of the stability experiment, and the trainer's config of each run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from koe.vocabulary import CODEBOOK_SIZE
from training.config import EvaluationConfig, GuardConfig, NewRowsConfig, TrainConfig
from training.refusals import REFUSALS

BASE_RATE = 5e-5  # of canopyai/Orpheus-TTS issue 78; learning rates are multiples of it
PUBLISHED = (0.12, 1.0, 1.2)  # 6e-6, 5e-5 and 6e-5, which the report contradicts itself about
NO_TRAINING = 1e-6  # the multiple of the control: nothing moves, so every spike is the data's


@dataclass(frozen=True)
class Arm:
    """One combination of the five things that the published cure changed; the defaults exploded.

    `beta2` is koe's default. transformers' Trainer has 0.999, which the published run probably had.
    """

    name: str
    warmup: bool = False
    many_sequences: bool = False
    short_rows: bool = False
    mixed_steps: bool = False
    fp32_master: bool = False
    beta2: float = 0.95


EXPLODING = Arm("exploding")
CURE = Arm("cure", True, True, True, True, True)
ARMS = {
    arm.name: arm
    for arm in (
        EXPLODING,
        replace(EXPLODING, name="exploding, beta2 0.999", beta2=0.999),
        Arm("only warm-up", warmup=True),
        Arm("only warm-up, beta2 0.999", warmup=True, beta2=0.999),
        Arm("only 64 sequences", many_sequences=True),
        Arm("only short rows", short_rows=True),
        Arm("only mixed steps", mixed_steps=True),
        Arm("only FP32 masters", fp32_master=True),
        CURE,
        replace(CURE, name="cure without warm-up", warmup=False),
        replace(CURE, name="cure with 2 sequences", many_sequences=False),
    )
}


@dataclass(frozen=True)
class BaseModel:
    """The Llama that a scale trains for itself on plain text, and for how many steps of 4,096 tokens."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    steps: int = 600
    learning_rate: float = 4e-3


@dataclass(frozen=True)
class Scale:
    """How large the experiment is. `num_text` 0: the base model's own vocabulary.

    `base` is None where the base model is given. With `voices` above 1, the codes of a clip depend on
    a voice that its text begins with.
    """

    num_text: int
    num_codes: int
    long: int  # tokens per row
    short: int
    mean_frames: int  # of a speech document
    steps: int
    warmup_steps: int
    micro_batch_rows: int  # of the arms with 64 sequences
    stored_rows: int
    guard_steps: int  # the guard's window, and how far it rolls back and skips
    costly_steps: int  # of the arm with 64 long rows
    multiples: tuple[float, ...]
    base: BaseModel | None = None
    voices: int = 1


_SMALL = Scale(
    1536, 64, 256, 64, 16, 300, 100, 16, 20_000, 32, 30, (1, 16, 64, 256, 1024),
    base=BaseModel(128, 384, 4, 4, 2),
)  # fmt: skip
# The same experiment at several sizes of the model, so short that ten million parameters fit a CPU.
_SIZES = {
    "size-0.3M": BaseModel(64, 192, 4, 4, 2),
    "size-1M": BaseModel(128, 384, 4, 4, 2),
    "size-10M": BaseModel(384, 1024, 6, 6, 2, steps=300, learning_rate=2e-3),
}
SCALES = {
    "small": _SMALL,
    "dirty": replace(_SMALL, voices=4),
    **{
        name: replace(
            _SMALL, steps=100, warmup_steps=33, costly_steps=20, multiples=(16, 64, 256), base=base
        )
        for name, base in _SIZES.items()
    },
    "sanity": Scale(0, CODEBOOK_SIZE, 128, 32, 10, 40, 12, 16, 256, 16, 10, (1, 16, 64)),
    "full": Scale(0, CODEBOOK_SIZE, 4096, 2048, 120, 1000, 300, 4, 8192, 128, 1000, (1, 4, 16, 64)),
}


@dataclass(frozen=True)
class RunSpec:
    """One run: an arm at a multiple of the base rate, with a seed, guarded or not."""

    arm: Arm
    multiple: float
    seed: int
    guard: bool = False
    steps: int | None = None  # None: the scale's
    dirty: bool = False  # 1 % of the documents are damaged

    @property
    def name(self) -> str:
        guard = "guard" if self.guard else "plain"
        arm = self.arm.name.replace(",", "").replace(" ", "_")
        dirty = "-dirty" if self.dirty else ""
        return f"{arm}-x{self.multiple:g}-seed{self.seed}-{guard}{dirty}"

    @property
    def shards(self) -> str:
        """The folder of the shards that it reads."""
        return shards_name(self.arm, self.seed) + ("-dirty" if self.dirty else "")


def plan(scale: Scale) -> list[RunSpec]:
    """List all runs, the most informative first: an early end costs seeds, not columns."""
    two = [arm for arm in ARMS.values() if not arm.many_sequences]
    costly, bare = ARMS["only 64 sequences"], ARMS["cure without warm-up"]
    guarded = [EXPLODING, ARMS["exploding, beta2 0.999"]]
    upper = scale.multiples[-3:]
    # Arms that read the same shards have one control.
    shared = {shards_name(arm, 0): arm for arm in reversed(two)}
    specs = [RunSpec(arm, NO_TRAINING, 0) for arm in reversed(shared.values())]
    specs += [RunSpec(arm, NO_TRAINING, 0, steps=20) for arm in (CURE, costly)]
    specs += [RunSpec(arm, multiple, 0) for multiple in scale.multiples for arm in two]
    specs += [RunSpec(CURE, m, 0) for m in (*upper[::-1], *PUBLISHED)]
    specs += [RunSpec(arm, multiple, 0, guard=True) for multiple in upper for arm in guarded]
    specs += [RunSpec(costly, m, 0, steps=scale.costly_steps) for m in upper[1:]]
    specs += [RunSpec(arm, multiple, 1) for multiple in upper for arm in two]
    part = min(scale.steps, 2 * scale.costly_steps)
    specs += [RunSpec(bare, multiple, 0, steps=part) for multiple in upper[1:]]
    specs += [RunSpec(arm, multiple, 1, guard=True) for multiple in upper for arm in guarded]
    specs += [RunSpec(arm, multiple, 2) for multiple in upper for arm in two]
    specs += [RunSpec(CURE, m, seed) for seed in (1, 2) for m in (*upper, *PUBLISHED)]
    lower = scale.multiples[:-3]
    specs += [RunSpec(arm, m, seed) for seed in (1, 2) for m in lower for arm in two]
    return specs


def plan_of_size(scale: Scale) -> list[RunSpec]:
    """List the runs that find the largest rate which each arm survives, one seed after the other."""
    singles = [ARMS[name] for name in ("exploding", "only warm-up", "only short rows",
               "only mixed steps", "only FP32 masters", "cure", "only 64 sequences")]  # fmt: skip
    shared = {shards_name(arm, 0): arm for arm in reversed(singles)}
    specs = [
        RunSpec(arm, NO_TRAINING, 0, steps=scale.costly_steps if arm.many_sequences else None)
        for arm in shared.values()
    ]
    for seed in range(3):
        for multiple in scale.multiples:
            for arm in singles:
                is_costly = arm.many_sequences and not arm.short_rows
                steps = scale.costly_steps if is_costly else None
                specs.append(RunSpec(arm, multiple, seed, steps=steps))
    return specs


def plan_of_dirt(scale: Scale) -> list[RunSpec]:
    """List the runs on clean and damaged documents, with the guard and without, by seed."""
    arms = ((ARMS["cure with 2 sequences"], 16.0), (CURE, 64.0))
    control = [RunSpec(arm, NO_TRAINING, 0, steps=20) for arm, _ in arms]
    return control + [
        RunSpec(arm, multiple, seed, guard, None, dirty)
        for seed in range(3)
        for arm, multiple in arms
        for dirty in (True, False)
        for guard in (False, True)
    ]


def rows_per_step(arm: Arm) -> int:
    return 64 if arm.many_sequences else 2


def shards_name(arm: Arm, seed: int) -> str:
    """Name the folder of shards that an arm reads; arms that differ elsewhere share it."""
    length = "short" if arm.short_rows else "long"
    mixing = "mixed" if arm.mixed_steps else "batches"
    return f"{length}-{mixing}-{rows_per_step(arm)}-seed{seed}"


def train_config(spec: RunSpec, scale: Scale, base_model: str, device: str) -> TrainConfig:
    """Return the config of a run. The rate stays at its peak after the warm-up."""
    arm, steps = spec.arm, spec.steps or scale.steps
    micro = scale.micro_batch_rows if arm.many_sequences else 2
    settings: dict[str, Any] = {
        "learning_rate": BASE_RATE * spec.multiple,
        "min_learning_rate_share": 1.0,
        "warmup_steps": scale.warmup_steps if arm.warmup else 0,
        "micro_batch_rows": micro,
        "accumulation_steps": rows_per_step(arm) // micro,
        "master_weights": "fp32" if arm.fp32_master else "bf16",
        "precision": "bf16",
        "beta2": arm.beta2,
    }
    return TrainConfig(
        launcher="inline",
        device=device,  # pyright: ignore[reportArgumentType]
        workers=1,
        base_model=base_model,
        new_rows=NewRowsConfig(init="mean_cov"),
        attention="mask" if device == "cpu" else "auto",
        max_steps=steps,
        allow=list(REFUSALS),
        guard=guard_config(scale, spec.guard),
        evaluation=EvaluationConfig(every_steps=100, max_rows=64, prompts=0),
        checkpoint_every_steps=scale.guard_steps if spec.guard else 10**9,
        async_checkpoints=False,
        keep_checkpoints=2,
        log_every_steps=10**9,
        monitor_every_steps=10**9,
        seed=spec.seed,
        **settings,
    )


def guard_config(scale: Scale, enabled: bool) -> GuardConfig:
    """Scale the guard's settings in steps to the length of the runs; its limits stay."""
    n = scale.guard_steps
    return GuardConfig(
        enabled=enabled,
        window_steps=n,
        within_steps=n,
        roll_back_steps=n,
        skip_data_steps=n,
        restore_rate_after_steps=4 * n,
    )
