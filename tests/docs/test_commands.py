"""Every command of README.md and docs/*.md is run on a tiny corpus, or at least parsed."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from fsspec.config import set_conf_env

from pipeline.cli.app import app
from tests.calling import koe, parse_click, parse_koe
from tests.corpus import write_corpus
from tests.docs.blocks import ROOT, commands

# Commands that are parsed by the program they call and not run, and why; and programs, likewise.
PARSED = {
    "koe train --set train.workers=4 --set train.accumulation_steps=8": "needs four GPUs",
    "koe export model/ --push OWNER/NAME": "needs the hub; tests/clients/test_push.py has one of its own",
}
PARSED_PROGRAMS = {
    "make": "minutes; and `make test` would run this test",
    "ray": "needs a cluster, or would leave one behind",
    "torchrun": "needs eight GPUs; a test below gives its arguments to the trainer",
    "python": "needs an object store, a GPU or a corpus",
    "export": "needs an object store or a cluster",
    "docker": "builds an image; a test of the examples checks its file",
    "kubectl": "needs a Kubernetes; a test of the examples checks the file",
    "sbatch": "needs a Slurm; a test of the examples runs the scripts",
}
# What is run instead on the tiny corpus, of which no clip scores above 2.8; two clips say enough.
INSTEAD = {
    "koe run --set encode.threshold_ovrl=2.8": "koe run --set encode.threshold_ovrl=1.29",
    "koe run --to interleave --set encode.threshold_ovrl=2.8": "koe run --to interleave --set encode.threshold_ovrl=1.3",
    "koe plan": "koe plan --clips 2",
    "koe plan --cores 96 --gpus 8 --read-megabytes 2000": "koe plan --clips 2 --cores 96 --gpus 8 --read-megabytes 2000",
    "koe stats --source jchat": "koe stats --source clips",
    "koe inspect jchat/a/0012.flac": "koe inspect clips/3.flac",
    "koe export model/ --gguf": "koe export model-for-llama-cpp/ --gguf",  # model/ is there by then
}
SPIKE = [
    f"train.guard.{key}" for key in ("max_loss=0.01", "roll_back_after_skips=3", "max_rollbacks=0")
]


def words(command: str) -> list[str]:
    """Split a command, without the variables that it sets for itself."""
    parts = shlex.split(command)
    while re.fullmatch(r"[A-Z_]+=.*", parts[0]):
        parts.pop(0)
    return parts


def only_parsed(command: str) -> bool:
    return command in PARSED or words(command)[0] in PARSED_PROGRAMS


RUN = [command for command in commands() if not only_parsed(command)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run in the working directory, as the pages suppose it."""
    folder = tmp_path_factory.mktemp("docs")
    path = write_corpus(folder)
    config = yaml.safe_load(path.read_text("utf-8"))
    config["interleave"] = {"max_row_tokens": 128, "shard_megabytes": 4, "validation_share": 0.1}
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    shutil.copy(folder / "0.flac", folder / "clip.wav")
    before = Path.cwd()
    os.chdir(folder)
    try:
        code, _, err = koe("run")
        assert code == 0, err
        yield folder
    finally:
        os.chdir(before)


def spiked_event(folder: Path) -> str:
    """Train into a spike, which stops the run; return the id of an event about a step."""
    longer = ("train.max_steps=20", "train.resume_with_changes=[max_steps]")
    sets = [part for key in (*SPIKE, *longer) for part in ("--set", key)]
    code, _, err = koe("train", *sets)
    assert code == 1, err
    assert "training was stopped" in err
    lines = (folder / "run/train/events.jsonl").read_text("utf-8").splitlines()
    return next(event["id"] for event in map(json.loads, lines) if event.get("rows"))


@pytest.mark.slow
@pytest.mark.parametrize("command", RUN)
def test_a_command_of_the_pages_runs(command, trained):
    command = INSTEAD.get(command, command)
    if "--replay" in command:
        command = re.sub(r"E\d{4}", spiked_event(trained), command)
    program, *arguments = words(command)
    if program == "koe":
        code, out, err = koe(*arguments)
        assert code == 0, err
        if "--json" in arguments:
            json.loads(out)
    else:
        assert program == "tail", (
            f"{program} is neither known to be harmless nor in PARSED_PROGRAMS"
        )
        done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout


