"""A URL that cannot be opened says what is missing, of a run directory and of a source alike."""

import builtins

import pytest
from fsspec.registry import _registry

from koe.errors import ConfigError
from koe.remote import file_system
from pipeline.run_dir.plan import load_plan
from pipeline.run_dir.storage import Storage
from stages.sources.files.listing import expand, relative_name
from stages.sources.files.opening import open_binary, stamp


@pytest.fixture
def no_packages(monkeypatch):
    """Let no package of an object store be installed."""
    real = builtins.__import__

    def hidden(name, *rest, **more):
        if name.partition(".")[0] in ("s3fs", "gcsfs"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *rest, **more)

    for protocol in ("s3", "gs"):  # classes that another test has loaded
        monkeypatch.delitem(_registry, protocol, raising=False)
    monkeypatch.setattr(builtins, "__import__", hidden)
    monkeypatch.setattr("importlib.import_module", lambda name, *rest: hidden(name, fromlist=["x"]))


USES = [
    lambda url: load_plan(Storage(url)),
    lambda url: Storage(url).write_bytes("a", b"1"),
    lambda url: expand("clips", [f"{url}/*.jsonl"]),
    lambda url: relative_name("s3://a/x", [f"{url}/*.jsonl"]),
    stamp,
    open_binary,
    file_system,
]


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3://bucket/run", r"s3://bucket/run.* cannot be opened .*`pip install s3fs`"),
        ("gs://bucket/run", r"`pip install gcsfs`"),
        ("foo://bucket/run", r"cannot be opened because Protocol not known: foo\. Name a local"),
    ],
)
def test_what_is_missing_is_named(no_packages, use, url, words):
    with pytest.raises(ConfigError, match=words):
        use(url)


def test_s3_keeps_its_way_of_sending_when_it_connects_again(s3):
    system, place = file_system(s3.make_bucket("again"))
    system.pipe_file(f"{place}/a", b"1")
    session = system.session
    system.connect(refresh=True)
    system.pipe_file(f"{place}/a", b"2")
    assert system.session is session
    assert system.cat_file(f"{place}/a") == b"2"
