"""Whatever happens to the bytes of a table of a run, koe reads it as it was or says what is wrong."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.calling import koe
from tests.mutants import child, mutants

pytestmark = [pytest.mark.law, pytest.mark.slow]
EXAMPLES = int(os.environ.get("KOE_MUTANTS", "12"))  # of each command
COMMANDS = {
    "stats": ("stats", "--json"),
    "verify": ("verify",),
    "inspect a row": ("inspect", "train-00000:0", "--raw"),
    "inspect a record": ("inspect", "clips/1.flac"),
}
PROVED = {"stats", "verify"}  # by the hash of what they read; the others prove that it is sound


@pytest.fixture(scope="module")
def reader():
    with child() as pool:
        yield pool


@pytest.fixture(scope="module")
def config(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mutants") / "corpus"
    shutil.copytree(finished_run.parent, folder)
    return folder / "pipeline.yaml"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_mutant_is_read_as_it_was_or_refused(reader, config, command):
    arguments = (*COMMANDS[command], "-c", str(config))
    sound = reader.submit(koe, *arguments).result()
    assert sound[0] == 0, sound
    tables = sorted((config.parent / "run").rglob("*.arrow"))

    @settings(max_examples=EXAMPLES, deadline=None)
    @given(data=st.data())
    def check(data):
        path = data.draw(st.sampled_from(tables), "table")
        whole = path.read_bytes()
        try:
            path.write_bytes(data.draw(mutants(whole), "mutant"))
            code, out, err = reader.submit(koe, *arguments).result()
        finally:
            path.write_bytes(whole)
        assert code in (0, 1)
        if code:
            assert path.name.split(".")[0] in err
        elif command in PROVED and not (command == "stats" and path.parent.name == "shards"):
            assert out == sound[1]

    check()