@pytest.mark.parametrize("command", [command for command in commands() if only_parsed(command)])
def test_the_other_commands_are_parsed(command, monkeypatch):
    program, *arguments = words(command)
    if program == "koe":
        parse_koe(*arguments)
    elif program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(arguments) <= set(targets)
    elif program == "ray":
        from ray.scripts.scripts import cli as ray_cli

        parse_click(ray_cli, "ray", *arguments)
    elif program == "torchrun":
        parse_torchrun(arguments)
    elif program == "python":
        parse_python(arguments, monkeypatch)
    elif program == "export":
        parse_export(*arguments[0].split("="))
    else:
        assert program in ("docker", "kubectl", "sbatch")
        named = [word for word in arguments if word.startswith("examples/")]
        assert all((ROOT / path).is_file() for path in named)
        if "--" in arguments:
            parse_koe(*arguments[arguments.index("--") + 2 :])
        else:
            assert named or program == "kubectl"


def parse_export(key: str, value: str) -> None:
    """Check that a variable is known to whom it is meant for."""
    if key.startswith("RAY_AUTH_"):
        from ray._private.authentication import authentication_token_setup as of_ray

        assert key in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH")
        assert of_ray.AUTH_MODE_ENV_VAR == "RAY_AUTH_MODE"
        return
    settings: dict[str, dict[str, str]] = {}
    set_conf_env(settings, {key: value})
    assert settings == {"s3": {"endpoint_url": value}}


def parse_torchrun(arguments: list[str]) -> None:
    from torch.distributed.run import get_args_parser

    options = get_args_parser().parse_args(arguments)
    assert options.module
    assert options.training_script == "training"
    names = [argument for argument in options.training_script_args if argument.startswith("--")]
    assert names == ["--config", "--shards", "--out"]


class Parsed(Exception):
    """Raised where a program would begin, its arguments being parsed."""


def parse_python(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    if arguments[0] == "-c":
        compile(arguments[1], "docs", "exec")
    elif arguments[0] != "-m":
        assert (ROOT / arguments[0]).is_file()
    elif arguments[1] != "pip":
        parse = argparse.ArgumentParser.parse_args

        def only_parse(self, args=None, namespace=None):
            parse(self, args, namespace)
            raise Parsed

        monkeypatch.setattr(argparse.ArgumentParser, "parse_args", only_parse)
        monkeypatch.setattr(sys, "argv", arguments[1:])
        with pytest.raises(Parsed):
            importlib.import_module(arguments[1]).main()


@pytest.mark.slow
def test_torchrun_takes_the_configuration_of_a_run(trained, monkeypatch):
    from training import __main__ as trainer

    calls = []
    monkeypatch.setattr(trainer.loop, "train", lambda *call, asked: calls.append(call))
    arguments = ["--config", "run/config.json", "--shards", "run/shards", "--out", "run/train"]
    assert trainer.main(arguments) == 0
    assert calls[0][0].max_steps == 2


@pytest.mark.slow
def test_a_run_directory_may_be_a_url(trained):
    url = ["--set", "run_dir=memory://docs/run", "--set", "sources.speech=[]"]
    assert koe("run", "--to", "interleave", *url)[0] == 0
    assert koe("plan", "--clips", "0", *url)[0] == 0
    for name in ("status", "stats"):
        code, out, err = koe(name, "--json", *url)
        assert code == 0, err
        json.loads(out)
    code, out, err = koe("verify", *url)
    assert code == 0, err
    code, _, err = koe("train", *url)
    assert code == 0, err


def test_help_fits_a_screen(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = koe("--help")
    lines = out.rstrip("\n").splitlines()
    assert code == 0
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    for command in app.registered_commands:
        assert command.callback is not None
        name = command.name or command.callback.__name__
        assert re.search(rf"^\W*{name}\b.*[.a-z]", out, re.MULTILINE)
        code, out_of_one, _ = koe(name, "--help")
        assert code == 0
        assert len(out_of_one.splitlines()) <= 24


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "expected"), [("koe st", {"status", "stats"}), ("koe run --fo", {"--force"})]
)
def test_the_shell_completes_commands_and_options(words, expected):
    asks = {
        "_KOE_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(words.count(" ")),
    }
    done = subprocess.run(
        [Path(sys.executable).with_name("koe")],
        env=os.environ | asks,
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(done.stdout.split()) == expected


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (["run", "-c", "none.yaml"], "koe demo DIR"),
        (["run", "--from", "scor"], "Stages: ingest"),
        (["run", "--set", "encode.threshold_ovr=1"], "did you mean 'threshold_ovrl'"),
        (["status", "--set", "run_dir=other"], "koe run -c CONFIG"),
        (["inspect", "train-00000:x"], "Write SHARD:ROW"),
        (["train", "--replay", "E9999"], "events with rows"),
    ],
)
def test_an_error_says_what_to_do(arguments, remedy, trained):
    code, _, err = koe(*arguments)
    assert code == 2
    assert remedy in " ".join(err.split())
