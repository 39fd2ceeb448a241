"""A small run, and damage done to it that leaves all else consistent: hashes, receipts, index."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from rich.console import Console

from koe.dataflow import stage_chain
from koe.errors import ContractError
from koe.fingerprint import sha256_bytes, sha256_json
from koe.schema import SPEECH
from pipeline.config.load import load_config
from pipeline.execution.runner import DONE, SKIPPED, UnitResult, Work, always
from pipeline.execution.selection import select_stages
from pipeline.jobs.interleave import Shards
from pipeline.jobs.order import shard_places
from pipeline.jobs.run import run_job
from pipeline.run_dir.ledger import Ledger, Receipt
from pipeline.run_dir.plan import Plan, load_plan
from pipeline.run_dir.storage import Output, Storage
from pipeline.stats import run_stats
from pipeline.stats.dataset_card import write_card
from pipeline.verify import Proof, verify_run
from stages.interleave import OrderStage
from stages.settings import InterleaveSettings
from tests.corpus import write_corpus

QUIET = Console(stderr=True, quiet=True)


def make_run(folder: Path) -> Path:
    """Run the test corpus with a clip and an instruction that repeat ids, one that is too long, and
    a clip that is cut into pieces; return the run directory."""
    path = write_corpus(folder)
    manifest = folder / "manifest.jsonl"
    again = {"audio_filepath": "0.flac", "text": "もう一度"}
    manifest.write_text(manifest.read_text() + json.dumps(again, ensure_ascii=False) + "\n")
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    for number, sample in enumerate(samples):
        sample["key"] = f"s{3 if number == 20 else number}"
    samples[17]["output"] *= 40
    (folder / "samples.jsonl").write_text("\n".join(json.dumps(sample) for sample in samples))
    config = yaml.safe_load(path.read_text())
    config["sources"]["text"][0]["fields"] = {"id": "key"}
    config["interleave"] = {
        "max_row_tokens": 128,
        "overlong_speech": "split",
        "overlong_text": "drop",
        "shard_megabytes": 0.004,
        "validation_share": 0.2,
    }
    path.write_text(yaml.safe_dump(config))
    run_job(load_config(path), select_stages(None, "interleave", None, ()), QUIET)
    return folder / "run"


def sound_run(shared: Path) -> Path:
    """Return the run that all tests of a process share; `shared` outlives each of them."""
    if not (shared / "sound").exists():
        make_run(shared / "sound")
    return shared / "sound" / "run"


class Forged:
    """A copy of a run that is damaged on purpose and made to look sound again."""

    def __init__(self, root: Path | str) -> None:
        self.storage = Storage(str(root))
        self.ledger = Ledger(self.storage)

    @property
    def plan(self) -> Plan:
        plan = load_plan(self.storage)
        assert plan is not None
        return plan

    def verify(self) -> list[Proof]:
        return verify_run(self.plan, self.ledger)

    def units(self, modality: str) -> list[str]:
        return [unit.unit for unit in self.plan.units_of(modality)]

    def receipt(self, stage: str, unit: str) -> Receipt:
        receipt = self.ledger.receipt(stage, unit)
        assert receipt is not None
        return receipt

    def order(self) -> Receipt:
        return self.receipt("interleave", "order")

    def shards(self) -> list[str]:
        return list(shard_places(self.storage, self.order()))

    def index(self) -> dict[str, Any]:
        return json.loads(self.storage.read_bytes("shards/index.json"))

    def write_index(self, index: dict[str, Any]) -> None:
        self.storage.write_bytes("shards/index.json", json.dumps(index).encode())

    def rows(self, path: str, change: Callable[[list[dict[str, Any]]], Any]) -> None:
        """Change a table's rows in place."""
        table = self.storage.read_table(path)
        rows = table.to_pylist()
        change(rows)
        self.storage.write_table(path, pa.Table.from_pylist(rows, schema=table.schema))

    def amend(self, stage: str, unit: str, /, **fields: Any) -> None:
        """Change fields of a receipt; `content` is fingerprinted anew."""
        receipt = self.receipt(stage, unit).model_copy(update=fields)
        if "content" in fields:
            said = {"stage": stage, "version": receipt.version, "content": receipt.content}
            receipt = receipt.model_copy(update={"content_sha256": sha256_json(said)})
        self.storage.write_bytes(f"{stage}/{unit}.json", receipt.model_dump_json().encode())

    def seal(self) -> None:
        """Let every receipt vouch for its tables as they are now, and for its input."""
        made = []
        looks = {"transcripts", "duplicates"} & set(self.order().content)
        for unit in self.plan.units:
            sealed: list[str] = []
            for stage in stage_chain(unit.modality):
                sealed.append(self._seal(stage, unit.unit, sealed[-1] if sealed else None))
            of_clips = sealed[-2:-1] if looks and unit.modality == SPEECH else []
            made.append([unit.unit, sealed[-1], *of_clips])
        order = self._seal("interleave", "order", sha256_json(made))
        index = self.index()
        for entry in index["shards"]:
            shard = entry["path"].removesuffix(".arrow")
            self._seal("interleave", shard, order)
            output = self.receipt("interleave", shard).output
            entry |= {"sha256": output.sha256, "num_bytes": output.num_bytes, "rows": output.rows}
        self.write_index(index)

    def _seal(self, stage: str, unit: str, made_from: str | None) -> str:
        receipt = self.receipt(stage, unit)
        fields: dict[str, Any] = {"output": self.vouch(receipt.output)}
        if receipt.excluded:
            fields["excluded"] = self.vouch(receipt.excluded)
        if made_from:
            fields["input_sha256"] = made_from
        self.amend(stage, unit, **fields)
        return fields["output"].sha256

    def vouch(self, output: Output) -> Output:
        """Describe a table as it is now."""
        data = self.storage.read_bytes(output.path)
        rows = pa.ipc.open_file(data).read_all().num_rows  # also of one that koe refuses to read
        return Output(path=output.path, sha256=sha256_bytes(data), num_bytes=len(data), rows=rows)

    def remake_shards(self) -> None:
        """Make the shards, the index and the card anew from order and samples as they are."""
        self.seal()
        order, plan = self.order(), self.plan
        names = {"codec", "tokenizer"}
        settings = {name: value for name, value in order.content.items() if name not in names}
        identity = {name: value for name, value in order.content.items() if name in names}
        stage = OrderStage(InterleaveSettings(**settings), identity)
        units = tuple(unit.unit for unit in plan.units)
        assert Shards(stage, self.ledger, units, made_here, force=True).make()
        write_card(self.ledger, run_stats(plan, self.ledger))


def made_here(work: Work, units: Sequence[str], done: Sequence[UnitResult]) -> bool:
    """Do work in this process."""
    run = work.open()
    for unit in units:
        result = run(unit, always)
        assert result.status in (DONE, SKIPPED), result.error
    return True


def refused(forged: Forged, words: str) -> None:
    """Expect that the damage is refused with `words`, and that the error says what to do."""
    with pytest.raises(ContractError, match=words) as caught:
        forged.verify()
    assert caught.value.why
    assert caught.value.remedy
