"""The commands that look, where a disk, a terminal or an argument is at fault: one line, no traceback."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest

from koe.schema import ENCODED, SCHEMA_VERSION, SPEECH
from pipeline.report import PAGE
from pipeline.run_dir.plan import PLAN
from tests.calling import koe
from tests.corpus import write_corpus
from tests.forging import sound_run
from tests.written_run import clip, commit, filled, unit, write_run

pytestmark = pytest.mark.slow

MAIN = "from pipeline.cli import main; main()"


@pytest.fixture
def config(tmp_path, tmp_path_factory) -> str:
    """Return the config of a sound run of its own."""
    shutil.copytree(sound_run(tmp_path_factory.getbasetemp()), tmp_path / "run")
    return str(write_corpus(tmp_path))


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> str:
    """Return the config of a sound run that is only read."""
    return str(sound_run(tmp_path_factory.getbasetemp()).parent / "pipeline.yaml")


def spawned(*arguments: str, **changes) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **changes.pop("env", {})}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | changes
    return subprocess.run([sys.executable, "-c", MAIN, *arguments], env=env, **options)


def refused(code: int, *arguments: str) -> str:
    """Return the one line that a command fails with."""
    found, out, err = koe(*arguments)
    assert (found, out, err.count("\n")) == (code, "", 1)
    return err


@pytest.mark.parametrize("command", ["stats", "status", "verify", "inspect"])
def test_a_torn_plan_is_one_line(config, tmp_path, command):
    (tmp_path / "run" / PLAN).write_text("{")
    place = ["clips/0.flac"] if command == "inspect" else []
    assert "it is planned again" in refused(1, command, *place, "-c", config)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"shards": 3}'])
def test_a_torn_index_is_one_line(config, tmp_path, text):
    (tmp_path / "run/shards/index.json").write_text(text)
    assert "Remove shards/index.json and run `koe run`" in refused(1, "stats", "-c", config)
    code, _, err = koe("verify", "-c", config)
    assert code == 1
    assert "Remove shards/index.json and run `koe run`" in err


@pytest.mark.parametrize("keep", [0, 700])
def test_torn_scores_are_one_line(config, tmp_path, keep):
    for path in (tmp_path / "run/score").glob("*.arrow"):
        path.write_bytes(path.read_bytes()[:keep])
    for arguments in (
        ["stats"],
        ["stats", "--html", str(tmp_path / "page")],
        ["inspect", "clips/0.flac"],
    ):
        found, out, err = koe(*arguments, "-c", config)
        assert (found, out) == (1, "")
        assert err.splitlines()[-1].startswith("koe: score/")
        assert "complete Arrow file" in err or "not the file that its receipt vouches for" in err


def test_a_terminal_that_is_not_utf8_gets_all_of_it_escaped(sound):
    ascii_only = {"PYTHONIOENCODING": "ascii"}
    for command in (["stats"], ["inspect", "clips/0.flac"], ["inspect", "train-00000"]):
        done = spawned(*command, "-c", sound, env=ascii_only)
        assert (done.returncode, done.stderr) == (0, ""), command
    assert (
        "\\u6587\\u7ae0" in spawned("inspect", "clips/0.flac", "-c", sound, env=ascii_only).stdout
    )
    command = ("inspect", "train-00000", "--json", "-c", sound)
    _, plain, _ = koe(*command)
    for encoding in ("ascii", "utf-8"):
        done = spawned(*command, env={"PYTHONIOENCODING": encoding})
        assert done.stdout.isascii() == (encoding == "ascii")
        assert json.loads(done.stdout) == json.loads(plain)


@pytest.mark.parametrize("options", [[], ["--json"]])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_under_stdout_is_one_line(sound, options, unbuffered):
    with open("/dev/full", "w") as full:
        done = spawned(
            "stats", *options, "-c", sound, stdout=full, env={"PYTHONUNBUFFERED": unbuffered}
        )
    assert done.returncode == 1
    assert done.stderr == "koe: the output cannot be written: No space left on device.\n"


def test_a_reader_that_has_gone_is_no_fault(sound):
    end, begin = os.pipe()
    os.close(end)
    done = spawned("stats", "--json", "-c", sound, stdout=begin)
    os.close(begin)
    assert (done.returncode, done.stderr) == (1, "")


def test_an_interrupt_while_a_command_begins_is_said(tmp_path):
    hook = (
        "import signal, sys\n"
        # Whoever started the tests may ignore SIGINT, as a shell does for what it puts behind it.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name == 'pipeline.jobs.run': signal.raise_signal(signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupt())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", hook + MAIN, "run"], capture_output=True, text=True, cwd=tmp_path
    )
    assert (done.returncode, done.stderr) == (128 + signal.SIGINT, "koe: interrupted.\n")


@pytest.mark.parametrize("place", ["", "s3://bucket/page", "page.html", "PAGE.HTM"])
def test_a_page_goes_into_a_local_folder(sound, tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    assert "does not name a local folder. Name a folder" in refused(
        2, "stats", "-c", sound, "--html", place
    )
    wav = ("inspect", "clips/0.flac", "-c", sound, "--wav", place)
    assert "--wav" in refused(2, *wav)
    assert list(tmp_path.iterdir()) == []


def test_only_a_page_of_koe_is_written_over(sound, tmp_path):
    command = ("stats", "-c", sound, "--html-clips", "0", "--html", str(tmp_path))
    page = tmp_path / PAGE
    page.write_text("<!DOCTYPE html><title>mine</title>")
    assert "koe did not write it" in refused(2, *command)
    assert page.read_text().endswith("<title>mine</title>")
    page.unlink()
    for _ in range(2):
        assert koe(*command)[0] == 0
    (tmp_path / "file").touch()
    assert "is a file" in refused(2, *command[:-1], str(tmp_path / "file"))


def test_sound_goes_into_a_folder_that_can_be_made(sound, tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", "/proc/none"):
        command = ("inspect", "clips/0.flac", "-c", sound, "--wav", str(folder))
        assert f"{folder} cannot be written" in refused(1, *command)


def test_sound_on_a_full_disk_is_one_line(sound, tmp_path):
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000));"
    done = subprocess.run(
        [sys.executable, "-c", limit + MAIN,
         "inspect", "clips/0.flac", "-c", sound, "--wav", str(tmp_path)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert "original.wav cannot be written because File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_text_has_no_sound_and_a_record_no_raw_row(sound, tmp_path):
    code, out, err = koe("inspect", "text/s1", "-c", sound, "--wav", str(tmp_path / "w"))
    assert code == 0
    assert "text/s1" in out
    assert "no audio was written" in err
    assert not (tmp_path / "w").exists()
    assert "not a record" in refused(2, "inspect", "text/s1", "--raw", "-c", sound)


@pytest.mark.parametrize("id", ["a/x.arrow", "a/x.arrow:3", "a/train-00000.arrow"])
def test_an_id_may_end_like_a_path(tmp_path, id):
    config = write_corpus(tmp_path)
    ledger = write_run(str(tmp_path / "run"))
    units = {"k": [unit("a0", "a").__dict__]}
    plan = {"schema_version": SCHEMA_VERSION, "modalities": {"a": SPEECH}, "files": units}
    ledger.storage.write_bytes(PLAN, json.dumps(plan).encode())
    no_codes = ENCODED.remove(ENCODED.get_field_index("codes"))
    commit(ledger, "ingest", "a0", filled(no_codes, [clip(id)]))
    code, out, err = koe("inspect", id, "-c", str(config))
    assert (code, err) == (0, "")
    assert f"text of {id}" in out
    shard = koe("inspect", "shards/train-00001.arrow:1", "--json", "-c", str(config))
    assert json.loads(shard[1])["shard"] == "train-00001.arrow"
    strange = refused(2, "inspect", "elsewhere/x.arrow", "-c", str(config))
    assert "elsewhere/x.arrow is neither a shard nor the id of a record" in strange
