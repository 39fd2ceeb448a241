"""`koe export --push`: what lies on the hub afterwards, and what is refused before any work."""

from __future__ import annotations

import huggingface_hub
import pytest

from koe.errors import ConfigError, StorageError
from tests.clients.hub import server
from training.export.push import prepare_repository, push

__all__ = ["server"]

# huggingface_hub 2.4 calls httpx2 so itself
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

NAME = "someone/my-model"


@pytest.fixture
def folder(tmp_path):
    for name, text in (
        ("config.json", "{}"),
        ("README.md", "card"),
        ("model.safetensors", "weights"),
    ):
        (tmp_path / name).write_text(text)
    return tmp_path


def test_a_folder_lies_on_the_hub_as_it_is(server, folder):
    prepare_repository(NAME)
    assert server.private == {NAME: True}
    url = push(folder, NAME)
    assert url.endswith(NAME)
    assert server.files[NAME] == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert server.messages == ["Upload a model exported by koe"]


def test_a_later_model_replaces_the_earlier_and_nothing_else(server, folder):
    server.files[NAME] = {
        "model-00001-of-00002.safetensors": b"old",
        "model.safetensors.index.json": b"old",
        "voice.wav": b"kept",
        ".gitattributes": b"kept",
    }
    prepare_repository(NAME)  # which exists
    push(folder, NAME)
    kept = {"voice.wav": b"kept", ".gitattributes": b"kept"}
    own = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert server.files[NAME] == kept | own
    assert len(server.messages) == 1


@pytest.mark.parametrize("name", ["my-model", "a/b/c", "some one/model", "someone/my--model", "/x"])
def test_a_name_that_is_none_is_refused(server, name):
    with pytest.raises(ConfigError, match=r"no (repository|name)"):
        prepare_repository(name)
    assert not server.files


def test_who_may_not_write_is_refused(server, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    with pytest.raises(ConfigError, match=r"cannot be written.*hf auth login"):
        prepare_repository(NAME)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.utils._auth, "_get_token_from_file", lambda: None)
    with pytest.raises(ConfigError, match=r"cannot be written.*hf auth login"):
        prepare_repository(NAME)
    server.refuse = 403
    with pytest.raises(ConfigError, match=r"cannot be written.*hf auth login"):
        prepare_repository(NAME)
    assert not server.files


def test_a_file_that_does_not_arrive_leaves_the_repository_as_it_was(server, folder):
    prepare_repository(NAME)
    server.refuse_objects = True
    with pytest.raises(StorageError, match=r"did not take.*model.safetensors.*hf upload"):
        push(folder, NAME)
    assert server.files[NAME] == {}


def test_a_hub_that_does_not_answer_leaves_the_folder(server, folder):
    prepare_repository(NAME)
    server.refuse = 501
    with pytest.raises(StorageError, match=r"did not take someone/my-model.*hf upload"):
        push(folder, NAME)
    server.shutdown()
    server.server_close()
    with pytest.raises(StorageError, match="did not take"):
        prepare_repository(NAME)
    assert (folder / "model.safetensors").exists()
    assert server.files[NAME] == {}
