"""A small stand-in of the hub's API on this machine: who somebody is, repositories, and commits with small files and large ones.

Tokens: ``hf_owner`` may write to ``me`` and ``lab``; ``hf_reader`` may only read; every other one is unknown.
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote

import pytest

ROLES = {"hf_owner": "write", "hf_reader": "read"}
OID = "0" * 40


class Hub:
    """What was put there: ``repo -> path -> bytes``, whether it is private, and the messages of its commits."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.messages: list[str] = []
        self.blobs: dict[str, bytes] = {}
        self.taken: set[str] = set()  # repositories that nobody here may write to
        self.address = ""
        self.revisions: dict[str, dict[str, str]] = {}  # of data sets: repo -> branch -> commit, which is a place in ``contents``
        self.contents: dict[str, dict[str, bytes]] = {}  # commit -> path -> bytes

    def publish(self, repo: str, commit: str, files: dict[str, bytes], branch: str = "main") -> None:
        """A data set whose branch now is this commit."""
        self.contents[commit] = files
        self.revisions.setdefault(repo, {}).update({branch: commit, commit: commit})

    def data_set(self, path: str) -> tuple[str, str, list[str]] | None:
        """(repo, commit, what is asked of it) of ``/api/datasets/A/B/WHAT/REVISION/...`` and ``/datasets/A/B/resolve/REVISION/FILE``."""
        words = [unquote(word) for word in path.partition("?")[0].removeprefix("/api").split("/")[1:]]
        if words[0] != "datasets" or "/".join(words[1:3]) not in self.revisions:
            return None
        repo, (what, revision, *rest) = "/".join(words[1:3]), [*words[3:], *["revision", "main"][len(words[3:4]) :]][:2] + words[5:]
        commit = self.revisions[repo].get(revision)
        return None if commit is None else (repo, commit, [what, *rest])


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *words: Any) -> None: ...

        def answer(self, body: Any, code: int = 200, error: str = "") -> None:
            content = json.dumps(body).encode()
            self.send_response(code)
            if error:
                self.send_header("X-Error-Code", error)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def body(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        @property
        def role(self) -> str | None:
            return ROLES.get(self.headers.get("Authorization", "").removeprefix("Bearer "))

        def do_GET(self) -> None:
            if self.path == "/api/whoami-v2" and self.role is not None:
                self.answer({"name": "me", "orgs": [{"name": "lab"}], "auth": {"accessToken": {"role": self.role}}})
            elif (asked := hub.data_set(self.path)) is not None:
                self.of_data(*asked)
            elif self.path.startswith(("/api/datasets/", "/datasets/")):
                known = any(f"/{repo}/" in self.path for repo in hub.revisions)
                self.answer({"error": "not found"}, 404, "RevisionNotFound" if known else "RepoNotFound")
            else:
                self.answer({"error": "Invalid credentials"}, 401)

        do_HEAD = do_GET

        def of_data(self, repo: str, commit: str, asked: list[str]) -> None:
            files, (what, *rest) = hub.contents[commit], asked
            if what == "resolve":
                self.file(files.get("/".join(rest)), commit)
            elif what == "tree":
                self.answer([self.entry(name, files[name]) for name in files])
            else:
                siblings = [{"rfilename": name} for name in files]
                self.answer({"id": repo, "sha": commit, "siblings": siblings, "tags": [], "private": False, "downloads": 0, "likes": 0})

        def entry(self, name: str, content: bytes) -> dict[str, Any]:
            return {"type": "file", "path": name, "size": len(content), "oid": OID}

        def file(self, content: bytes | None, commit: str) -> None:
            if content is None:
                self.answer({"error": "Entry not found"}, 404, "EntryNotFound")
                return
            self.send_response(200)
            headers = {"Content-Length": len(content), "ETag": f'"{hash(content)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
            for name, value in headers.items():
                self.send_header(name, str(value))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def do_PUT(self) -> None:
            hub.blobs[self.path.removeprefix("/blob/")] = self.body()
            self.answer({})

        def do_POST(self) -> None:
            content = self.body()
            if "/paths-info/" in self.path and (asked := hub.data_set(self.path)) is not None:
                form = json.loads(content) if content.startswith(b"{") else parse_qs(content.decode())
                files = hub.contents[asked[1]]
                self.answer([self.entry(name, files[name]) for name in form["paths"] if name in files])
            elif self.path == "/api/validate-yaml":
                self.answer({"errors": [], "warnings": []})
            elif self.role != "write":
                self.answer({"error": "Forbidden: this token may not write"}, 403)
            elif self.path == "/api/repos/create":
                self.create(json.loads(content))
            elif "/preupload/" in self.path:
                files = json.loads(content)["files"]
                mode = lambda path: "lfs" if path.endswith(".safetensors") else "regular"  # noqa: E731
                self.answer({"files": [{"path": f["path"], "uploadMode": mode(f["path"]), "shouldIgnore": False} for f in files]})
            elif self.path.endswith("/info/lfs/objects/batch"):
                asked = json.loads(content)["objects"]
                upload = lambda oid: {"upload": {"href": f"{hub.address}/blob/{oid}", "header": {}}}  # noqa: E731
                self.answer({"transfer": "basic", "objects": [{**one, "actions": upload(one["oid"])} for one in asked]})
            elif "/commit/" in self.path:
                self.commit(content)
            else:
                self.answer({"error": self.path}, 404)

        def create(self, wanted: dict[str, Any]) -> None:
            repo = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
            if repo in hub.taken:
                self.answer({"error": "You may not write here"}, 403)
            else:
                hub.repos.setdefault(repo, {})
                hub.private.setdefault(repo, wanted.get("visibility") == "private" or bool(wanted.get("private")))
                self.answer({"url": f"{hub.address}/{repo}", "name": repo})

        def commit(self, content: bytes) -> None:
            repo = "/".join(self.path.split("/")[3:5])
            for line in content.splitlines():
                row = json.loads(line)
                value = row["value"]
                if row["key"] == "header":
                    hub.messages.append(value["summary"])
                elif row["key"] == "file":
                    hub.repos[repo][value["path"]] = base64.b64decode(value["content"])
                elif row["key"] == "lfsFile":
                    hub.repos[repo][value["path"]] = hub.blobs[value["oid"]]
            self.answer({"commitUrl": f"{hub.address}/{repo}/commit/{OID}", "commitOid": OID, "success": True})

    return Handler


@contextmanager
def running(patch: pytest.MonkeyPatch, token: str | None = "hf_owner") -> Iterator[Hub]:
    """A hub on a port of its own, which huggingface_hub asks while the block lasts, with this token."""
    from huggingface_hub import constants

    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    patch.setenv("HF_ENDPOINT", hub.address)
    patch.setattr(constants, "ENDPOINT", hub.address)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.address + "/{repo_id}/resolve/{revision}/{filename}")
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # its own protocol: the hub keeps the older one beside it
    patch.setattr(constants, "HF_TOKEN_PATH", "/nowhere/token")
    patch.setenv("HF_TOKEN", token) if token else patch.delenv("HF_TOKEN", raising=False)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
