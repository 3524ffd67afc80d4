"""A stand-in for the Hugging Face Hub on this machine: an account, and repositories that keep what is committed to them."""

import base64
import contextlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

TOKEN, ACCOUNT, ORGANISATIONS = "hf_token", "alice", ("org",)


class Hub:
    """What the stand-in holds.

    Attributes:
      repositories: name -> {"private": bool, "branches": {branch: {path: content}}}.
      requests: method and path of each request, in order.
    """

    def __init__(self):
        self.repositories: dict[str, dict] = {}
        self.requests: list[str] = []

    def write(self, name: str, folder: Path, branch: str = "main") -> Path:
        """Writes the files of a branch into a folder, as links, which is how the hub's client keeps them."""
        blobs = folder.with_name(f"{folder.name}-blobs")
        blobs.mkdir()
        for index, (path, content) in enumerate(self.repositories[name]["branches"][branch].items()):
            (blobs / str(index)).write_bytes(content)
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).symlink_to(blobs / str(index))
        return folder

    def answer(self, method: str, path: str, token: str | None, body: bytes) -> tuple[int, dict | list]:
        """Answers a request by the hub's interface: `(status, JSON)`."""
        if token != f"Bearer {TOKEN}":
            return 401, {"error": "Invalid username or password."}
        if path == "/api/whoami-v2":
            return 200, {"type": "user", "name": ACCOUNT, "orgs": [{"name": name} for name in ORGANISATIONS]}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        found = re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)(?:/(branch|preupload|commit|tree|revision)/([^/?]+).*)?", path)
        if found is None or found[1] not in self.repositories:
            return 404, {"error": "Repository not found"}
        repository = self.repositories[found[1]]
        files = repository["branches"].get(found[3] or "main", {})
        if found[2] == "branch":
            repository["branches"].setdefault(found[3], dict(repository["branches"]["main"]))
            return 200, {}
        if found[2] == "preupload":
            return 200, {
                "files": [
                    {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for file in json.loads(body)["files"]
                ]
            }
        if found[2] == "commit":
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                if line["key"] == "deletedFile":
                    del files[line["value"]["path"]]
            oid = "0" * 40
            return 200, {"commitOid": oid, "commitUrl": f"http://127.0.0.1/{found[1]}/commit/{oid}", "success": True}
        if found[2] == "tree":
            return 200, [{"type": "file", "path": name, "size": len(x), "oid": "0" * 40} for name, x in files.items()]
        siblings = [{"rfilename": name} for name in files]
        private = repository["private"]
        return 200, {"id": found[1], "private": private, "sha": "0" * 40, "siblings": siblings, "tags": [], "downloads": 0}

    def _create(self, request: dict) -> tuple[int, dict]:
        name = f"{request.get('organization', ACCOUNT)}/{request['name']}"
        if name.split("/")[0] not in (ACCOUNT, *ORGANISATIONS):
            return 403, {"error": "You don't have the rights to create a model under the namespace"}
        if name in self.repositories:
            return 409, {"error": "You already created this model repo", "url": f"http://127.0.0.1/{name}"}
        # By versions before and from 2 of the client.
        private = bool(request.get("private")) or request.get("visibility") == "private"
        self.repositories[name] = {"private": private, "branches": {"main": {}}}
        return 200, {"url": f"http://127.0.0.1/{name}", "name": name}


def _make_handler(hub: Hub) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def _respond(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            hub.requests.append(f"{self.command} {self.path}")
            status, content = hub.answer(self.command, self.path.split("?")[0], self.headers.get("Authorization"), body)
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = _respond

        def log_message(self, *_) -> None:
            """Prints nothing."""

    return Handler


@contextlib.contextmanager
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Starts the stand-in, and lets huggingface_hub use it with a token."""
    hub = Hub()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _make_handler(hub))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
