"""A hub on the loopback address: as much of its protocol as huggingface_hub needs to list and download a repository's files."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

REPOSITORY, REVISION = "RepoNotFound", "RevisionNotFound"


class Hub:
    """Repositories by id, each a folder by commit, with names for commits; `asked` is every request that came in."""

    def __init__(self) -> None:
        self.commits: dict[str, dict[str, Path]] = {}
        self.names: dict[tuple[str, str], str] = {}
        self.gated: set[str] = set()
        self.asked: list[str] = []
        self.endpoint = ""

    def push(self, repository: str, folder: Path, *names: str) -> str:
        """Put a folder into a repository as a commit that branches or tags of these names then stand for."""
        commit = hashlib.sha1(f"{repository} {folder}".encode()).hexdigest()
        self.commits.setdefault(repository, {})[commit] = folder
        self.names |= {(repository, name): commit for name in names}
        return commit

    def commit(self, repository: str, revision: str) -> str | None:
        commit = self.names.get((repository, revision), revision)
        return commit if commit in self.commits[repository] else None


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        of_api = path.startswith("/api/models/")
        parts = path.removeprefix("/api/models/").strip("/").split("/")
        repository, rest = "/".join(parts[:2]), parts[2:]
        if repository not in self.hub.commits:
            return self.refuse(401, REPOSITORY)  # as the hub does where nobody is logged in
        kind, revision, *name = rest or ["revision", "main"]
        commit = self.hub.commit(repository, revision)
        if commit is None:
            return self.refuse(404, REVISION)
        folder = self.hub.commits[repository][commit]
        if of_api:
            return self.tell(self.tree(folder) if kind == "tree" else self.facts(repository, commit, folder))
        if repository in self.hub.gated:
            return self.refuse(403, "GatedRepo")
        self.send(folder.joinpath(*name), commit)

    do_HEAD = do_GET

    def refuse(self, status: int, code: str, **headers: str) -> None:
        self.answer(status, b"", {"X-Error-Code": code, **headers})

    def facts(self, repository: str, commit: str, folder: Path) -> dict[str, Any]:
        siblings = [{"rfilename": path.name} for path in sorted(folder.iterdir())]
        return {"id": repository, "sha": commit, "siblings": siblings, "tags": [], "private": False, "gated": False}

    def tree(self, folder: Path) -> list[dict[str, Any]]:
        files = [(path.name, path.read_bytes()) for path in sorted(folder.iterdir())]
        return [
            {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for name, content in files
        ]

    def tell(self, value: Any) -> None:
        self.answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def send(self, path: Path, commit: str) -> None:
        if not path.is_file():
            return self.refuse(404, "EntryNotFound", **{"X-Repo-Commit": commit})
        content = path.read_bytes()
        self.answer(200, content, {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'})

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving() -> Iterator[Hub]:
    hub = Hub()
    with ThreadingHTTPServer(("127.0.0.1", 0), type("OfThisHub", (Handler,), {"hub": hub})) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        hub.endpoint = f"http://127.0.0.1:{server.server_port}"
        yield hub
        server.shutdown()
        thread.join()
