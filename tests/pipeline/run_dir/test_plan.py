"""A stored plan is whole and of this version, or it is refused, and made again by a run."""

import json

import pytest

from koe.errors import ContractError
from koe.schema import SCHEMA_VERSION, SPEECH, Unit
from pipeline.run_dir.plan import PLAN, load_plan, make_plan
from pipeline.run_dir.storage import Storage

UNIT = Unit("u", "clips", SPEECH, "a.jsonl", "1:1", 0, 1, 1)


class Clips:
    name, modality = "clips", SPEECH

    def units(self, known=lambda path, stamp: None):
        return known(UNIT.path, UNIT.stamp) or [UNIT]

    def remarks(self, units):
        return {"seen": len(units)}


def body(**changes):
    whole = {"schema_version": SCHEMA_VERSION, "modalities": {"clips": SPEECH}, "files": {}}
    return json.dumps(whole | changes)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "{}",
        "[]",
        "null",
        "\xff",
        body(schema_version=SCHEMA_VERSION + 1),
        body(files={"k": [{"unit": "u"}]}),
        body(files={"k": 3}),
        body(modalities=["clips"]),
        body(modalities={}, files={"k": [UNIT.__dict__]}),
    ],
)
def test_a_plan_that_is_not_whole_is_refused_and_planned_again(tmp_path, text):
    storage = Storage(str(tmp_path))
    storage.write_bytes(PLAN, text.encode("latin-1"))
    with pytest.raises(
        ContractError, match=r"plan\.json in .* is not a complete plan.*Run `koe run`"
    ):
        load_plan(storage)
    scanned = []
    made = make_plan([(Clips(), {})], storage, lambda source, path: scanned.append(path))
    assert scanned == ["a.jsonl"]
    assert load_plan(storage) == made
    make_plan([(Clips(), {})], storage, lambda source, path: scanned.append(path))
    assert scanned == ["a.jsonl"]
