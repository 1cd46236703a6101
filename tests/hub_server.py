"""A local server with the Hugging Face Hub's protocol for datasets and models, and with faults on request.

It implements what ``huggingface_hub`` needs to list, download (with ranges), create repositories and
commit. ``huggingface_hub`` reads its environment when it is imported: another process is given
``HubServer.environment``, and this one is connected by ``HubServer.connect``.
"""

import base64
import hashlib
import json
import re
import threading
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

REPOSITORY = r"[\w.-]+/[\w.-]+"
KIND = "(?:datasets|models)"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_fake_token_for_tests"


@dataclass
class Fault:
    """A fault of the next downloads of a file."""

    kind: str
    """``cut`` (closes the connection at half), ``short`` (a wrong length), or a status code."""
    times: int
    """How often."""


@dataclass
class HubServer:
    """Repositories in memory, and a record of the requests."""

    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    faults: dict[str, Fault] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    downloads: Counter[str] = field(default_factory=Counter)
    ranges: list[str] = field(default_factory=list)
    commits: int = 0
    private: dict[str, bool] = field(default_factory=dict)
    collections: dict[str, list[str]] = field(default_factory=dict)
    refuses_token: bool = False
    """Whether every token is wrong."""

    def __enter__(self) -> Self:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(self))
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def connect(self, patch: pytest.MonkeyPatch, home: Path, *, offline: bool = False) -> None:
        """Makes this process use this server and a cache in ``home``, until the patch is undone."""
        patch.setattr(constants, "ENDPOINT", self.url)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", self.url + "/{repo_id}/resolve/{revision}/{filename}")
        patch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
        patch.setattr(constants, "HF_HUB_OFFLINE", offline)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setenv("HF_TOKEN", TOKEN)

    def environment(self, home: Path) -> dict[str, str]:
        """Returns the environment with which another process uses this server and nothing else."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }

    def fault_for(self, file: str) -> str:
        """Returns the fault of this download, if any is left."""
        fault = self.faults.get(file)
        if fault is None or fault.times == 0:
            return ""
        fault.times -= 1
        return fault.kind


def _handler_of(hub: HubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(_Handler):
        server_state = hub

    return Handler


class _Handler(BaseHTTPRequestHandler):
    server_state: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        self.server_state.requests.append(f"{self.command} {self.path}")

    def do_HEAD(self) -> None:
        self._file(with_content=False)

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if path == "/api/whoami-v2":
            self._json({"name": "me", "type": "user", "auth": {"accessToken": {"role": "write"}}})
        elif found := re.fullmatch(rf"/api/{KIND}/({REPOSITORY})/tree/([^/]+)(?:/.*)?", path):
            files = self.server_state.repositories.get(found.group(1))
            self._json(_tree(files)) if files is not None else self._error(404, "RepoNotFound")
        elif found := re.fullmatch(rf"/api/{KIND}/({REPOSITORY})(?:/revision/[^/]+)?", path):
            self._info(found.group(1))
        else:
            self._file(with_content=True)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.server_state.refuses_token:
            self._error(401, "")
            return
        path = unquote(urlsplit(self.path).path)
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            self.server_state.repositories.setdefault(name, {})
            kind = "" if asked.get("type", "model") == "model" else "datasets/"
            self.server_state.private.setdefault(
                name, bool(asked.get("private")) or asked.get("visibility") == "private"
            )
            self._json({"url": f"{self.server_state.url}/{kind}{name}", "name": name})
        elif found := re.fullmatch(r"/api/collections/(.+)/items", path):
            self.server_state.collections.setdefault(found.group(1), []).append(json.loads(body)["item"]["id"])
            facts: dict[str, Any] = {"slug": found.group(1), "title": "t", "owner": {"name": "me"}, "items": []}
            facts |= {
                "private": False,
                "theme": "blue",
                "position": 0,
                "lastUpdated": "2026-01-01T00:00:00.000Z",
                "upvotes": 0,
            }
            self._json(facts)
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif re.fullmatch(rf"/api/{KIND}/{REPOSITORY}/preupload/[^/]+", path):
            files = json.loads(body)["files"]
            self._json({"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]})
        elif found := re.fullmatch(rf"/api/{KIND}/({REPOSITORY})/commit/[^/]+", path):
            self._commit(found.group(1), body)
        else:
            self._error(404, "EntryNotFound")

    def _commit(self, name: str, body: bytes) -> None:
        fault = self.server_state.fault_for("commit")
        if fault:
            self._error(int(fault), "")
            return
        files = self.server_state.repositories[name]
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
        self.server_state.commits += 1
        url = f"{self.server_state.url}/datasets/{name}/commit/{COMMIT}"
        self._json({"commitUrl": url, "commitOid": COMMIT, "hookOutput": ""})

    def _info(self, name: str) -> None:
        files = self.server_state.repositories.get(name)
        if files is None:
            self._error(404, "RepoNotFound")
            return
        siblings = [{"rfilename": file} for file in files]
        facts = {"id": name, "sha": COMMIT, "private": False, "gated": False, "disabled": False, "downloads": 0}
        self._json(facts | {"likes": 0, "tags": [], "siblings": siblings})

    def _file(self, *, with_content: bool) -> None:
        found = re.fullmatch(rf"/(?:datasets/)?({REPOSITORY})/resolve/([^/]+)/(.+)", unquote(urlsplit(self.path).path))
        if found is None or found.group(1) not in self.server_state.repositories:
            self._error(404, "RepoNotFound")
            return
        file = found.group(3)
        content = self.server_state.repositories[found.group(1)].get(file)
        if content is None:
            self._error(404, "EntryNotFound")
            return
        if with_content:
            self._download(file, content)
        else:
            self._headers(200, content, len(content))

    def _download(self, file: str, content: bytes) -> None:
        fault = self.server_state.fault_for(file)
        if fault.isdecimal():
            self._error(int(fault), "")
            return
        self.server_state.downloads[file] += 1
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        begin = int(asked.group(1)) if asked else 0
        if asked:
            self.server_state.ranges.append(file)
        rest = content[begin:]
        if fault == "short":
            rest = rest[: len(rest) // 2]
        self._headers(206 if asked else 200, content, len(rest), begin=begin if asked else None)
        if fault == "cut":
            self.wfile.write(rest[: len(rest) // 2])
            self.wfile.flush()
            self.close_connection = True
            return
        self.wfile.write(rest)

    def _headers(self, status: int, content: bytes, length: int, *, begin: int | None = None) -> None:
        self.send_response(status)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        if begin is not None:
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def _json(self, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _error(self, status: int, code: str) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        if status == 429:
            self.send_header("Retry-After", "1")
        self.send_header("Content-Length", "0")
        self.end_headers()


def _tree(files: dict[str, bytes]) -> list[dict[str, Any]]:
    return [
        {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
        for path, content in sorted(files.items())
    ]
