"""What the command line says of itself, and what it refuses."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.calling import koe
from tests.corpus import write_corpus
from tests.forging import sound_run


def test_it_tells_its_version():
    assert koe("--version") == (0, "koe 0.1.0\n", "")


def test_stages_are_completed():
    script = "import sys; sys.argv = ['koe']; from pipeline.cli import main; main()"
    asked = {"_KOE_COMPLETE": "complete_bash", "COMP_WORDS": "koe run --only in", "COMP_CWORD": "3"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **asked}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.split() == ["ingest", "interleave"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("plan", "--clips", "-1"), "--clips"),
        (("plan", "--seconds", "0"), "--seconds"),
        (("train", "--report", "--replay", "E0001"), "exclude each other"),
        (("train", "--find-rate", "--replay", "E0001"), "exclude each other"),
        (("train", "--json"), "without --find-rate"),
        (("export", "out", "--adapter", "--gguf"), "exclude each other"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_corpus(tmp_path)
    code, _, err = koe(*arguments)
    assert code == 2
    assert words in err


def test_a_run_that_is_not_whole_does_not_pass_unless_it_may(tmp_path_factory, tmp_path):
    shutil.copytree(sound_run(tmp_path_factory.getbasetemp()), tmp_path / "run")
    path = write_corpus(tmp_path)
    assert koe("verify", "-c", str(path))[::2] == (0, "")
    (tmp_path / "run/shards/index.json").unlink()
    (tmp_path / "run/shards/README.md").unlink()
    code, out, err = koe("verify", "-c", str(path))
    assert code == 1
    assert "proved every sample is placed once and completely" in out
    assert err.rstrip().endswith("missing: shards/index.json, shards/README.md")
    assert koe("verify", "--partial", "-c", str(path))[0] == 0


@pytest.mark.parametrize(
    ("handler", "code", "out", "err"),
    [("default_int_handler", 130, "", "koe: interrupted.\n"), ("SIG_IGN", 0, "koe ", "")],
)
def test_ctrl_c_while_koe_is_being_imported(handler, code, out, err):
    script = f"""
import signal, sys

class Press:
    def find_spec(self, name, path=None, target=None):
        if name == "pipeline.cli.run":
            signal.raise_signal(signal.SIGINT)

signal.signal(signal.SIGINT, signal.{handler})
sys.meta_path.insert(0, Press())
sys.argv = ["koe", "--version"]
from pipeline.cli import main
main()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (code, err)
    assert done.stdout.startswith(out)
