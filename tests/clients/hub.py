"""A Hugging Face hub of its own, on this machine, that takes what huggingface_hub uploads.

The requests are those of huggingface_hub 2.4 (`hf_api.py`, `_commit_api.py`, `lfs.py`): a repository is
made, each file is announced, large ones are put where the LFS batch says, and one commit names all.
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from huggingface_hub import constants

TOKEN = "hf_writer"


class Hub(ThreadingHTTPServer):
    """`files` are those of each repository, `private` its repositories; `refuse` answers
    everything with a status, `refuse_objects` only the contents of large files with "full"."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Requests)
        self.files: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.objects: dict[str, bytes] = {}
        self.messages: list[str] = []
        self.refuse: int | None = None
        self.refuse_objects = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def commit(self, repository: str, lines: list[dict[str, Any]]) -> None:
        files = self.files[repository]
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.messages.append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
            else:
                raise ValueError(f"the hub knows no {line['key']}")


class _Requests(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _answer(self, content: Any, status: int = 200) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _refused(self) -> bool:
        status = self.server.refuse
        if status is None and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            status = 401
        if status is not None:
            self._answer({"error": "refused"}, status)
        return status is not None

    def do_PUT(self) -> None:
        body = self._body()
        if self.server.refuse_objects:
            self._answer({}, 507)
            return
        self.server.objects[self.path.rpartition("/")[2]] = body
        self._answer({})

    def do_GET(self) -> None:
        if self._refused():
            return
        repository = "/".join(self.path.split("?")[0].split("/")[3:5])
        files = self.server.files.get(repository)
        if files is None:
            self._answer({"error": "not found"}, 404)
        elif "/tree/" in self.path:
            self._answer(
                [{"type": "file", "path": p, "size": len(d), "oid": "0"} for p, d in files.items()]
            )
        else:
            siblings = [{"rfilename": path} for path in files]
            self._answer({"id": repository, "sha": "0" * 40, "siblings": siblings})

    def do_POST(self) -> None:
        body = self._body()
        if self._refused():
            return
        path = self.path.split("?")[0]
        if path == "/api/repos/create":
            self._create(json.loads(body))
        elif path == "/api/validate-yaml":  # the header of the card
            self._answer({"errors": [], "warnings": []})
        elif path.endswith("/info/lfs/objects/batch"):
            actions = [self._upload_to(entry) for entry in json.loads(body)["objects"]]
            self._answer({"transfer": "basic", "objects": actions})
        elif "/preupload/" in path:
            found = [
                {
                    "path": entry["path"],
                    "uploadMode": "lfs"
                    if entry["path"].endswith((".safetensors", ".gguf"))
                    else "regular",
                    "shouldIgnore": False,
                }
                for entry in json.loads(body)["files"]
            ]
            self._answer({"files": found})
        else:
            repository = "/".join(path.split("/")[3:5])
            assert "/commit/" in path, path
            self.server.commit(repository, [json.loads(line) for line in body.splitlines()])
            url = f"{self.server.url}/{repository}/commit/{'1' * 40}"
            self._answer({"commitUrl": url, "commitOid": "1" * 40})

    def _create(self, asked: dict[str, Any]) -> None:
        repository = f"{asked['organization']}/{asked['name']}"
        exists = repository in self.server.files
        if not exists:
            self.server.files[repository] = {}
            self.server.private[repository] = asked["visibility"] == "private"
        url = f"{self.server.url}/{repository}"
        self._answer({"url": url, "id": repository}, 409 if exists else 200)

    def _upload_to(self, entry: dict[str, Any]) -> dict[str, Any]:
        upload = {"href": f"{self.server.url}/objects/{entry['oid']}"}
        return {**entry, "authenticated": True, "actions": {"upload": upload}}


@contextmanager
def hub() -> Iterator[Hub]:
    """Serve a hub while the block runs."""
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Serve a hub that huggingface_hub uses, with a token that may write there."""
    with hub() as found:
        monkeypatch.setattr(constants, "ENDPOINT", found.url)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield found
